// The op `value_loss` and its derivative.
#pragma once

#include "tensors/tokens.h"

namespace pama {

struct ValueInputs {
  Sequences sequences;
  View values, returns, mask, old_values;
  double clip;
};

struct ValueLoss {
  ValueInputs inputs;
  double divisor;  // 0: the number of tokens
  View normalizer, loss, scale;
};

struct ValueSlope {
  ValueInputs inputs;
  View grad, scale, out;
};

inline ValueInputs value_inputs(const Tensor& values, const Tensor& returns,
                                const OptionalTensor& mask, const OptionalTensor& old_values,
                                const OptionalTensor& cu_seqlens, double clip) {
  const TokenInputs tokens("values", values, mask, cu_seqlens);
  return {.sequences = tokens.sequences,
          .values = tokens.first,
          .returns = tokens.alike("returns", returns),
          .mask = tokens.mask,
          .old_values = tokens.alike("old_values", old_values),
          .clip = clip};
}

template <void (*Run)(const Tensor& on, const ValueLoss&)>
std::tuple<Tensor, Tensor> value_loss(const Tensor& values, const Tensor& returns,
                                      const OptionalTensor& mask, const OptionalTensor& old_values,
                                      const OptionalTensor& normalizer,
                                      const OptionalTensor& cu_seqlens, double clip,
                                      double divisor) {
  const ValueInputs inputs = value_inputs(values, returns, mask, old_values, cu_seqlens, clip);
  const View divides = one_of("normalizer", normalizer, values);
  Tensor loss = allocate(values, {values.size(0)}, result_dtype(&values, &returns, old_values));
  Tensor scale = allocate(values, {}, ScalarType::Double);
  Run(values, {inputs, divisor, divides, view_of(loss), view_of(scale)});
  return {loss, scale};
}

template <void (*Run)(const Tensor& on, const ValueSlope&)>
Tensor value_loss_backward(const Tensor& grad, const Tensor& scale, const Tensor& values,
                           const Tensor& returns, const OptionalTensor& mask,
                           const OptionalTensor& old_values, const OptionalTensor& cu_seqlens,
                           double clip) {
  const ValueInputs inputs = value_inputs(values, returns, mask, old_values, cu_seqlens, clip);
  check_reals("grad", grad, {values.size(0)}, values);
  const View scales = one_of("scale", scale, values);
  Tensor out = allocate(values, values.sizes(), result_dtype(&values));
  Run(values, {inputs, view_of(grad), scales, view_of(out, cu_seqlens.has_value())});
  return out;
}

}  // namespace pama
