#include "cuda/launch.h"
#include "kernels/kl_divergence.cuh"

namespace pama {
namespace {

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
