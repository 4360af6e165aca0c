// A stack of matrices or vectors as kernels see it: any floating dtype, any strides.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/team.h"
#include "core/view.h"

namespace pama {

struct Stack {
  static constexpr int kMaxLead = 6;

  void* data = nullptr;  // null: the argument was not given
  DType dtype = DType::kBool;
  int lead = 0;  // leading dimensions
  int64_t sizes[kMaxLead] = {}, strides[kMaxLead] = {};
  int64_t row = 0, column = 0;  // strides of the last two dimensions; of a vector only `column`

  // Where item b of the stack starts.
  PAMA_INLINE int64_t offset(int64_t b) const {
    int64_t at = 0;
    for (int d = lead - 1; d >= 0; --d) {
      at += b % sizes[d] * strides[d];
      b /= sizes[d];
    }
    return at;
  }
};

PAMA_INLINE double load(const Stack& stack, int64_t i) {
  return load(View{stack.data, stack.dtype, 0, 0, 0}, i);
}

// Vector b of a stack, which the lanes of a team share; nothing if there is none.
template <class Team>
PAMA_INLINE void load_vector(const Team& team, const Stack& vectors, int64_t b, int64_t n,
                             double* to) {
  if (!vectors.data) return;
  const int64_t start = vectors.offset(b);
  PAMA_LANES(team, i, 0, n) to[i] = load(vectors, start + i * vectors.column);
}

PAMA_INLINE void store(const Stack& stack, int64_t i, double value) {
  with_real(stack.dtype, [&](auto element) PAMA_INLINED {
    round_to(value, static_cast<decltype(element)*>(stack.data)[i]);
  });
}

// Element (i, j) of a matrix that is symmetric to rounding, made symmetric to the bit.
PAMA_INLINE double load_symmetric(const Stack& stack, int64_t start, int64_t i, int64_t j) {
  const double upper = load(stack, start + i * stack.row + j * stack.column);
  const double lower = load(stack, start + j * stack.row + i * stack.column);
  return upper == lower ? upper : 0.5 * upper + 0.5 * lower;
}

// Whether two mirror elements differ by no more than products of their rows computed in another
// order may: some tens of roundings of ‖g_i‖ ‖g_j‖. True if one of them is not a number.
PAMA_INLINE bool symmetric_to_rounding(double upper, double lower, double square_i, double square_j,
                                       double roundoff) {
  const double norms = sqrt(fabs(square_i)) * sqrt(fabs(square_j));
  const double size = fmax(norms, fmax(fabs(upper), fabs(lower)));
  return !(fabs(upper - lower) > 128 * roundoff * size);
}

// ‖g_i‖ of a square that may have been rounded: with what the sums of a large and a small gradient
// leave, and `least`, the least number of its dtype, which is lost below its range.
PAMA_INLINE double longest_norm(double square, double largest, double least) {
  return sqrt((square < 0 ? 0 : square) + 0x1p-20 * largest + least);
}

// Whether |<g_i, g_j>| <= ‖g_i‖ ‖g_j‖, to bfloat16's rounding. True of what is not finite.
PAMA_INLINE bool bounded_by_norms(double product, double norm_i, double norm_j) {
  return !(fabs(product) <= DBL_MAX && fabs(product) > (1 + 0x1p-6) * norm_i * norm_j);
}

}  // namespace pama
