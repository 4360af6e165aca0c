// The recurrence of generalised advantage estimation as maps that compose.
#pragma once

#include "core/portable.h"

namespace pama {

// What a run of tokens makes of the state (advantage, value) that comes to it from the right:
//   advantage -> a * advantage + c * value + b,   value -> seen ? v : value.
// A run without unmasked tokens is the identity, which is the default.
struct GaeRun {
  double a = 1, c = 0, b = 0, v = 0;
  bool seen = false;
};

PAMA_INLINE GaeRun gae_token(double reward, double value, double gamma, double lambda) {
  return {gamma * lambda, gamma, reward - value, value, true};
}

// The run `left` followed, on its right, by the run `right`.
PAMA_INLINE GaeRun gae_join(const GaeRun& left, const GaeRun& right) {
  if (!right.seen) return left;
  if (!left.seen) return right;
  return {left.a * right.a, left.a * right.c, left.a * right.b + left.c * right.v + left.b, left.v,
          true};
}

struct GaeState {
  double advantage, value;
};

PAMA_INLINE GaeState gae_apply(const GaeRun& run, const GaeState& state) {
  if (!run.seen) return state;
  return {run.a * state.advantage + run.c * state.value + run.b, run.v};
}

}  // namespace pama
