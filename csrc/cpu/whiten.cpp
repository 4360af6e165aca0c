// Whitening: the moments of each objective, then the affine map they give. Moments of a tile are
// taken around its own mean while the tile is in the cache, those of tiles and then of sequences
// are merged in order, so that bits do not depend on which thread took which sequence.
#include "core/moments.h"
#include "cpu/rows.h"
#include "cpu/sums.h"

namespace pama {
namespace {

struct Whiten {
  Sequences sequences;
  View x, mask, out;
};

PAMA_INLINE Moments tile_moments(const double* x, int64_t count) {
  if (count == 0) return {};
  const double first = x[0], size = static_cast<double>(count);
  const double mean = first + sum_of(count, [&](int64_t j) { return x[j] - first; }) / size;
  const double rest = sum_of(count, [&](int64_t j) { return x[j] - mean; });
  const double squares = sum_of(count, [&](int64_t j) { return (x[j] - mean) * (x[j] - mean); });
  return moments_about(mean, size, rest, squares);
}

// moments[n]: those of sequence b for each objective.
PAMA_CLONES void sequence_moments(const Whiten& whiten, int64_t b, Moments* moments) {
  const Sequences& s = whiten.sequences;
  const View &x = whiten.x, &mask = whiten.mask;
  rows::Selection tile;
  alignas(64) double tokens[kTile];
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    rows::select(mask, s.first(mask, 0, b) + t * mask.token, std::min(kTile, size - t), tile);
    for (int64_t n = 0; n < s.objectives; ++n) {
      rows::gather(x, s.first(x, n, b) + t * x.token, tile, tokens);
      moments[n] = moments_merge(moments[n], tile_moments(tokens, tile.count));
    }
  }
}

struct Affine {
  double mean, scale;
};

PAMA_CLONES void whiten_sequence(const Whiten& whiten, int64_t b, const Affine* affine) {
  const Sequences& s = whiten.sequences;
  const View &x = whiten.x, &mask = whiten.mask, &out = whiten.out;
  rows::Selection tile;
  alignas(64) double tokens[kTile];
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    rows::select(mask, s.first(mask, 0, b) + t * mask.token, std::min(kTile, size - t), tile);
    for (int64_t n = 0; n < s.objectives; ++n) {
      const auto [mean, scale] = affine[n];
      rows::gather(x, s.first(x, n, b) + t * x.token, tile, tokens);
      for (int64_t j = 0; j < tile.count; ++j) tokens[j] = (tokens[j] - mean) * scale;
      rows::scatter(out, s.first(out, n, b) + t, tile, tokens);
    }
  }
}

Tensor whiten_moments(const Tensor& x, const std::optional<Tensor>& mask,
                      const std::optional<Tensor>& cu_seqlens) {
  check_tokens("x", x, mask, cu_seqlens);
  const bool ragged = cu_seqlens.has_value();
  const Sequences s = sequences_of(x, cu_seqlens);
  check_token_values(mask, cu_seqlens, s);
  const Whiten whiten{s, view_of(x, ragged), view_of(mask, ragged), {}};
  std::vector<Moments> partials(s.count * s.objectives);
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) {
      sequence_moments(whiten, b, partials.data() + b * s.objectives);
    }
  });
  Tensor out = allocate(x, {s.objectives, 3}, ScalarType::Double);
  double* moments = static_cast<double*>(out.mutable_data_ptr());
  for (int64_t n = 0; n < s.objectives; ++n) {
    Moments total{};
    for (int64_t b = 0; b < s.count; ++b) {
      total = moments_merge(total, partials[b * s.objectives + n]);
    }
    moments[3 * n] = total.count;
    moments[3 * n + 1] = total.mean;
    moments[3 * n + 2] = total.squares;
  }
  return out;
}

Tensor whiten_apply(const Tensor& x, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& cu_seqlens, const Tensor& moments, double eps) {
  check_tokens("x", x, mask, cu_seqlens);
  check_moments(moments, x);
  const bool ragged = cu_seqlens.has_value();
  const Sequences s = sequences_of(x, cu_seqlens);
  check_token_values(mask, cu_seqlens, s);
  const View of = view_of(moments);  // [rank, objective, 3]
  std::vector<Affine> affine(s.objectives);
  for (int64_t n = 0; n < s.objectives; ++n) {
    Moments total{};
    for (int64_t rank = 0; rank < moments.size(0); ++rank) {
      const int64_t at = rank * of.objective + n * of.sequence;
      total = moments_merge(total,
                            {load(of, at), load(of, at + of.token), load(of, at + 2 * of.token)});
    }
    affine[n] = {total.mean, moments_scale(total, eps)};
  }
  Tensor out = allocate(x, x.sizes(), result_dtype(&x));
  const Whiten whiten{s, view_of(x, ragged), view_of(mask, ragged), view_of(out, ragged)};
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) whiten_sequence(whiten, b, affine.data());
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("whiten_moments", TORCH_BOX(&whiten_moments));
  m.impl("whiten_apply", TORCH_BOX(&whiten_apply));
}

}  // namespace
}  // namespace pama
