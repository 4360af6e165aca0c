// Gram-Schmidt, twice, which is enough (Kahan).
#pragma once

#include "core/algebra/vectors.h"

namespace pama {

// Removes from x its part along the `count` orthonormal vectors that lie one after another in
// `basis`.
template <class Team>
PAMA_HD void orthogonalise(const Team& team, int n, const double* basis, int count, double* x) {
  for (int round = 0; round < 2; ++round) {
    for (int k = 0; k < count; ++k) {
      const double* other = basis + k * n;
      add_multiple(team, n, -dot(team, n, x, other), other, x);
    }
  }
  team.sync();
}

}  // namespace pama
