// Estimates of the KL divergence per token and their derivative. Tokens are independent, so a
// thread takes tiles of rows.
#include "tensors/kl_divergence.h"

#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

template <Estimator kind>
PAMA_INLINE void kl_tile(const Kl& kl, int64_t b, int64_t t) {
  Tile tile(kl.sequences, b, t);
  alignas(64) double x[kTile], y[kTile];
  tile.next(kl.mask);
  gather(kl.logp, 0, tile, x);
  gather(kl.ref_logp, 0, tile, y);
  for (int64_t j = 0; j < tile.count; ++j) x[j] -= y[j];
  if (kl.grad.data) {
    gather(kl.grad, 0, tile, y);
#pragma omp simd
    for (int64_t j = 0; j < tile.count; ++j) x[j] = y[j] * kl_slope<kind>(x[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < tile.count; ++j) x[j] = kl_estimate<kind>(x[j]);
  }
  scatter(kl.out, 0, tile, x);
}

// Tiles of rows, of which each has `tiles`.
PAMA_CLONES void kl_tiles(const Kl& kl, int64_t tiles, int64_t begin, int64_t end) {
  with_estimator(kl.estimator, [&](auto kind) PAMA_INLINED {
    for (int64_t i = begin; i < end; ++i) kl_tile<kind()>(kl, i / tiles, i % tiles * kTile);
  });
}

void run(const Tensor&, const Kl& kl) {
  const Sequences& s = kl.sequences;
  check_tokens(s, kl.mask);
  const int64_t tiles = (s.length + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(8192 / std::clamp<int64_t>(s.length, 1, kTile), 1);
  parallel_for(0, s.count * tiles, grain,
               [&](int64_t begin, int64_t end) { kl_tiles(kl, tiles, begin, end); });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("kl_divergence", TORCH_BOX(&kl_divergence<run>));
  m.impl("kl_divergence_backward", TORCH_BOX(&kl_divergence_backward<run>));
}

}  // namespace
}  // namespace pama
