// Per-token estimators of KL(π ‖ π_ref) from k = log π − log π_ref, and their slopes in k.
#pragma once

#include "core/exponential.h"

namespace pama {

enum class Estimator : int { kK1 = 1, kK2, kK3 };

// `kind` is a template parameter so that loops over tokens hold no branch on it.
template <Estimator kind>
PAMA_INLINE double kl_estimate(double k) {
  if constexpr (kind == Estimator::kK1) return k;
  if constexpr (kind == Estimator::kK2) return 0.5 * k * k;
  if constexpr (kind == Estimator::kK3) return exponential(-k).remainder;
}

template <Estimator kind>
PAMA_INLINE double kl_slope(double k) {
  if constexpr (kind == Estimator::kK1) return 1;
  if constexpr (kind == Estimator::kK2) return k;
  if constexpr (kind == Estimator::kK3) return -exponential(-k).minus_one;
}

PAMA_INLINE double kl_estimate(Estimator kind, double k) {
  switch (kind) {
    case Estimator::kK1:
      return kl_estimate<Estimator::kK1>(k);
    case Estimator::kK2:
      return kl_estimate<Estimator::kK2>(k);
    default:
      return kl_estimate<Estimator::kK3>(k);
  }
}

PAMA_INLINE double kl_slope(Estimator kind, double k) {
  switch (kind) {
    case Estimator::kK1:
      return kl_slope<Estimator::kK1>(k);
    case Estimator::kK2:
      return kl_slope<Estimator::kK2>(k);
    default:
      return kl_slope<Estimator::kK3>(k);
  }
}

}  // namespace pama
