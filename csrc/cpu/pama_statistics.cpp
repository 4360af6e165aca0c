// What PAMA needs to know of the whole batch before it can choose weights: which objectives have a
// nonzero I(A), and for `batch` and `gram` the sums that their problem is made of. A thread takes
// whole sequences; their partial sums are added in order. For `token` and `sequence` the batch is
// read only until every objective has shown itself active, as a rule one tile.
#include "cpu/pama_batch.h"

namespace pama {
namespace {

// Whether each objective has a nonzero part; a sequence is read only until all have.
PAMA_CLONES bool find_active(const Batch& batch, int64_t b, Tile<double>& tile, double* active) {
  const int64_t size = batch.sequences.size(b), n = batch.sequences.objectives;
  for (int64_t t = 0; t < size; t += kTile) {
    load_tile(batch, b, t, std::min(kTile, size - t), tile);
    bool all = true;
    for (int64_t i = 0; i < n; ++i) {
      const double* part = tile.part + i * kTile;
      for (int64_t j = 0; active[i] == 0 && j < tile.tokens.count; ++j) active[i] = part[j] != 0;
      all &= active[i] != 0;
    }
    if (all) return true;
  }
  return false;
}

// gram[i][k] += <part_i, part_k> for k >= i, in blocks of 2 x 2, so that each load serves two
// products.
PAMA_INLINE void add_gram(const Tile<double>& tile, int64_t n, double* gram) {
  const int64_t count = tile.tokens.count;
  for (int64_t i = 0; i < n; i += 2) {
    for (int64_t k = i; k < n; k += 2) {
      const int64_t i1 = std::min(i + 1, n - 1), k1 = std::min(k + 1, n - 1);
      const double *x0 = tile.part + i * kTile, *x1 = tile.part + i1 * kTile;
      const double *y0 = tile.part + k * kTile, *y1 = tile.part + k1 * kTile;
      double s00 = 0, s01 = 0, s10 = 0, s11 = 0;
#pragma omp simd reduction(+ : s00, s01, s10, s11)
      for (int64_t j = 0; j < count; ++j) {
        s00 += x0[j] * y0[j];
        s01 += x0[j] * y1[j];
        s10 += x1[j] * y0[j];
        s11 += x1[j] * y1[j];
      }
      gram[i * n + k] += s00;
      if (k1 > k) gram[i * n + k1] += s01;
      if (i1 > i && k > i) gram[i1 * n + k] += s10;
      if (i1 > i && k1 > k) gram[i1 * n + k1] += s11;
    }
  }
}

// Adds one sequence: flags, and then the count of tokens and sums, or the Gram matrix's upper half.
PAMA_CLONES void add_sequence(const Batch& batch, Reduction reduction, int64_t b,
                              Tile<double>& tile, double* statistics) {
  const int64_t size = batch.sequences.size(b), n = batch.sequences.objectives;
  double* rest = statistics + n;
  for (int64_t t = 0; t < size; t += kTile) {
    load_tile(batch, b, t, std::min(kTile, size - t), tile);
    const int64_t count = tile.tokens.count;
    for (int64_t i = 0; i < n; ++i) {
      const double* x = tile.part + i * kTile;
      int nonzero = 0;
      double sum = 0;
      if (statistics[i] == 0) {
        for (int64_t j = 0; j < count; ++j) nonzero |= x[j] != 0;
        statistics[i] = nonzero;
      }
      if (reduction == Reduction::kGram) continue;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) sum += x[j];
      rest[1 + i] += sum;
    }
    if (reduction == Reduction::kGram) {
      add_gram(tile, n, rest);
    } else {
      rest[0] += static_cast<double>(count);
    }
  }
}

Tensor pama_statistics(const Tensor& advantages, const std::optional<Tensor>& mask,
                       const std::optional<Tensor>& log_ratio,
                       const std::optional<Tensor>& cu_seqlens, int64_t reduction_code, double low,
                       double high, bool noon, bool ratio_weighted) {
  const auto reduction = static_cast<Reduction>(reduction_code);
  const Batch batch =
      batch_of(advantages, mask, log_ratio, cu_seqlens, low, high, noon, ratio_weighted);
  const Sequences& s = batch.sequences;
  check_tokens(mask, cu_seqlens, s);
  const int64_t n = s.objectives, size = statistics_size(n, reduction);
  Tensor result = allocate(advantages, {size}, ScalarType::Double);
  double* total = static_cast<double*>(result.mutable_data_ptr());
  std::fill_n(total, size, 0.0);
  if (reduction == Reduction::kToken || reduction == Reduction::kSequence) {
    Tile<double> tile(batch);
    for (int64_t b = 0; b < s.count && !find_active(batch, b, tile, total); ++b) {
    }
    return result;
  }
  std::vector<double> partial(s.count * size, 0.0);
  for_sequences(s, [&](int64_t first, int64_t end) {
    Tile<double> tile(batch);
    for (int64_t b = first; b < end; ++b) {
      add_sequence(batch, reduction, b, tile, partial.data() + b * size);
    }
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
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("pama_statistics", TORCH_BOX(&pama_statistics));
}

}  // namespace
}  // namespace pama
