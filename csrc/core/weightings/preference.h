// The user's preference p as the solvers use it: relative to its largest entry, so that a uniform
// preference is exactly 1 and changes no bit of a result.
#pragma once

#include <cmath>

#include "core/team.h"

namespace pama {

// relative[i] = p_i / max p, or 0 for an objective that is dropped: p_i = 0, or below `least` of
// the largest. Null stands for the uniform preference.
template <class Team>
PAMA_HD void relative_preference(Team team, int n, const double* preference, double least,
                                 double* relative) {
  double largest = 0;
  PAMA_LANES(team, i, 0, n) {
    largest = fmax(largest, preference ? preference[i] : 1);
  }
  largest = team.largest(largest);
  PAMA_LANES(team, i, 0, n) {
    const double p = preference ? preference[i] / largest : 1;
    relative[i] = p >= least ? p : 0;
  }
  team.sync();
}

}  // namespace pama
