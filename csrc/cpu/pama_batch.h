// What the two ops of `pama_advantages` share on the CPU: a batch, read in tiles of I(A).
#pragma once

#include "core/pama.h"
#include "cpu/rows.h"

namespace pama {

struct Batch {
  Sequences sequences;
  View advantages, mask, log_ratio;
  ActivePart rule;
};

inline Batch batch_of(const Tensor& advantages, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& log_ratio, const std::optional<Tensor>& cu_seqlens,
               double low, double high, bool noon, bool ratio_weighted) {
  const bool ragged = cu_seqlens.has_value();
  return {sequences_of(advantages, cu_seqlens), view_of(advantages, ragged), view_of(mask, ragged),
          view_of(log_ratio, ragged), active_part_rule(low, high, noon, ratio_weighted)};
}

// One tile of one sequence: A after Noon and I(A) of each objective, masked tokens cut out.
struct Tile {
  rows::Selection tokens;
  std::vector<double> advantage, part;  // [n][kTile]
  double log_ratio[kTile];

  explicit Tile(int64_t n) : advantage(n * kTile), part(n * kTile) {}

  PAMA_INLINE void load(const Batch& batch, int64_t b, int64_t t, int64_t length) {
    const Sequences& s = batch.sequences;
    rows::select(batch.mask, s.first(batch.mask, 0, b) + t * batch.mask.token, length, tokens);
    const View& ratio = batch.log_ratio;
    if (ratio.data) rows::gather(ratio, s.first(ratio, 0, b) + t * ratio.token, tokens, log_ratio);
    for (int64_t n = 0; n < s.objectives; ++n) load_objective(batch, n, b, t);
  }

  // I(A) is A itself where no ratio is given, and then not written.
  const double* part_of(const Batch& batch, int64_t n) const {
    return (batch.log_ratio.data ? part : advantage).data() + n * kTile;
  }

  PAMA_INLINE void load_objective(const Batch& batch, int64_t n, int64_t b, int64_t t) {
    const View& from = batch.advantages;
    double* a = advantage.data() + n * kTile;
    rows::gather(from, batch.sequences.first(from, n, b) + t * from.token, tokens, a);
    if (batch.rule.noon) {
      for (int64_t j = 0; j < tokens.count; ++j) a[j] = a[j] <= 0 ? 0.0 : a[j];
    }
    if (!batch.log_ratio.data) return;
    double* p = part.data() + n * kTile;
    for (int64_t j = 0; j < tokens.count; ++j) p[j] = active_part(batch.rule, a[j], log_ratio[j]);
  }
};

}  // namespace pama
