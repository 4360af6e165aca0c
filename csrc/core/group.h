// Normalising the rewards of one group of completions.
#pragma once

#include "core/moments.h"

namespace pama {

// (r − μ) / (σ + ε): 0 for a reward that does not apply (NaN) or stands alone, and, whatever ε is,
// where all rewards of the group are equal.
PAMA_INLINE double group_normalized(double reward, const Moments& group, double eps) {
  const double deviation = reward - group.mean;
  if (reward != reward || group.count < 2 || deviation == 0) return 0;
  return deviation / (sqrt(group.squares / (group.count - 1)) + eps);
}

}  // namespace pama
