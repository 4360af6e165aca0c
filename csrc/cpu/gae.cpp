// Generalised advantage estimation. A thread takes whole sequences and walks them from the right in
// tiles. Masked tokens are cut out when a tile is staged, so what remains is dense: differences
// vectorise along time, and only one multiply-add a token is sequential. Its latency of four
// cycles is hidden by running the chains of several objectives at once.
#include "tensors/gae.h"

#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

constexpr int64_t kChains = 4;

struct Carry {
  double advantage, value;  // of the unmasked token to the right
};

PAMA_CLONES void gae_sequence(const Gae& gae, int64_t b, Carry* carry) {
  const Sequences& s = gae.sequences;
  const double decay = gae.gamma * gae.lambda;
  Tile tile(s, b);
  alignas(64) double value[kChains][kTile + 1], chain[kChains][kTile];
  for (int64_t n = 0; n < s.objectives; ++n) {
    const View& last = gae.last_values;
    carry[n] = {0.0, last.data ? load(last, n * last.objective + b * last.sequence) : 0.0};
  }
  for (int64_t end = s.size(b); end > 0; end -= kTile) {
    const int64_t t = std::max<int64_t>(end - kTile, 0);
    tile.select(gae.mask, t, end - t);
    const int64_t count = tile.count;
    for (int64_t n = 0; n < s.objectives; n += kChains) {
      const int64_t chains = std::min(kChains, s.objectives - n);
      double advantage[kChains] = {};
      for (int64_t k = 0; k < chains; ++k) {
        double *v = value[k], *delta = chain[k];
        gather(gae.values, n + k, tile, v);
        gather(gae.rewards, n + k, tile, delta);
        v[count] = carry[n + k].value;
        carry[n + k].value = v[0];
        for (int64_t j = 0; j < count; ++j) delta[j] += gae.gamma * v[j + 1] - v[j];
        advantage[k] = carry[n + k].advantage;
      }
      for (int64_t j = count - 1; j >= 0; --j) {
        for (int64_t k = 0; k < kChains; ++k) {
          chain[k][j] = advantage[k] = chain[k][j] + decay * advantage[k];
        }
      }
      for (int64_t k = 0; k < chains; ++k) {
        carry[n + k].advantage = advantage[k];
        double *v = value[k], *a = chain[k];
        scatter(gae.advantages, n + k, tile, a);
        for (int64_t j = 0; j < count; ++j) v[j] += a[j];
        scatter(gae.returns, n + k, tile, v);
      }
    }
  }
}

void run(const Tensor&, const Gae& gae) {
  const Sequences& s = gae.sequences;
  check_tokens(s, gae.mask);
  if (s.total == 0) return;  // of any number of objectives
  for_sequences(s, [&](int64_t first, int64_t end) {
    std::vector<Carry> carry(s.objectives);
    for (int64_t b = first; b < end; ++b) gae_sequence(gae, b, carry.data());
  });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) { m.impl("gae", TORCH_BOX(&gae<run>)); }

}  // namespace
}  // namespace pama
