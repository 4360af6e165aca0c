// From torch tensors to the plain structures that kernels take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/pama.h"
#include "core/view.h"

namespace pama {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& x, const char* name = "a tensor") {
  switch (x.scalar_type()) {
    case ScalarType::Bool:
      return DType::kBool;
    case ScalarType::Byte:
      return DType::kUInt8;
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Short:
      return DType::kInt16;
    case ScalarType::Int:
      return DType::kInt32;
    case ScalarType::Long:
      return DType::kInt64;
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    default:
      throw std::invalid_argument(std::string(name) +
                                  " must be bool, integer or float (not complex, quantized, float8 "
                                  "or uint16 to uint64), got " +
                                  toString(x.scalar_type()));
  }
}

// The widest floating dtype given, at least float32.
template <class... Optional>
ScalarType result_dtype(const Optional&... tensors) {
  const bool wide = ((tensors && tensors->scalar_type() == ScalarType::Double) || ...);
  return wide ? ScalarType::Double : ScalarType::Float;
}

// A contiguous tensor on the device of `like`. Unlike new_empty it does not go through the
// dispatcher, which looks the operator up by its name: 0.4 us instead of 1.7.
inline Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                       ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0; stride *= shape[d] > 1 ? shape[d] : 1) strides[d] = stride;
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), code, device, index, &handle));
  return Tensor(handle);
}

// `x` as [objective, sequence, token]: the last dimension is the token, the one before it the
// sequence unless the arrays are ragged, and the one before that the objective.
inline View view_of(const Tensor& x, bool ragged = false) {
  const auto strides = x.strides();
  const int64_t dims = x.dim(), lead = ragged ? dims - 2 : dims - 3;
  return {const_cast<void*>(x.const_data_ptr()), dtype_of(x), lead >= 0 ? strides[lead] : 0,
          ragged || dims < 2 ? 0 : strides[dims - 2], dims < 1 ? 0 : strides[dims - 1]};
}

inline View view_of(const std::optional<Tensor>& x, bool ragged = false) {
  return x ? view_of(*x, ragged) : View{nullptr, DType::kBool, 0, 0, 0};
}

// The sequences of a token array [N, B, T] or [B, T] (`objectives` false), ragged without the B.
// Where T is 0 there are none to walk, however large B is.
inline Sequences sequences_of(const Tensor& x, const std::optional<Tensor>& cu_seqlens,
                              bool objectives = true) {
  const auto sizes = x.sizes();
  const int64_t n = objectives ? sizes[0] : 1, last = sizes[x.dim() - 1];
  if (!cu_seqlens) return {n, last == 0 ? 0 : sizes[x.dim() - 2], last, nullptr, false, last, 0};
  return {n,
          cu_seqlens->size(0) - 1,
          last,
          cu_seqlens->const_data_ptr(),
          cu_seqlens->scalar_type() == ScalarType::Long,
          last,
          cu_seqlens->stride(0)};
}

// Whether a preference is [N, B], one for each sequence.
inline bool by_sequence(const std::optional<Tensor>& preference) {
  return preference && preference->dim() == 2;
}

inline View preference_view(const std::optional<Tensor>& x) {
  if (!x) return view_of(x);
  return {const_cast<void*>(x->const_data_ptr()), dtype_of(*x), x->stride(0),
          by_sequence(x) ? x->stride(1) : 0, 0};
}

// Those of a batch for PAMA. A preference for each sequence gives each its weights, tokens or none.
inline Sequences pama_sequences(const Tensor& advantages, const std::optional<Tensor>& preference,
                                const std::optional<Tensor>& cu_seqlens) {
  Sequences s = sequences_of(advantages, cu_seqlens);
  if (by_sequence(preference)) s.count = preference->size(1);
  return s;
}

// Shape of what PAMA solves one problem for: of the weights without their leading N.
inline std::vector<int64_t> pama_problem_shape(const Tensor& advantages, const Sequences& sequences,
                                               Reduction reduction,
                                               const std::optional<Tensor>& preference) {
  const auto sizes = advantages.sizes();
  const int64_t rows = sequences.offsets ? sequences.count : sizes[1];
  if (reduction == Reduction::kSequence) return {rows};
  if (reduction != Reduction::kToken) {
    return by_sequence(preference) ? std::vector<int64_t>{rows} : std::vector<int64_t>{};
  }
  return {sizes.begin() + 1, sizes.end()};
}

}  // namespace pama
