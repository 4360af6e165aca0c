// Estimates of the KL divergence per token, and their derivative: element by element.
#pragma once

#include "core/kl.h"
#include "kernels/tokens.cuh"

namespace pama {

struct KlArgs {
  Sequences sequences;
  int64_t chunks;
  View logp, ref_logp, mask, grad, out;  // `grad` only for the derivative
  Estimator estimator;
};

__global__ void __launch_bounds__(kBlock, 4) kl_kernel(const __grid_constant__ KlArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
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

}  // namespace pama
