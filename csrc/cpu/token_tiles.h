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

template <class Real>
inline constexpr TileTokens<Real> kZeros{};

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
template <class Real>
void load(const View& view, int64_t first, int64_t count, Real* out);

// view[first + j] = x[j]: results are contiguous along tokens.
template <class Real>
void store(const View& view, int64_t first, int64_t count, const Real* x);

// A tile of a sequence, and its unmasked tokens in order. What stands at a masked one is dropped
// unseen.
struct Tile {
  const Sequences* sequences;
  int64_t sequence, origin;  // and where its first token stands in ragged arrays; else 0
  int64_t start, length = 0;
  int64_t count;  // of the unmasked tokens
  int64_t begin;  // where they start, if they are neighbours, as padding leaves them; else -1
  alignas(64) int32_t index[kTile];  // where each stands, if they are not

  // Of no tokens yet, in front of a sequence or at one of its tokens.
  Tile(const Sequences& all, int64_t b, int64_t at = 0)
      : sequences(&all), sequence(b), origin(all.begin(b)), start(at) {}

  // To the front of another sequence.
  void enter(int64_t b) {
    sequence = b;
    origin = sequences->begin(b);
    start = length = 0;
  }

  // Takes `tokens` from `from` on; `mask` may be absent.
  void select(const View& mask, int64_t from, int64_t tokens);

  // Takes those that follow, up to `most`. False where there are none.
  bool next(const View& mask, int64_t most = kTile) {
    const int64_t from = start + length, size = sequences->size(sequence);
    if (from >= size) return false;
    select(mask, from, std::min(most, size - from));
    return true;
  }

  // Where the tile starts in a view.
  PAMA_INLINE int64_t first(const View& view, int64_t objective = 0) const {
    return objective * view.objective + sequence * view.sequence + (origin + start) * view.token;
  }
  bool all() const { return count == length; }
  bool neighbours() const { return begin >= 0; }
};

// out[0 .. tile.count): the unmasked tokens of a tile, dense.
template <class Out>
PAMA_INLINE void gather(const View& view, int64_t objective, const Tile& tile, Out* out) {
  const bool dense = tile.neighbours();
  Out whole[kTile];
  load(view, tile.first(view, objective) + (dense ? tile.begin * view.token : 0),
       dense ? tile.count : tile.length, dense ? out : whole);
  if (dense) return;
  for (int64_t j = 0; j < tile.count; ++j) out[j] = whole[tile.index[j]];
}

template <class Real>
inline constexpr DType kDTypeOf = sizeof(Real) == 4 ? DType::kFloat : DType::kDouble;

// Where the unmasked tokens of a tile lie dense as they are; null if nowhere.
template <class Real>
PAMA_INLINE Real* in_place(const View& view, int64_t objective, const Tile& tile) {
  const bool dense = tile.neighbours() && view.token == 1 && view.dtype == kDTypeOf<Real>;
  return dense ? static_cast<Real*>(view.data) + tile.first(view, objective) + tile.begin : nullptr;
}

// The inverse of `gather`: masked positions of the result become 0.
template <class In>
PAMA_INLINE void scatter(const View& view, int64_t objective, const Tile& tile, const In* x) {
  const int64_t first = tile.first(view, objective);
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

// Where results of a tile's tokens are to be written: where they belong if they lie dense there, as
// those of every objective then do, or else in `scratch`.
template <class Real>
PAMA_INLINE Real* results_at(const View& view, int64_t objective, const Tile& tile, Real* scratch) {
  Real* there = in_place<Real>(view, objective, tile);
  return there ? there : scratch;
}

// As `scatter`, of results that are where `results_at` says, or elsewhere.
template <class Real>
PAMA_INLINE void finish(const View& view, int64_t objective, const Tile& tile, const Real* x) {
  Real* there = in_place<Real>(view, objective, tile);
  if (!there) return scatter(view, objective, tile, x);
  if (x != there) std::copy_n(x, tile.count, there);
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

// Calls body(b) on each sequence.
template <class Body>
void for_each_sequence(const Sequences& sequences, const Body& body) {
  for_sequences(sequences, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) body(b);
  });
}

}  // namespace pama
