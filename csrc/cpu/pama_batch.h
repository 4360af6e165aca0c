// What the two ops of `pama_advantages` share on the CPU: a batch, read in tiles of I(A).
#pragma once

#include <cmath>
#include <numeric>

#include "core/pama.h"
#include "cpu/rows.h"

namespace pama {

struct Batch {
  Sequences sequences;
  View advantages, mask, log_ratio;
  ActivePart rule;
};

inline Batch batch_of(const Tensor& advantages, const std::optional<Tensor>& mask,
                      const std::optional<Tensor>& log_ratio,
                      const std::optional<Tensor>& cu_seqlens, double low, double high, bool noon,
                      bool ratio_weighted) {
  const bool ragged = cu_seqlens.has_value();
  return {sequences_of(advantages, cu_seqlens), view_of(advantages, ragged), view_of(mask, ragged),
          view_of(log_ratio, ragged), active_part_rule(low, high, noon, ratio_weighted)};
}

// Whether float32 holds A and I(A) exactly.
inline bool float_holds(const Batch& batch) {
  const auto narrow = [](const View& view) { return !view.data || view.dtype != DType::kDouble; };
  return narrow(batch.advantages) && narrow(batch.log_ratio) && !batch.rule.ratio_weighted;
}

// One tile of one sequence: A after Noon and I(A) of some objectives, masked tokens cut out.
template <class Real>
struct Tile {
  rows::Selection tokens;
  std::vector<int64_t> objectives;     // those that are loaded
  std::vector<Real> advantage, parts;  // [objectives][kTile]
  const Real* part;                    // I(A): `parts`, or A itself where there is no ratio
  // Where each objective's A and I(A) are read: here, or in the tensor itself (see place_tile).
  std::vector<const Real*> advantage_at, part_at;
  Real log_ratio[kTile];

  Tile(const Batch& batch, std::vector<int64_t> which)
      : objectives(std::move(which)),
        advantage(objectives.size() * kTile),
        parts(batch.log_ratio.data ? objectives.size() * kTile : 0),
        part(batch.log_ratio.data ? parts.data() : advantage.data()),
        advantage_at(objectives.size()),
        part_at(objectives.size()) {}

  explicit Tile(const Batch& batch)
      : Tile(batch, std::vector<int64_t>(batch.sequences.objectives)) {
    std::iota(objectives.begin(), objectives.end(), 0);
  }

  int64_t size() const { return static_cast<int64_t>(objectives.size()); }
};

template <class Real>
PAMA_INLINE void load_noon(const Batch& batch, int64_t objective, int64_t b, int64_t t,
                           const rows::Selection& tokens, Real* __restrict a) {
  const View& from = batch.advantages;
  rows::gather(from, batch.sequences.first(from, objective, b) + t * from.token, tokens, a);
  if (!batch.rule.noon) return;
  for (int64_t j = 0; j < tokens.count; ++j) a[j] = a[j] <= 0 ? Real(0) : a[j];
}

// `active_part` of core/pama.h in a form that vectorises, the weighting by the ratio apart.
template <class Real>
PAMA_INLINE void active_parts(const ActivePart& rule, int64_t count, const Real* __restrict a,
                              const Real* __restrict log_ratio, Real* __restrict part) {
  // A float32 exceeds the float64 bound if it exceeds the largest float32 that does not.
  Real high = static_cast<Real>(rule.log_high), low = static_cast<Real>(rule.log_low);
  if (high > rule.log_high) high = std::nextafter(high, Real(-HUGE_VAL));
  if (low < rule.log_low) low = std::nextafter(low, Real(HUGE_VAL));
  for (int64_t j = 0; j < count; ++j) {
    const Real l = log_ratio[j];
    const Real live = l != l ? l : a[j];
    // Both bounds as one: the distance beyond whichever applies.
    const Real beyond = a[j] < 0 ? low - l : l - high;
    part[j] = beyond > 0 ? Real(0) : live;
  }
  if (!rule.ratio_weighted) return;
  for (int64_t j = 0; j < count; ++j) {
    part[j] = part[j] == 0 ? Real(0) : static_cast<Real>(part[j] * exponential(log_ratio[j]).value);
  }
}

// Fills the tile with the tokens from t on that it has selected.
template <class Real>
PAMA_INLINE void load_selected(const Batch& batch, int64_t b, int64_t t, Tile<Real>& tile) {
  const Sequences& s = batch.sequences;
  const View& ratio = batch.log_ratio;
  if (ratio.data) {
    rows::gather(ratio, s.first(ratio, 0, b) + t * ratio.token, tile.tokens, tile.log_ratio);
  }
  for (int64_t k = 0; k < tile.size(); ++k) {
    Real* a = tile.advantage.data() + k * kTile;
    load_noon(batch, tile.objectives[k], b, t, tile.tokens, a);
    if (!ratio.data) continue;
    active_parts(batch.rule, tile.tokens.count, a, tile.log_ratio, tile.parts.data() + k * kTile);
  }
}

template <class Real>
PAMA_INLINE void load_tile(const Batch& batch, int64_t b, int64_t t, int64_t length,
                           Tile<Real>& tile) {
  const View& mask = batch.mask;
  rows::select(mask, batch.sequences.first(mask, 0, b) + t * mask.token, length, tile.tokens);
  load_selected(batch, b, t, tile);
}

template <class Real>
inline constexpr DType kDTypeOf = sizeof(Real) == 4 ? DType::kFloat : DType::kDouble;

// As load_tile, but reads in the tensor itself where no token is masked and no ratio applies; Noon
// is then left to the reader.
template <class Real>
PAMA_INLINE void place_tile(const Batch& batch, int64_t b, int64_t t, int64_t length,
                            Tile<Real>& tile) {
  const Sequences& s = batch.sequences;
  const View &a = batch.advantages, &mask = batch.mask;
  rows::select(mask, s.first(mask, 0, b) + t * mask.token, length, tile.tokens);
  const bool here =
      tile.tokens.all() && !batch.log_ratio.data && a.dtype == kDTypeOf<Real> && a.token == 1;
  if (!here) load_selected(batch, b, t, tile);
  for (int64_t k = 0; k < tile.size(); ++k) {
    tile.advantage_at[k] =
        here ? static_cast<const Real*>(a.data) + s.first(a, tile.objectives[k], b) + t
             : tile.advantage.data() + k * kTile;
    tile.part_at[k] = here ? tile.advantage_at[k] : tile.part + k * kTile;
  }
}

// A as it was placed, after Noon, as float64.
template <bool kNoon, class Real>
PAMA_INLINE double after_noon(Real a) {
  const Real kept = kNoon && a < 0 ? Real(0) : a;  // one instruction, which keeps NaN
  return static_cast<double>(kept);
}

}  // namespace pama
