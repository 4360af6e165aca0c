// Sums over a tile.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace pama {

// Σ term(j) for 0 <= j < count, the four quarters side by side: a vector addition takes four
// cycles, for which a single sum would wait.
template <class Term>
PAMA_INLINE double sum_of(int64_t count, const Term& term) {
  const int64_t quarter = count / 4;
  double a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t j = 0; j < quarter; ++j) {
    a += term(j);
    b += term(j + quarter);
    c += term(j + 2 * quarter);
    d += term(j + 3 * quarter);
  }
  for (int64_t j = 4 * quarter; j < count; ++j) a += term(j);
  return (a + b) + (c + d);
}

}  // namespace pama
