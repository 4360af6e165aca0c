// Estimates of the KL divergence per token and their derivative. Tokens are independent, so a
// thread takes tiles of rows.
#include "core/kl.h"
#include "cpu/rows.h"

namespace pama {
namespace {

struct Kl {
  int64_t tiles, length;                 // tiles of a row, tokens of a row
  View logp, ref_logp, mask, grad, out;  // `grad` only for the derivative
};

template <Estimator kind>
PAMA_INLINE void kl_tile(const Kl& kl, int64_t b, int64_t t) {
  rows::Selection tile;
  alignas(64) double x[kTile], y[kTile];
  const auto first = [&](const View& view) { return b * view.sequence + t * view.token; };
  rows::select(kl.mask, first(kl.mask), std::min(kTile, kl.length - t), tile);
  rows::gather(kl.logp, first(kl.logp), tile, x);
  rows::gather(kl.ref_logp, first(kl.ref_logp), tile, y);
  for (int64_t j = 0; j < tile.count; ++j) x[j] -= y[j];
  if (kl.grad.data) {
    rows::gather(kl.grad, first(kl.grad), tile, y);
#pragma omp simd
    for (int64_t j = 0; j < tile.count; ++j) x[j] = y[j] * kl_slope<kind>(x[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < tile.count; ++j) x[j] = kl_estimate<kind>(x[j]);
  }
  rows::scatter(kl.out, first(kl.out), tile, x);
}

PAMA_CLONES void kl_tiles(const Kl& kl, Estimator kind, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / kl.tiles, t = i % kl.tiles * kTile;
    switch (kind) {
      case Estimator::kK1:
        kl_tile<Estimator::kK1>(kl, b, t);
        break;
      case Estimator::kK2:
        kl_tile<Estimator::kK2>(kl, b, t);
        break;
      default:
        kl_tile<Estimator::kK3>(kl, b, t);
        break;
    }
  }
}

Tensor run(const std::optional<Tensor>& grad, const Tensor& logp, const Tensor& ref_logp,
           const std::optional<Tensor>& mask, int64_t estimator) {
  check_kl(grad, logp, ref_logp, mask);
  check_mask(mask);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp, &ref_logp));
  const int64_t length = logp.size(logp.dim() - 1), batch = logp.dim() > 1 ? logp.size(0) : 1;
  const int64_t tiles = (length + kTile - 1) / kTile;
  const Kl kl{tiles,         length,        view_of(logp), view_of(ref_logp),
              view_of(mask), view_of(grad), view_of(out)};
  const int64_t grain = std::max<int64_t>(8192 / std::clamp<int64_t>(length, 1, kTile), 1);
  parallel_for(0, batch * tiles, grain, [&](int64_t begin, int64_t end) {
    kl_tiles(kl, static_cast<Estimator>(estimator), begin, end);
  });
  return out;
}

Tensor kl_divergence(const Tensor& logp, const Tensor& ref_logp, const std::optional<Tensor>& mask,
                     int64_t estimator) {
  return run(std::nullopt, logp, ref_logp, mask, estimator);
}

Tensor kl_divergence_backward(const Tensor& grad, const Tensor& logp, const Tensor& ref_logp,
                              const std::optional<Tensor>& mask, int64_t estimator) {
  return run(grad, logp, ref_logp, mask, estimator);
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("kl_divergence", TORCH_BOX(&kl_divergence));
  m.impl("kl_divergence_backward", TORCH_BOX(&kl_divergence_backward));
}

}  // namespace
}  // namespace pama
