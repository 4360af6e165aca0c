// The user's preference p as the solvers use it: relative to its largest entry, so that a uniform
// preference is exactly 1 and changes no bit of a result.
#pragma once

#include <cfloat>

#include "core/algebra/vectors.h"

namespace pama {

// relative[i] = p_i / max p, or 0 for an objective that is dropped: p_i = 0, or below `least` of
// the largest. Null stands for the uniform preference.
template <class Team>
PAMA_HD void relative_preference(Team team, int n, const double* preference, double least,
                                 double* relative) {
  const double largest = largest_of(team, n, [&](int i) { return preference ? preference[i] : 1; });
  each(team, n, [&](int i) {
    const double p = preference ? preference[i] / largest : 1;
    relative[i] = p >= least ? p : 0;
  });
  team.sync();
}

// The preference with sum 1.
template <class Team>
PAMA_HD void normalize_preference(Team team, int n, const double* wanted, double* preference) {
  relative_preference(team, n, wanted, DBL_MIN, preference);
  divide_by_sum(team, n, preference);
}

}  // namespace pama
