// How CPU kernels walk tokens: in tiles of a sequence, dense numbers with the masked ones cut out,
// by loops that are compiled for several generations of processors.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/view.h"
#include "cpu/generations.h"

namespace pama {

using torch::stable::parallel_for;

// Tokens staged at a time: float64 tiles of a few arrays stay in the L1 cache.
inline constexpr int64_t kTile = 256;

// A tile's tokens of one array. They start on a cache line: a load or store of a vector that
// straddles two takes twice as long.
template <class Real>
struct alignas(64) TileTokens {
  Real at[kTile];
};

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

// out[j] = view[first + j] of real numbers; float32 only where that is exact.
void load(const View& view, int64_t first, int64_t count, double* out);
void load(const View& view, int64_t first, int64_t count, float* out);

// view[first + j] = x[j]: results are contiguous along tokens.
void store(const View& view, int64_t first, int64_t count, const double* x);
void store(const View& view, int64_t first, int64_t count, const float* x);

// The unmasked tokens of one tile, in order. What stands at a masked one is dropped unseen.
struct Selection {
  int64_t count, length;
  int64_t begin;  // where they start, if they are neighbours, as padding leaves them; else -1
  int32_t index[kTile];  // where each stands, if they are not

  bool all() const { return count == length; }
  bool neighbours() const { return begin >= 0; }
};

// Finds which tokens from `first` on count; `mask` may be absent.
void select(const View& mask, int64_t first, int64_t length, Selection& tile);

// out[0 .. tile.count): the unmasked tokens of a tile, dense.
template <class Out>
PAMA_INLINE void gather(const View& view, int64_t first, const Selection& tile, Out* out) {
  const bool dense = tile.neighbours();
  Out whole[kTile];
  load(view, first + (dense ? tile.begin * view.token : 0), dense ? tile.count : tile.length,
       dense ? out : whole);
  if (dense) return;
  for (int64_t j = 0; j < tile.count; ++j) out[j] = whole[tile.index[j]];
}

// The inverse of `gather`: masked positions of the result become 0.
template <class In>
PAMA_INLINE void scatter(const View& view, int64_t first, const Selection& tile, const In* x) {
  if (tile.all()) return store(view, first, tile.length, x);
  In whole[kTile];
  std::fill_n(whole, tile.length, In(0));
  if (tile.neighbours()) {
    std::copy_n(x, tile.count, whole + tile.begin);
  } else {
    for (int64_t j = 0; j < tile.count; ++j) whole[tile.index[j]] = x[j];
  }
  store(view, first, tile.length, whole);
}

template <class Real>
inline constexpr DType kDTypeOf = sizeof(Real) == 4 ? DType::kFloat : DType::kDouble;

// Where the unmasked tokens of a tile lie dense as they are; null if nowhere.
template <class Real>
PAMA_INLINE Real* in_place(const View& view, int64_t first, const Selection& tile) {
  const bool dense = tile.neighbours() && view.token == 1 && view.dtype == kDTypeOf<Real>;
  return dense ? static_cast<Real*>(view.data) + first + tile.begin : nullptr;
}

// What `scatter` leaves to do where the tokens were written `in_place`.
template <class Real>
PAMA_INLINE void clear_around(Real* there, const Selection& tile) {
  std::fill(there - tile.begin, there, Real(0));
  std::fill(there + tile.count, there - tile.begin + tile.length, Real(0));
}

// Calls body(first, last) on ranges of sequences, each range worth a thread's while.
template <class Body>
void for_sequences(const Sequences& sequences, const Body& body) {
  const int64_t tokens = sequences.offsets ? sequences.total / std::max<int64_t>(sequences.count, 1)
                                           : sequences.length;
  const int64_t cost = std::max<int64_t>(sequences.objectives * tokens, 1);
  parallel_for(0, sequences.count, std::max<int64_t>(8192 / cost, 1), body);
}

}  // namespace pama
