// The error of a value head at one token, clipped around the old value.
#pragma once

#include "core/portable.h"

namespace pama {

struct ValueError {
  double error;  // half its square is the loss
  double slope;  // the loss's derivative in the value
};

PAMA_INLINE ValueError value_error(double value, double target) {
  return {value - target, value - target};
}

// The larger of the errors of the value and of the value held within old ± clip, where it has no
// slope. A NaN in `old` makes both NaN.
PAMA_INLINE ValueError value_error(double value, double target, double old, double clip) {
  const double low = old - clip, high = old + clip;
  const double bounded = value < low ? low : value > high ? high : value;
  const double held = old != old ? old : bounded;
  const double plain = value - target, clipped = held - target;
  const double plain_size = plain < 0 ? -plain : plain;
  const double clipped_size = clipped < 0 ? -clipped : clipped;
  // A NaN of either goes through, also where the other is infinite.
  const bool free = clipped == clipped && !(plain_size < clipped_size);
  const double held_slope = clipped != clipped ? clipped : 0;
  return {free ? plain : clipped, free ? plain : held_slope};
}

}  // namespace pama
