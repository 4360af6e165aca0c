// Estimates of the KL divergence per token, and their derivative: element by element.
#include "core/kl.h"
#include "cuda/launch.h"
#include "cuda/tokens.cuh"

namespace pama {
namespace {

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

// --- launching ----------------------------------------------------------------------------------

Tensor run(const std::optional<Tensor>& grad, const Tensor& logp, const Tensor& ref_logp,
           const std::optional<Tensor>& mask, int64_t estimator) {
  check_kl(grad, logp, ref_logp, mask);
  const Launcher launch(logp);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp, &ref_logp));
  const int64_t length = logp.size(logp.dim() - 1);
  const int64_t rows = length == 0 ? 0 : logp.dim() > 1 ? logp.size(0) : 1;
  const Sequences sequences{1, rows, length, nullptr, false, length, 0};
  const KlArgs args{
      sequences,     chunks_of(sequences), view_of(logp), view_of(ref_logp),
      view_of(mask), view_of(grad),        view_of(out),  static_cast<Estimator>(estimator)};
  launch(kl_kernel, rows * args.chunks, kBlock, 0, args);
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

PAMA_CUDA_LIBRARY(m) {
  m.impl("kl_divergence", TORCH_BOX(&kl_divergence));
  m.impl("kl_divergence_backward", TORCH_BOX(&kl_divergence_backward));
}

}  // namespace
}  // namespace pama
