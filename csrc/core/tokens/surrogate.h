// PPO's clipped surrogate min(u A, clip(u) A) of a token.
#pragma once

#include <cmath>

#include "core/tokens/exponential.h"

namespace pama {

// The clip on the ratio u and, since comparing is exact there, on its logarithm.
struct Clip {
  double low, high, log_low, log_high;
};

inline Clip clip_of(double epsilon_low, double epsilon_high) {
  return {1 - epsilon_low, 1 + epsilon_high, epsilon_low < 1 ? std::log1p(-epsilon_low) : -HUGE_VAL,
          std::log1p(epsilon_high)};
}

struct Surrogate {
  double value;      // min(u A, clip(u) A)
  double slope;      // its derivative in log u
  double flat;       // 1 where the clip holds it flat, else 0
  double ratio;      // u
  double approx_kl;  // u − 1 − log u, the k3 estimate of KL(π_old ‖ π)
};

// A NaN in the ratio or the advantage is never clipped, so that it goes through to the value. An
// advantage of 0 counts 0 whatever the ratio, as one that is not finite times 0 would not.
PAMA_INLINE Surrogate surrogate(const Clip& clip, double log_ratio, double advantage) {
  const Exponential u = exponential(log_ratio);
  // How far beyond the bound that can hold this advantage. A difference of two numbers has the sign
  // of their comparison, and selecting among numbers vectorises better than among truth values.
  const double beyond = advantage > 0   ? log_ratio - clip.log_high
                        : advantage < 0 ? clip.log_low - log_ratio
                                        : 0;
  const double nothing = log_ratio == log_ratio ? 0 : log_ratio;
  const double plain = advantage == 0 ? nothing : u.value * advantage,
               held = (advantage > 0 ? clip.high : clip.low) * advantage;
  return {beyond > 0 ? held : plain, beyond > 0 ? 0 : plain, beyond > 0 ? 1.0 : 0.0, u.value,
          u.remainder};
}

}  // namespace pama
