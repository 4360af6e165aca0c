// The recurrence of generalised advantage estimation as maps that compose.
//
// With X_t = V_t + λ A_t it is A_t = r_t − V_t + γ X_{t+1}, so all that comes to a token from its
// right is one number, of which what it hands on is an affine function.
#pragma once

#include "core/portable.h"

namespace pama {

// What a run of tokens makes of the X that comes to it from the right: decay · X + sum. A run
// without unmasked tokens hands it on, which is the default.
struct GaeRun {
  double decay = 1, sum = 0;

  PAMA_INLINE double operator()(double x) const { return decay * x + sum; }
};

// Of one unmasked token.
PAMA_INLINE GaeRun gae_token(double reward, double value, double gamma, double lambda) {
  return {gamma * lambda, value + lambda * (reward - value)};
}

// The run `left` followed, on its right, by the run `right`.
PAMA_INLINE GaeRun gae_join(const GaeRun& left, const GaeRun& right) {
  return {left.decay * right.decay, left(right.sum)};
}

}  // namespace pama
