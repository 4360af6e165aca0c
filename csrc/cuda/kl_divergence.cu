// Estimates of the KL divergence per token, and their derivative: element by element.
#include "cuda/launch.h"
#include "cuda/token_chunks.cuh"
#include "tensors/kl_divergence.h"

namespace pama {
namespace {

__global__ void __launch_bounds__(kBlock, 4)
    kl_kernel(const __grid_constant__ Kl args, int64_t chunks) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, chunks);
  for_tokens(s, args.mask, part, chunks, [&](const Tokens& tokens) {
    double k[kTokens], ref[kTokens], grad[kTokens];
    const auto take = [&](const View& view, double* out) {
      load_tokens(view, s.first(view, 0, part.sequence) + tokens.first * view.token,
                  tokens.unmasked, out);
    };
    take(args.logp, k);
    take(args.ref_logp, ref);
    if (args.grad.data) take(args.grad, grad);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const double log_ratio = k[i] - ref[i];
      k[i] = args.grad.data ? grad[i] * kl_slope(args.estimator, log_ratio)
                            : kl_estimate(args.estimator, log_ratio);
    }
    store_tokens(args.out, s.first(args.out, 0, part.sequence) + tokens.first, tokens, k);
  });
}

// --- launching ----------------------------------------------------------------------------------

void run(const Tensor& on, const Kl& kl) {
  const int64_t chunks = chunks_of(kl.sequences);
  const Launcher launch(on);
  launch(kl_kernel, kl.sequences.count * chunks, kBlock, 0, kl, chunks);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("kl_divergence", TORCH_BOX(&kl_divergence<run>));
  m.impl("kl_divergence_backward", TORCH_BOX(&kl_divergence_backward<run>));
}

}  // namespace
}  // namespace pama
