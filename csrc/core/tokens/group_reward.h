// Normalising the rewards of one group of completions.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/tokens/moments.h"

namespace pama {

// A power of two to multiply rewards of magnitudes up to `largest` by: squares of theirs then stay
// within the range of numbers. 1 where they would anyway.
PAMA_INLINE double group_unit(double largest) {
  const bool ordinary = largest == 0 || (largest > 0x1p-400 && largest < 0x1p400);
  if (ordinary || !(largest <= DBL_MAX)) return 1;
  const int exponent = -ilogb(largest);
  return ldexp(1.0, exponent < 1000 ? exponent : 1000);  // a subnormal number's would be infinite
}

// (r − μ) / (σ + ε), with the moments of rewards times `unit`: 0 for a reward that does not apply
// (NaN) or stands alone, and, whatever ε is, where all rewards of the group are equal.
PAMA_INLINE double group_normalized(double reward, const Moments& group, double unit, double eps) {
  const double deviation = reward * unit - group.mean;
  if (reward != reward || group.count < 2 || deviation == 0) return 0;
  return deviation / (sqrt(group.squares / (group.count - 1)) + eps * unit);
}

}  // namespace pama
