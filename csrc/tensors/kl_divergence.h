// The op `kl_divergence` and its derivative.
#pragma once

#include "core/tokens/kl.h"
#include "tensors/tokens.h"

namespace pama {

struct Kl {
  Sequences sequences;
  View logp, ref_logp, mask, grad, out;  // `grad` of the derivative
  Estimator estimator;
};

template <void (*Run)(const Tensor& on, const Kl&)>
Tensor kl_of(const OptionalTensor& grad, const Tensor& logp, const Tensor& ref_logp,
             const OptionalTensor& mask, int64_t estimator) {
  check_rows("logp", logp);
  check_reals("ref_logp", ref_logp, logp.sizes(), logp);
  if (grad) check_reals("grad", *grad, logp.sizes(), logp);
  const View mask_view = mask_of(mask, logp.sizes(), logp);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp, &ref_logp));
  const int64_t length = logp.size(logp.dim() - 1), rows = length == 0 ? 0 : rows_in(logp);
  Run(logp, {{1, rows, length, nullptr, false, length, 0},
             view_of(logp),
             view_of(ref_logp),
             mask_view,
             view_of(grad),
             view_of(out),
             static_cast<Estimator>(estimator)});
  return out;
}

template <void (*Run)(const Tensor& on, const Kl&)>
Tensor kl_divergence(const Tensor& logp, const Tensor& ref_logp, const OptionalTensor& mask,
                     int64_t estimator) {
  return kl_of<Run>(std::nullopt, logp, ref_logp, mask, estimator);
}

template <void (*Run)(const Tensor& on, const Kl&)>
Tensor kl_divergence_backward(const Tensor& grad, const Tensor& logp, const Tensor& ref_logp,
                              const OptionalTensor& mask, int64_t estimator) {
  return kl_of<Run>(grad, logp, ref_logp, mask, estimator);
}

}  // namespace pama
