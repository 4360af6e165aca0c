// The clipped policy loss with its statistics, and its derivative, each in one pass. A thread takes
// whole sequences; the sums of sequences are added in order, so that bits do not depend on threads.
#include "tensors/ppo_loss.h"

#include "core/tokens/normalizer.h"
#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

struct PpoTile : Tile {
  using Tile::Tile;

  alignas(64) double logp[kTile], log_ratio[kTile], advantage[kTile], log_ref_ratio[kTile];
};

// Goes on to the next tile. False where there is none.
PAMA_INLINE bool next(const PpoInputs& ppo, PpoTile& tile) {
  if (!tile.next(ppo.mask)) return false;
  gather(ppo.logp, 0, tile, tile.logp);
  gather(ppo.old_logp, 0, tile, tile.log_ratio);
  gather(ppo.advantages, 0, tile, tile.advantage);
  for (int64_t j = 0; j < tile.count; ++j) tile.log_ratio[j] = tile.logp[j] - tile.log_ratio[j];
  if (ppo.ref_logp.data) {
    double* k = tile.log_ref_ratio;
    gather(ppo.ref_logp, 0, tile, k);
    for (int64_t j = 0; j < tile.count; ++j) k[j] = tile.logp[j] - k[j];
  }
  return true;
}

PAMA_CLONES PpoSums ppo_sequence(const PpoInputs& ppo, int64_t b) {
  const Clip clip = ppo.clip;
  PpoTile tile(ppo.sequences, b);
  PpoSums sums{};
  while (next(ppo, tile)) {
    const int64_t count = tile.count;
    double value = 0, flat = 0, approx_kl = 0, ratio = 0, kl = 0;
#pragma omp simd reduction(+ : value, flat, approx_kl, ratio)
    for (int64_t j = 0; j < count; ++j) {
      const Surrogate token = surrogate(clip, tile.log_ratio[j], tile.advantage[j]);
      value += token.value;
      flat += token.flat;
      approx_kl += token.approx_kl;
      ratio += token.ratio;
    }
    if (ppo.ref_logp.data) {
      const double* k = tile.log_ref_ratio;
      kl = with_estimator(ppo.estimator, [=](auto kind) PAMA_INLINED {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < count; ++j) sum += kl_estimate<kind()>(k[j]);
        return sum;
      });
    }
    sums = ppo_join(sums, {static_cast<double>(count), value, flat, approx_kl, ratio, kl});
  }
  return sums;
}

// `weight`: what a token of the sequence counts in the loss, times the loss's own gradient.
PAMA_CLONES void ppo_sequence_slope(const PpoSlope& job, int64_t b, double weight) {
  const PpoInputs& ppo = job.inputs;
  const Clip clip = ppo.clip;
  PpoTile tile(ppo.sequences, b);
  double* slope = tile.advantage;
  const double *k = tile.log_ref_ratio, kl_weight = weight * ppo.kl_coef;
  while (next(ppo, tile)) {
    const int64_t count = tile.count;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      slope[j] = -weight * surrogate(clip, tile.log_ratio[j], slope[j]).slope;
    }
    if (ppo.ref_logp.data) {
      with_estimator(ppo.estimator, [=](auto kind) PAMA_INLINED {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) slope[j] += kl_weight * kl_slope<kind()>(k[j]);
      });
    }
    scatter(job.out, 0, tile, slope);
  }
}

void forward(const Tensor&, const PpoLoss& job) {
  const PpoInputs& ppo = job.inputs;
  const Sequences& s = ppo.sequences;
  check_tokens(s, ppo.mask);
  check_normalizer(job.normalizer);
  std::vector<PpoSums> sums(s.count);
  for_each_sequence(s, [&](int64_t b) { sums[b] = ppo_sequence(ppo, b); });
  PpoTotal total{};
  for (const PpoSums& of_sequence : sums) {
    total = ppo_join(total, ppo_total(job.aggregate, ppo.kl_coef, of_sequence));
  }
  const double count = divisor_of(job.normalizer, job.divisor, ppo_divisor(job.aggregate, total));
  ppo_store(total, count, job.loss, job.statistics);
  for (int64_t b = 0; b < s.count; ++b) {
    store(job.row_weights, b, token_weight(job.aggregate, sums[b].tokens, count));
  }
}

void backward(const Tensor&, const PpoSlope& job) {
  const Sequences& s = job.inputs.sequences;
  check_tokens(s, job.inputs.mask);
  const double of_loss = load(job.grad, 0);
  for_each_sequence(s, [&](int64_t b) {
    const double weight = load(job.row_weights, b * job.row_weights.sequence);
    ppo_sequence_slope(job, b, of_loss * weight);
  });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("ppo_loss", TORCH_BOX(&ppo_loss<forward>));
  m.impl("ppo_loss_backward", TORCH_BOX(&ppo_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
