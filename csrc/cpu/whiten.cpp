// Whitening: the moments of each objective, then the affine map they give. Moments of a tile are
// taken around its own mean while the tile is in the cache, those of tiles and then of sequences
// are merged in order, so that bits do not depend on which thread took which sequence.
#include "tensors/whiten.h"

#include "core/tokens/moments.h"
#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

PAMA_INLINE Moments tile_moments(const double* x, int64_t count) {
  if (count == 0) return {};
  const double first = x[0], size = static_cast<double>(count);
  const double mean = first + sum_of(count, [&](int64_t j) { return x[j] - first; }) / size;
  const double rest = sum_of(count, [&](int64_t j) { return x[j] - mean; });
  const double squares = sum_of(count, [&](int64_t j) { return (x[j] - mean) * (x[j] - mean); });
  return moments_about(mean, size, rest, squares);
}

// moments[n]: those of sequence b for each objective, in units of `unit`.
PAMA_CLONES void sequence_moments(const Whiten& whiten, int64_t b, double unit, Moments* moments) {
  const Sequences& s = whiten.sequences;
  Tile tile(s, b);
  alignas(64) double tokens[kTile];
  while (tile.next(whiten.mask)) {
    for (int64_t n = 0; n < s.objectives; ++n) {
      gather(whiten.x, n, tile, tokens);
      if (unit != 1) {
        for (int64_t j = 0; j < tile.count; ++j) tokens[j] *= unit;
      }
      moments[n] = moments_merge(moments[n], tile_moments(tokens, tile.count));
    }
  }
}

// The moments of each objective, in units of `unit`.
std::vector<Moments> all_moments(const Whiten& whiten, double unit) {
  const Sequences& s = whiten.sequences;
  std::vector<Moments> partials(s.count * s.objectives), totals(s.objectives);
  for_each_sequence(
      s, [&](int64_t b) { sequence_moments(whiten, b, unit, partials.data() + b * s.objectives); });
  for (int64_t n = 0; n < s.objectives; ++n) {
    for (int64_t b = 0; b < s.count; ++b) {
      totals[n] = moments_merge(totals[n], partials[b * s.objectives + n]);
    }
  }
  return totals;
}

PAMA_CLONES void whiten_sequence(const Whiten& whiten, int64_t b, const Whitening* whitenings) {
  const Sequences& s = whiten.sequences;
  Tile tile(s, b);
  alignas(64) double tokens[kTile];
  while (tile.next(whiten.mask)) {
    for (int64_t n = 0; n < s.objectives; ++n) {
      const Whitening map = whitenings[n];
      gather(whiten.x, n, tile, tokens);
      for (int64_t j = 0; j < tile.count; ++j) tokens[j] = map(tokens[j]);
      scatter(whiten.out, n, tile, tokens);
    }
  }
}

void find_moments(const Tensor&, const Whiten& whiten) {
  check_tokens(whiten.sequences, whiten.mask);
  const std::vector<Moments> totals = all_moments(whiten, 1);
  std::vector<Moments> small;
  if (!std::all_of(totals.begin(), totals.end(), moments_in_range)) {
    small = all_moments(whiten, kSmallUnit);
  }
  for (int64_t n = 0; n < whiten.sequences.objectives; ++n) {
    const bool good = moments_in_range(totals[n]);
    const MomentsRow row = good ? moments_row(totals[n], 1) : moments_row(small[n], kSmallUnit);
    store_moments(whiten.moments, n, row);
  }
}

void apply(const Tensor&, const Whiten& whiten) {
  const Sequences& s = whiten.sequences;
  check_tokens(s, whiten.mask);
  std::vector<Whitening> whitenings(s.objectives);
  for (int64_t n = 0; n < s.objectives; ++n) {
    const auto row = [&](int64_t rank) { return moments_row_at(whiten.moments, rank, n); };
    double largest = 0;
    for (int64_t r = 0; r < whiten.ranks; ++r) {
      largest = std::fmax(largest, moments_largest(row(r)));
    }
    const double unit = moments_unit(largest);
    Moments total{};
    for (int64_t r = 0; r < whiten.ranks; ++r) {
      total = moments_merge(total, moments_of(row(r), unit));
    }
    whitenings[n] = whitening(total, unit, whiten.eps);
  }
  for_each_sequence(s, [&](int64_t b) { whiten_sequence(whiten, b, whitenings.data()); });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("whiten_moments", TORCH_BOX(&whiten_moments<find_moments>));
  m.impl("whiten_apply", TORCH_BOX(&whiten_apply<apply>));
}

}  // namespace
}  // namespace pama
