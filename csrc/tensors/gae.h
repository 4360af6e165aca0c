// The op `gae`.
#pragma once

#include "tensors/tokens.h"

namespace pama {

struct Gae {
  Sequences sequences;
  View rewards, values, mask, last_values, advantages, returns;
  double gamma, lambda;
};

// `Run`: what a back end does, on the device of a tensor.
template <void (*Run)(const Tensor& on, const Gae&)>
std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values,
                               const OptionalTensor& mask, const OptionalTensor& last_values,
                               const OptionalTensor& cu_seqlens, double gamma, double lambda) {
  const TokenInputs tokens("rewards", rewards, mask, cu_seqlens);
  const View value = tokens.alike("values", values);
  const View last = tokens.of_sequence("last_values", last_values);
  const ScalarType dtype = result_dtype(&rewards, &values, last_values);
  Tensor advantages = allocate(rewards, rewards.sizes(), dtype);
  Tensor returns = allocate(rewards, rewards.sizes(), dtype);
  Run(rewards, {tokens.sequences, tokens.first, value, tokens.mask, last, tokens.view(advantages),
                tokens.view(returns), gamma, lambda});
  return {advantages, returns};
}

}  // namespace pama
