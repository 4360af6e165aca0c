// Tensors at the border between torch and the kernels: what is refused there, and in which words.
//
// These checks keep kernels from reading past the end of a tensor. The public functions rely on
// them, and ask the checks of pama_ops/_ops.py for better words on what was refused. The other
// headers of this folder turn the arguments of an op into a plain structure that the kernels of
// both back ends take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace pama {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

[[noreturn]] inline void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

// By no stream: where g++ finds libstdc++ only as an archive, the archive's streams and the locales
// of torch's libstdc++ do not know each other, and the first number that is written crashes.
inline std::string text_of(Sizes sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

inline std::string text_of(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

inline std::string device_of(const Tensor& x) {
  return x.is_cpu() ? "cpu" : "cuda:" + std::to_string(x.get_device_index());
}

// --- dtypes --------------------------------------------------------------------------------------

// The dtypes that kernels read.
struct KnownDType {
  ScalarType torch;
  DType ours;
  const char* name;  // as Python calls it
};
inline constexpr KnownDType kKnownDTypes[] = {
    {ScalarType::Float, DType::kFloat, "torch.float32"},
    {ScalarType::Double, DType::kDouble, "torch.float64"},
    {ScalarType::BFloat16, DType::kBFloat16, "torch.bfloat16"},
    {ScalarType::Half, DType::kHalf, "torch.float16"},
    {ScalarType::Bool, DType::kBool, "torch.bool"},
    {ScalarType::Byte, DType::kUInt8, "torch.uint8"},
    {ScalarType::Char, DType::kInt8, "torch.int8"},
    {ScalarType::Short, DType::kInt16, "torch.int16"},
    {ScalarType::Int, DType::kInt32, "torch.int32"},
    {ScalarType::Long, DType::kInt64, "torch.int64"},
};

inline std::string text_of(ScalarType dtype) {
  for (const KnownDType& known : kKnownDTypes) {
    if (known.torch == dtype) return known.name;
  }
  return toString(dtype);
}

inline DType dtype_of(const Tensor& x, const char* name = "a tensor") {
  const ScalarType dtype = x.scalar_type();
  for (const KnownDType& known : kKnownDTypes) {
    if (known.torch == dtype) return known.ours;
  }
  refuse(std::string(name) +
         " must be bool, integer or float (not complex, quantized, float8 or uint16 to uint64), "
         "got " +
         text_of(dtype));
}

// The widest floating dtype given, at least float32.
template <class... Optional>
ScalarType result_dtype(const Optional&... tensors) {
  const bool wide = ((tensors && tensors->scalar_type() == ScalarType::Double) || ...);
  return wide ? ScalarType::Double : ScalarType::Float;
}

// --- results -------------------------------------------------------------------------------------

// A contiguous tensor on the device of `like`. Unlike new_empty it does not go through the
// dispatcher, which looks the operator up by its name: 0.4 us instead of 1.7.
inline Tensor allocate(const Tensor& like, Sizes shape, ScalarType dtype) {
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

// On a CPU, too, not through the dispatcher.
inline void fill_with_zeros(Tensor& x) {
  if (!x.is_cpu()) {
    torch::stable::zero_(x);
  } else if (x.numel() > 0) {
    std::memset(x.mutable_data_ptr(), 0, x.numel() * x.element_size());
  }
}

template <class T>
T* data_of(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// --- checks --------------------------------------------------------------------------------------

inline bool same_sizes(Sizes a, Sizes b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ||
         dtype == ScalarType::Double;
}

inline void check_floating(const char* name, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  if (is_floating(dtype)) return;
  const bool narrow = std::string(toString(dtype)).rfind("Float", 0) == 0;  // Float8_e5m2
  refuse(std::string(name) +
         (narrow ? " must be float64, float32, float16 or bfloat16, got "
                 : " must have a floating-point dtype, got ") +
         text_of(dtype));
}

inline void check_device(const char* name, const Tensor& x, const Tensor& like,
                         const char* of = "the other arguments") {
  if (x.get_device_index() != like.get_device_index()) {  // -1 of a CPU tensor
    refuse(std::string(name) + " must be on " + device_of(like) + " like " + of + ", got " +
           device_of(x));
  }
}

// `x` has these sizes, and is where `like` is.
inline void check_sizes(const char* name, const Tensor& x, Sizes sizes, const Tensor& like) {
  if (!same_sizes(x.sizes(), sizes)) {
    refuse(std::string(name) + " must have the shape " + text_of(sizes) + ", got " +
           text_of(x.sizes()));
  }
  check_device(name, x, like);
}

inline void check_reals(const char* name, const Tensor& x, Sizes sizes, const Tensor& like) {
  check_floating(name, x);
  check_sizes(name, x, sizes, like);
}

}  // namespace pama
