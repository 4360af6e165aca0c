// Estimates of the KL divergence per token, and their derivative: element by element.
#include "cuda/token_chunks.cuh"
#include "tensors/kl_divergence.h"

namespace pama {
namespace {

__global__ void __launch_bounds__(kBlock, 4)
    kl_kernel(const __grid_constant__ Kl args, int64_t chunks) {
  wait_for_inputs();
  const Part part = block_part(args.sequences, chunks);
  for_tokens(args.mask, part, [&](const Tokens& tokens) {
    double k[kChunkTokens], ref[kChunkTokens], grad[kChunkTokens];
    load_tokens(args.logp, part, tokens, k);
    load_tokens(args.ref_logp, part, tokens, ref);
    if (args.grad.data) load_tokens(args.grad, part, tokens, grad);
#pragma unroll
    for (int i = 0; i < kChunkTokens; ++i) {
      const double log_ratio = k[i] - ref[i];
      k[i] = args.grad.data ? grad[i] * kl_slope(args.estimator, log_ratio)
                            : kl_estimate(args.estimator, log_ratio);
    }
    store_tokens(args.out, part, tokens, k);
  });
}

// --- launching ----------------------------------------------------------------------------------

void run(const Tensor& on, const Kl& kl) { launch_parts(on, kBlock, kl.sequences, kl_kernel, kl); }

PAMA_CUDA_LIBRARY(m) {
  m.impl("kl_divergence", TORCH_BOX(&kl_divergence<run>));
  m.impl("kl_divergence_backward", TORCH_BOX(&kl_divergence_backward<run>));
}

}  // namespace
}  // namespace pama
