// G = F Fᵀ of a positive semidefinite matrix, by Cholesky with pivoting: F has as many columns as G
// has numerical rank, in falling order.
#pragma once

#include <cmath>

#include "core/algebra/vectors.h"

namespace pama {

// Returns the rank, and writes F column by column. A pivot up to `cut` of the first ends it.
// `left`: the diagonal, or −INFINITY for a row that is left out; what is not explained yet after.
template <class Team>
PAMA_HD int pivoted_cholesky(const Team& team, int n, const double* gram, double cut, double* left,
                             double* columns) {
  double first = 0;
  for (int rank = 0; rank < n; ++rank) {
    const Located largest = smallest_of(team, n, [&](int i) { return -left[i]; }, {0, n});
    const double pivot = -largest.value;
    if (rank == 0) first = pivot;
    if (!(pivot > cut * first)) return rank;
    const int p = largest.index;
    const double scale = 1 / sqrt(pivot);
    double* __restrict__ column = columns + rank * n;
    copy(team, n, gram + p * n, column);
    for (int k = 0; k < rank; ++k) {
      const double* other = columns + k * n;
      add_multiple(team, n, -other[p], other, column);
    }
    // Rows that have been pivots are explained wholly.
    each(team, n, [&](int i) { column[i] = left[i] == -INFINITY ? 0 : column[i] * scale; });
    team.sync();
    each(team, n, [&](int i) { left[i] = i == p ? -INFINITY : left[i] - column[i] * column[i]; });
    team.sync();
  }
  return n;
}

}  // namespace pama
