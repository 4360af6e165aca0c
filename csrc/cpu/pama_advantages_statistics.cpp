// What PAMA needs to know of the whole batch before it can choose weights: which objectives have a
// nonzero I(A), and for `batch` and `gram` the sums that their problem is made of. A thread takes
// whole sequences; their partial sums are added in order. For `token` and `sequence` the batch is
// read only until every objective has shown itself active, as a rule one tile.
#include "cpu/pama_advantages.h"

namespace pama {
namespace {

template <class Real>
PAMA_INLINE bool any_nonzero(const PamaTile<Real>& tile, int64_t k) {
  const Real *part = tile.part_at[k], floor = tile.floor;
  int found = 0;
  for (int64_t j = 0; j < tile.count; ++j) found |= after_noon(part[j], floor) != 0;
  return found != 0;
}

// gram[i][k] += <part_i, part_k> for four rows from i and four from k: each number that is read and
// widened serves four products, and the sums stay in registers.
template <bool kDiagonal, class Real>
PAMA_INLINE void add_tile(const PamaTile<Real>& tile, int64_t i, int64_t k, int64_t n,
                          double* gram) {
  const auto row = [&](int64_t r) { return tile.part_at[std::min(r, n - 1)]; };
  const auto widened = [floor = tile.floor](Real x) -> double { return after_noon(x, floor); };
  const Real *x0 = row(i), *x1 = row(i + 1), *x2 = row(i + 2), *x3 = row(i + 3);
  const Real *y0 = row(k), *y1 = row(k + 1), *y2 = row(k + 2), *y3 = row(k + 3);
  double s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  double s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
#pragma omp simd reduction(+ : s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, \
                               s31, s32, s33)
  for (int64_t j = 0; j < tile.count; ++j) {
    const double a0 = widened(x0[j]), a1 = widened(x1[j]);
    const double a2 = widened(x2[j]), a3 = widened(x3[j]);
    const double b0 = kDiagonal ? a0 : widened(y0[j]);
    const double b1 = kDiagonal ? a1 : widened(y1[j]);
    const double b2 = kDiagonal ? a2 : widened(y2[j]);
    const double b3 = kDiagonal ? a3 : widened(y3[j]);
    s00 += a0 * b0, s01 += a0 * b1, s02 += a0 * b2, s03 += a0 * b3;
    s11 += a1 * b1, s12 += a1 * b2, s13 += a1 * b3;
    s22 += a2 * b2, s23 += a2 * b3, s33 += a3 * b3;
    if (kDiagonal) continue;
    s10 += a1 * b0, s20 += a2 * b0, s30 += a3 * b0;
    s21 += a2 * b1, s31 += a3 * b1, s32 += a3 * b2;
  }
  const double sums[4][4] = {
      {s00, s01, s02, s03}, {s10, s11, s12, s13}, {s20, s21, s22, s23}, {s30, s31, s32, s33}};
  for (int64_t r = 0; r < std::min<int64_t>(4, n - i); ++r) {
    for (int64_t c = kDiagonal ? r : 0; c < std::min<int64_t>(4, n - k); ++c) {
      gram[(i + r) * n + k + c] += sums[r][c];
    }
  }
}

template <class Real>
PAMA_INLINE void add_gram(const PamaTile<Real>& tile, int64_t n, double* gram) {
  for (int64_t i = 0; i < n; i += 4) {
    add_tile<true>(tile, i, i, n, gram);
    for (int64_t k = i + 4; k < n; k += 4) add_tile<false>(tile, i, k, n, gram);
  }
}

template <class Real>
PAMA_INLINE void count_own_tokens(const PamaTile<Real>& tile, double* own) {
  const auto tokens = static_cast<double>(tile.count);
  for (int64_t i = 0; i < tile.size(); ++i) {
    if (preferred(tile.batch.preference, i, tile.sequence) > 0) own[i] += tokens;
  }
}

// Adds one sequence: flags, and then the count of tokens and sums, or the Gram matrix's upper half;
// with a preference by sequence also each objective's own tokens. Where flags are all that is asked
// for, it is read only until all are set. Returns whether they are.
template <class Real>
PAMA_CLONES bool add(int64_t b, PamaTile<Real>& tile, double* statistics) {
  const PamaInputs& batch = tile.batch;
  const int64_t n = tile.size(), size = statistics_size(n, batch.reduction);
  const bool only_flags = size == n, gram = batch.reduction == Reduction::kGram;
  const int64_t most = only_flags ? kTile : tile_length(tile);
  double *rest = statistics + n, *own = statistics + size;
  bool all = false;
  tile.enter(b);
  while (!(only_flags && all) && next_parts(tile, most)) {
    drop_parts(tile);
    if (gram) {
      add_gram(tile, n, rest);
    } else if (!only_flags) {
      add_sums(tile, rest);
    }
    if (batch.by_sequence && !only_flags) count_own_tokens(tile, own);
    all = true;
    for (int64_t i = 0; i < n; ++i) {
      // A sum that is not 0 says so already; one that is may be of terms that cancel or underflow.
      const double sum = only_flags ? 0 : gram ? rest[i * n + i] : rest[1 + i];
      if (statistics[i] == 0) statistics[i] = sum != 0 || any_nonzero(tile, i);
      all &= statistics[i] != 0;
    }
  }
  return all;
}

void run(const Tensor&, const PamaInputs& batch) {
  check_batch(batch);  // before ranks wait for each other
  const Sequences& s = batch.sequences;
  const Reduction reduction = batch.reduction;
  const int64_t n = s.objectives, size = gathered_size(n, reduction, batch.by_sequence);
  double* total = batch.statistics;
  std::fill_n(total, size, 0.0);
  if (size == n) {
    with_reals(batch, [&](auto real) {
      PamaTile<decltype(real)> tile(batch);
      for (int64_t b = 0; b < s.count && !add(b, tile, total); ++b) {
      }
    });
    return;
  }
  std::vector<double> partial(s.count * size, 0.0);
  with_reals(batch, [&](auto real) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      PamaTile<decltype(real)> tile(batch);
      for (int64_t b = first; b < end; ++b) add(b, tile, partial.data() + b * size);
    });
  });
  for (int64_t b = 0; b < s.count; ++b) {
    for (int64_t i = 0; i < size; ++i) total[i] += partial[b * size + i];
  }
  for (int64_t i = 0; i < n; ++i) total[i] = total[i] != 0;
  if (reduction == Reduction::kGram) {
    double* gram = total + n;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < i; ++k) gram[i * n + k] = gram[k * n + i];
    }
  }
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("pama_statistics", TORCH_BOX(&pama_statistics<run>));
}

}  // namespace
}  // namespace pama
