// The clipped policy loss: a block sums a sequence's chunk, then one block adds up the sequences in
// a fixed order and writes the loss, its statistics and what a token of each sequence counts. The
// derivative is element by element.
#pragma once

#include "core/kl.h"
#include "core/normalizer.h"
#include "core/ppo_loss.h"
#include "core/surrogate.h"
#include "kernels/reduce.cuh"
#include "kernels/tokens.cuh"

namespace pama {

struct PpoArgs {
  Sequences sequences;
  int64_t chunks;
  View logp, old_logp, advantages, mask, ref_logp;
  Clip clip;
  double kl_coef;
  Estimator estimator;
  PpoSums* partials;        // [sequence][chunk]
  View grad, weights, out;  // of the derivative
};

struct PpoTokens {
  double log_ratio[kTokens], advantage[kTokens], log_ref_ratio[kTokens];
};

__device__ __forceinline__ PpoTokens ppo_load(const PpoArgs& args, const Part& part,
                                              const Tokens& tokens) {
  double logp[kTokens];
  PpoTokens out;
  const auto take = [&](const View& view, double* to) {
    const int64_t first = args.sequences.first(view, 0, part.sequence);
    load_tokens(view, first + tokens.first * view.token, tokens.unmasked, to);
  };
  take(args.logp, logp);
  take(args.old_logp, out.log_ratio);
  take(args.advantages, out.advantage);
  if (args.ref_logp.data) take(args.ref_logp, out.log_ref_ratio);
#pragma unroll
  for (int k = 0; k < kTokens; ++k) {
    out.log_ratio[k] = logp[k] - out.log_ratio[k];
    out.log_ref_ratio[k] = args.ref_logp.data ? logp[k] - out.log_ref_ratio[k] : 0;
  }
  return out;
}

__global__ void __launch_bounds__(kBlock, 2) ppo_loss_kernel(const __grid_constant__ PpoArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  PpoSums sums{};
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(args, part, tokens);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      if (!tokens.unmasked[k]) continue;
      const Surrogate token = surrogate(args.clip, x.log_ratio[k], x.advantage[k]);
      const double kl = args.ref_logp.data ? kl_estimate(args.estimator, x.log_ref_ratio[k]) : 0;
      sums = ppo_join(sums, {1, token.value, token.flat, token.approx_kl, token.ratio, kl});
    }
  });
  sums = block_reduce(sums, [](const PpoSums& a, const PpoSums& b) { return ppo_join(a, b); });
  if (threadIdx.x == 0) args.partials[part.sequence * args.chunks + part.chunk] = sums;
}

struct PpoFinishArgs {
  const PpoSums* partials;
  int64_t sequences, chunks;
  Aggregate aggregate;
  View normalizer, loss, statistics, weights;
  double divisor, kl_coef;
};

__device__ __forceinline__ PpoSums ppo_sequence(const PpoFinishArgs& args, int64_t b) {
  PpoSums sums{};
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
    sums = ppo_join(sums, args.partials[b * args.chunks + chunk]);
  }
  return sums;
}

// One block.
__global__ void __launch_bounds__(kBlock)
    ppo_finish_kernel(const __grid_constant__ PpoFinishArgs args) {
  wait_for_inputs();
  PpoTotal total{};
  for (int64_t b = threadIdx.x; b < args.sequences; b += kBlock) {
    total = ppo_join(total, ppo_total(args.aggregate, args.kl_coef, ppo_sequence(args, b)));
  }
  total = block_reduce(total, [](const PpoTotal& a, const PpoTotal& b) { return ppo_join(a, b); });
  const double divisor =
      divisor_of(args.normalizer, args.divisor, ppo_divisor(args.aggregate, total));
  if (threadIdx.x == 0) ppo_store(total, divisor, args.loss, args.statistics);
  for (int64_t b = threadIdx.x; b < args.sequences; b += kBlock) {
    const double tokens = ppo_sequence(args, b).tokens;
    store(args.weights, b, token_weight(args.aggregate, tokens, divisor));
  }
}

__global__ void __launch_bounds__(kBlock)
    ppo_backward_kernel(const __grid_constant__ PpoArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const double weight = load(args.grad, 0) * load(args.weights, part.sequence * args.weights.token);
  const double kl_weight = weight * args.kl_coef;
  const int64_t to = s.first(args.out, 0, part.sequence);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(args, part, tokens);
    double slope[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      slope[k] = -weight * surrogate(args.clip, x.log_ratio[k], x.advantage[k]).slope;
      if (args.ref_logp.data) slope[k] += kl_weight * kl_slope(args.estimator, x.log_ref_ratio[k]);
    }
    store_tokens(args.out, to + tokens.first, tokens, slope);
  });
}

}  // namespace pama
