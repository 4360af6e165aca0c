// The clipped policy loss: a block sums a sequence's chunk, then one block adds up the sequences in
// a fixed order and writes the loss, its statistics and what a token of each sequence counts. The
// derivative is element by element.
#include "core/tokens/normalizer.h"
#include "cuda/reduce.cuh"
#include "cuda/token_chunks.cuh"
#include "tensors/ppo_loss.h"

namespace pama {
namespace {

struct PpoTokens {
  double log_ratio[kChunkTokens], advantage[kChunkTokens], log_ref_ratio[kChunkTokens];
};

__device__ __forceinline__ PpoTokens ppo_load(const PpoInputs& args, const Part& part,
                                              const Tokens& tokens) {
  double logp[kChunkTokens];
  PpoTokens out;
  load_tokens(args.logp, part, tokens, logp);
  load_tokens(args.old_logp, part, tokens, out.log_ratio);
  load_tokens(args.advantages, part, tokens, out.advantage);
  if (args.ref_logp.data) load_tokens(args.ref_logp, part, tokens, out.log_ref_ratio);
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) {
    out.log_ratio[k] = logp[k] - out.log_ratio[k];
    out.log_ref_ratio[k] = args.ref_logp.data ? logp[k] - out.log_ref_ratio[k] : 0;
  }
  return out;
}

__global__ void __launch_bounds__(kBlock, 2)
    ppo_loss_kernel(const __grid_constant__ PpoInputs args, int64_t chunks, PpoSums* partials) {
  wait_for_inputs();
  const Part part = block_part(args.sequences, chunks);
  PpoSums sums{};
  for_tokens(args.mask, part, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(args, part, tokens);
#pragma unroll
    for (int k = 0; k < kChunkTokens; ++k) {
      if (!tokens.unmasked[k]) continue;
      const Surrogate token = surrogate(args.clip, x.log_ratio[k], x.advantage[k]);
      const double kl = args.ref_logp.data ? kl_estimate(args.estimator, x.log_ref_ratio[k]) : 0;
      sums = ppo_join(sums, {1, token.value, token.flat, token.approx_kl, token.ratio, kl});
    }
  });
  sums = block_reduce(sums, [](const PpoSums& a, const PpoSums& b) { return ppo_join(a, b); });
  if (threadIdx.x == 0) partials[part.index()] = sums;
}

__device__ __forceinline__ PpoSums ppo_sequence(const PpoSums* partials, int64_t chunks,
                                                int64_t b) {
  PpoSums sums{};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sums = ppo_join(sums, partials[b * chunks + chunk]);
  }
  return sums;
}

// One block, as there is one objective.
__global__ void __launch_bounds__(kBlock)
    ppo_finish_kernel(const __grid_constant__ PpoLoss args, int64_t chunks,
                      const PpoSums* partials) {
  wait_for_inputs();
  const int64_t count = args.inputs.sequences.count;
  PpoTotal total{};
  for (int64_t b = threadIdx.x; b < count; b += kBlock) {
    const PpoSums sums = ppo_sequence(partials, chunks, b);
    total = ppo_join(total, ppo_total(args.aggregate, args.inputs.kl_coef, sums));
  }
  total = block_reduce(total, [](const PpoTotal& a, const PpoTotal& b) { return ppo_join(a, b); });
  const double divisor =
      divisor_of(args.normalizer, args.divisor, ppo_divisor(args.aggregate, total));
  if (threadIdx.x == 0) ppo_store(total, divisor, args.loss, args.statistics);
  for (int64_t b = threadIdx.x; b < count; b += kBlock) {
    const double tokens = ppo_sequence(partials, chunks, b).tokens;
    store(args.row_weights, b, token_weight(args.aggregate, tokens, divisor));
  }
}

__global__ void __launch_bounds__(kBlock, 4)
    ppo_backward_kernel(const __grid_constant__ PpoSlope args, int64_t chunks) {
  wait_for_inputs();
  const PpoInputs& inputs = args.inputs;
  const Part part = block_part(inputs.sequences, chunks);
  const double weight =
      load(args.grad, 0) * load(args.row_weights, part.sequence * args.row_weights.sequence);
  const double kl_weight = weight * inputs.kl_coef;
  for_tokens(inputs.mask, part, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(inputs, part, tokens);
    double slope[kChunkTokens];
#pragma unroll
    for (int k = 0; k < kChunkTokens; ++k) {
      slope[k] = -weight * surrogate(inputs.clip, x.log_ratio[k], x.advantage[k]).slope;
      if (inputs.ref_logp.data) {
        slope[k] += kl_weight * kl_slope(inputs.estimator, x.log_ref_ratio[k]);
      }
    }
    store_tokens(args.out, part, tokens, slope);
  });
}

// --- launching ----------------------------------------------------------------------------------

void forward(const Tensor& on, const PpoLoss& loss) {
  launch_sums(on, kBlock, loss.inputs.sequences, ppo_loss_kernel, loss.inputs, ppo_finish_kernel,
              loss);
}

void backward(const Tensor& on, const PpoSlope& slope) {
  launch_parts(on, kBlock, slope.inputs.sequences, ppo_backward_kernel, slope);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("ppo_loss", TORCH_BOX(&ppo_loss<forward>));
  m.impl("ppo_loss_backward", TORCH_BOX(&ppo_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
