// From torch tensors to stacks of matrices and vectors.
#pragma once

#include "core/stack.h"
#include "tensors.h"

namespace pama {

// `x` as a stack of items of `dims` dimensions, spread over `lead` leading dimensions: those that
// it lacks repeat it. A tensor of no dimensions is a vector of one number. An int64 tensor holds
// seeds, which travel as float64 bit by bit.
inline Stack stack_of(const Tensor& x, int64_t dims, const Tensor& like, int64_t like_dims) {
  Stack stack{};
  if (like.dim() - like_dims > Stack::kMaxLead) {
    const std::string name = like_dims == 2 ? "gram" : "values";
    throw std::invalid_argument(name + " must have at most " + std::to_string(Stack::kMaxLead) +
                                " leading dimensions, got " +
                                std::to_string(like.dim() - like_dims));
  }
  stack.data = const_cast<void*>(x.const_data_ptr());
  stack.dtype = x.scalar_type() == ScalarType::Long ? DType::kDouble : dtype_of(x);
  stack.lead = static_cast<int>(like.dim() - like_dims);
  const int64_t missing = stack.lead - (x.dim() - dims);
  for (int64_t d = 0; d < stack.lead; ++d) {
    stack.sizes[d] = like.size(d);
    stack.strides[d] = d < missing ? 0 : x.stride(d - missing);
  }
  stack.column = x.dim() > 0 ? x.stride(x.dim() - 1) : 0;
  stack.row = dims == 2 ? x.stride(x.dim() - 2) : 0;
  return stack;
}

inline Stack stack_of(const std::optional<Tensor>& x, int64_t dims, const Tensor& like,
                      int64_t like_dims) {
  return x ? stack_of(*x, dims, like, like_dims) : Stack{};
}

// How many items of `dims` dimensions `x` holds.
inline int64_t count_of(const Tensor& x, int64_t dims) {
  int64_t count = 1;
  for (int64_t d = 0; d < x.dim() - dims; ++d) count *= x.size(d);
  return count;
}

}  // namespace pama
