// Stacks of matrices and vectors at the border.
#pragma once

#include "core/matrix_stack.h"
#include "tensors/tensor.h"

namespace pama {

// `x` as a stack of items of `dims` dimensions, spread over the leading dimensions of `like`: those
// that it lacks repeat it. A tensor of no dimensions is a vector of one number. An int64 tensor
// holds seeds, which travel as float64 bit by bit.
inline Stack stack_of(const std::optional<Tensor>& x, int64_t dims, const Tensor& like,
                      int64_t like_dims) {
  Stack stack;
  if (!x) return stack;
  stack.lead = static_cast<int>(like.dim() - like_dims);
  if (stack.lead > Stack::kMaxLead) {
    refuse(std::string(like_dims == 2 ? "gram" : "values") + " must have at most " +
           std::to_string(Stack::kMaxLead) + " leading dimensions, got " +
           std::to_string(stack.lead));
  }
  stack.data = const_cast<void*>(x->const_data_ptr());
  stack.dtype = x->scalar_type() == ScalarType::Long ? DType::kDouble : dtype_of(*x);
  const int64_t missing = stack.lead - (x->dim() - dims);
  for (int64_t d = 0; d < stack.lead; ++d) {
    stack.sizes[d] = like.size(d);
    stack.strides[d] = d < missing ? 0 : x->stride(d - missing);
  }
  stack.column = x->dim() > 0 ? x->stride(x->dim() - 1) : 0;
  stack.row = dims == 2 ? x->stride(x->dim() - 2) : 0;
  return stack;
}

// A contiguous result, whose items are told apart by their index.
inline Stack result_of(Tensor& x) { return {.data = x.mutable_data_ptr(), .dtype = dtype_of(x)}; }

}  // namespace pama
