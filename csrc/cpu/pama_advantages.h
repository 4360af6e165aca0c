// What the two ops of `pama_advantages` share on the CPU: a batch, read in tiles of I(A).
#pragma once

#include <cmath>
#include <numeric>
#include <type_traits>

#include "cpu/checks.h"
#include "cpu/token_tiles.h"
#include "tensors/pama_advantages.h"

namespace pama {

inline void check_batch(const PamaInputs& batch) {
  const Sequences& s = batch.sequences;
  check_tokens(s, batch.mask);
  if (!batch.preference.data) return;
  if (!batch.by_sequence) {
    return check_preference([&](int64_t i) { return preferred(batch.preference, i, 0); },
                            s.objectives);
  }
  for (int64_t b = 0; b < s.count; ++b) {  // some may have no preference at all
    for (int64_t i = 0; i < s.objectives; ++i) {
      const double p = preferred(batch.preference, i, b);
      if (!(p >= 0 && std::isfinite(p))) {
        refuse("preference must be nonnegative and finite, got values that are not");
      }
    }
  }
}

// Calls body with a number of the type whose arithmetic holds A and I(A) exactly.
template <class Body>
void with_reals(const PamaInputs& batch, const Body& body) {
  const auto narrow = [](const View& view) { return !view.data || view.dtype != DType::kDouble; };
  const bool floats = narrow(batch.advantages) && narrow(batch.log_ratio);
  floats && !batch.rule.ratio_weighted ? body(0.0f) : body(0.0);
}

// A tile with A and I(A) of some objectives, masked tokens cut out.
template <class Real>
struct PamaTile : Tile {
  const PamaInputs& batch;
  std::vector<int64_t> objectives;                 // those that are placed
  std::vector<TileTokens<Real>> advantage, parts;  // scratch
  std::vector<const Real*> advantage_at;           // A before Noon
  std::vector<const Real*> part_at;  // I(A), by `next_parts`; before Noon without a ratio
  TileTokens<Real> log_ratio;
  TileTokens<Real> upper, lower;  // what the ratio makes of A >= 0 and of A < 0 (see `judge`)
  Real floor;                     // the least A that Noon leaves

  PamaTile(const PamaInputs& batch, std::vector<int64_t> which)
      : Tile(batch.sequences, 0),
        batch(batch),
        objectives(std::move(which)),
        advantage(objectives.size()),
        parts(objectives.size()),
        advantage_at(objectives.size()),
        part_at(objectives.size()),
        floor(batch.rule.noon ? 0 : -HUGE_VAL) {}

  explicit PamaTile(const PamaInputs& batch)
      : PamaTile(batch, std::vector<int64_t>(batch.sequences.objectives)) {
    std::iota(objectives.begin(), objectives.end(), 0);
  }

  int64_t size() const { return static_cast<int64_t>(objectives.size()); }
  // Whether parts are weighted by the ratio, which takes float64.
  bool weighted() const { return std::is_same_v<Real, double> && batch.rule.ratio_weighted; }
};

// A after Noon; NaN stays.
template <class Real>
PAMA_INLINE Real after_noon(Real a, Real floor) {
  return a < floor ? floor : a;
}

// --- the active part -----------------------------------------------------------------------------

// `active_part` of core/tokens/active_part.h in a form that vectorises and costs each further
// objective little: what depends on the ratio alone is found once a tile, in `upper` and `lower`: 0
// where the clip holds the surrogate flat, NaN where the ratio is NaN, and kLive where I(A) is A.
inline constexpr int kLive = 1;

template <class Real>
PAMA_INLINE void judge(PamaTile<Real>& tile, const Real* log_ratio) {
  const ActivePart& rule = tile.batch.rule;
  // A float32 exceeds the float64 bound if it exceeds the largest float32 that does not.
  Real high = static_cast<Real>(rule.log_high), low = static_cast<Real>(rule.log_low);
  if (high > rule.log_high) high = std::nextafter(high, Real(-HUGE_VAL));
  if (low < rule.log_low) low = std::nextafter(low, Real(HUGE_VAL));
#pragma omp simd
  for (int64_t j = 0; j < tile.count; ++j) {
    const Real l = log_ratio[j], live = l == l ? Real(kLive) : l;
    tile.upper.at[j] = l > high ? Real(0) : live;
    tile.lower.at[j] = l < low ? Real(0) : live;
  }
}

// I(A) of an A after Noon, the weighting by the ratio apart.
template <class Real>
PAMA_INLINE Real part_of(const PamaTile<Real>& tile, int64_t j, Real a) {
  const Real verdict = a < 0 ? tile.lower.at[j] : tile.upper.at[j];
  return verdict == kLive ? a : verdict;
}

// --- filling a tile ------------------------------------------------------------------------------

// Finds where A of the tokens that count are, before Noon.
template <class Real>
PAMA_INLINE void place_advantages(PamaTile<Real>& tile) {
  const View& a = tile.batch.advantages;
  // Asked once: what the loop of the copies needs is set up in front of it.
  if (in_place<Real>(a, 0, tile)) {
    for (int64_t k = 0; k < tile.size(); ++k) {
      tile.advantage_at[k] = in_place<Real>(a, tile.objectives[k], tile);
    }
    return;
  }
  for (int64_t k = 0; k < tile.size(); ++k) {
    gather(a, tile.objectives[k], tile, tile.advantage[k].at);
    tile.advantage_at[k] = tile.advantage[k].at;
  }
}

// Judges by the ratio. Returns log u, null where there is none.
template <class Real>
PAMA_INLINE const Real* place_ratio(PamaTile<Real>& tile) {
  const View& ratio = tile.batch.log_ratio;
  if (!ratio.data) return nullptr;
  const Real* log_ratio = in_place<Real>(ratio, 0, tile);
  if (!log_ratio) {
    gather(ratio, 0, tile, tile.log_ratio.at);
    log_ratio = tile.log_ratio.at;
  }
  judge(tile, log_ratio);
  return log_ratio;
}

template <class Real>
PAMA_INLINE void weight_parts(const Real* log_ratio, int64_t count, Real* part) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    part[j] = part[j] == 0 ? Real(0) : static_cast<Real>(part[j] * ratio_weight(log_ratio[j]));
  }
}

// The tokens that are placed at a time: all of a sequence where no scratch is needed.
template <class Real>
PAMA_INLINE int64_t tile_length(const PamaTile<Real>& tile) {
  const PamaInputs& batch = tile.batch;
  const View& a = batch.advantages;
  const bool scratch = batch.by_sequence || batch.mask.data || batch.log_ratio.data ||
                       a.token != 1 || a.dtype != kDTypeOf<Real>;
  return scratch ? kTile : INT64_MAX;
}

// Goes on to the next tile of up to `most` tokens, and finds A and I(A) there; Noon is left to the
// reader where there is no ratio. False where there is no next one.
template <class Real>
PAMA_INLINE bool next_parts(PamaTile<Real>& tile, int64_t most) {
  if (!tile.next(tile.batch.mask, most)) return false;
  place_advantages(tile);
  const Real* log_ratio = place_ratio(tile);
  const int64_t count = tile.count;
  for (int64_t k = 0; k < tile.size(); ++k) {
    const Real* a = tile.advantage_at[k];
    tile.part_at[k] = a;
    if (!log_ratio) continue;
    Real* part = tile.parts[k].at;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) part[j] = part_of(tile, j, after_noon(a[j], tile.floor));
    if (tile.weighted()) weight_parts(log_ratio, count, part);
    tile.part_at[k] = part;
  }
  return true;
}

// Takes the parts of objectives that their preference drops in this sequence for zeros.
template <class Real>
PAMA_INLINE void drop_parts(PamaTile<Real>& tile) {
  const PamaInputs& batch = tile.batch;
  if (!batch.by_sequence) return;
  for (int64_t k = 0; k < tile.size(); ++k) {
    const double preference = preferred(batch.preference, tile.objectives[k], tile.sequence);
    if (!(preference > 0)) tile.part_at[k] = kZeros<Real>.at;
  }
}

// sums[0] += the tokens of the tile, sums[1 + k] += Σ I(A) of its objective k.
template <class Real>
PAMA_INLINE void add_sums(const PamaTile<Real>& tile, double* sums) {
  sums[0] += static_cast<double>(tile.count);
  for (int64_t k = 0; k < tile.size(); ++k) {
    const Real *part = tile.part_at[k], floor = tile.floor;
    sums[1 + k] += sum_of(
        tile.count, [=](int64_t j) { return static_cast<double>(after_noon(part[j], floor)); });
  }
}

}  // namespace pama
