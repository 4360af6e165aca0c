// The ops `whiten_moments` and `whiten_apply`.
#pragma once

#include <algorithm>

#include "tensors/tokens.h"

namespace pama {

struct Whiten {
  Sequences sequences;
  View x, mask;
  View out;      // of whiten_apply
  View moments;  // [rank, objective, 3]: the result of whiten_moments, or what whiten_apply merges
  int64_t ranks;
  double eps;
};

template <void (*Run)(const Tensor& on, const Whiten&)>
Tensor whiten_moments(const Tensor& x, const OptionalTensor& mask,
                      const OptionalTensor& cu_seqlens) {
  const TokenInputs tokens("advantages", x, mask, cu_seqlens);
  Tensor moments = allocate(x, {tokens.sequences.objectives, 3}, ScalarType::Double);
  Run(x, {tokens.sequences, tokens.first, tokens.mask, {}, view_of(moments), 1, 0});
  return moments;
}

template <void (*Run)(const Tensor& on, const Whiten&)>
Tensor whiten_apply(const Tensor& x, const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                    const Tensor& moments, double eps) {
  const TokenInputs tokens("advantages", x, mask, cu_seqlens);
  check_floating("moments", moments);
  const int64_t ranks = moments.dim() > 0 ? std::max<int64_t>(moments.size(0), 1) : 1;
  check_sizes("moments", moments, {ranks, x.size(0), 3}, x);
  Tensor out = allocate(x, x.sizes(), result_dtype(&x));
  Run(x, {tokens.sequences, tokens.first, tokens.mask, tokens.view(out), view_of(moments), ranks,
          eps});
  return out;
}

}  // namespace pama
