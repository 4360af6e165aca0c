// Four neighbouring tokens of a thread as they lie in memory: what several arrays hold of them is
// loaded before any of it is converted, so that the loads are in flight together.
#pragma once

#include "core/view.h"
#include "kernels/device.cuh"

namespace pama {

inline constexpr int kRawTokens = 4;

struct RawTokens {
  uint64_t bits[kRawTokens];
};

// How many of a thread's tokens there are where so many are left.
__device__ __forceinline__ int raw_inside(int64_t left) {
  return static_cast<int>(left < 0 ? 0 : left < kRawTokens ? left : kRawTokens);
}

namespace detail {

template <class T>
struct alignas(kRawTokens * sizeof(T)) Four {
  T at[kRawTokens];
};

template <class T>
__device__ __forceinline__ RawTokens load_four(const View& view, int64_t first, int inside) {
  const T* from = static_cast<const T*>(view.data) + first;
  RawTokens raw;
  if (view.token == 1 && inside == kRawTokens &&
      reinterpret_cast<uintptr_t>(from) % sizeof(Four<T>) == 0) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) raw.bits[k] = four.at[k];
  } else {
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) raw.bits[k] = k < inside ? from[k * view.token] : T{};
  }
  return raw;
}

// Eight bytes each: one by one.
template <>
__device__ __forceinline__ RawTokens load_four<uint64_t>(const View& view, int64_t first,
                                                         int inside) {
  const uint64_t* from = static_cast<const uint64_t*>(view.data) + first;
  RawTokens raw;
#pragma unroll
  for (int k = 0; k < kRawTokens; ++k) raw.bits[k] = k < inside ? from[k * view.token] : 0;
  return raw;
}

}  // namespace detail

// Of the first `inside` tokens from index `first` on, zeros for the others; nothing of an array
// that was not given.
__device__ __forceinline__ RawTokens load_raw(const View& view, int64_t first, int inside) {
  if (!view.data) return {};
  switch (view.dtype) {
    case DType::kBool:
    case DType::kUInt8:
    case DType::kInt8:
      return detail::load_four<uint8_t>(view, first, inside);
    case DType::kInt16:
    case DType::kHalf:
    case DType::kBFloat16:
      return detail::load_four<uint16_t>(view, first, inside);
    case DType::kInt64:
    case DType::kDouble:
      return detail::load_four<uint64_t>(view, first, inside);
    default:
      return detail::load_four<uint32_t>(view, first, inside);
  }
}

// One token, in place of four.
__device__ __forceinline__ uint64_t load_bits(const View& view, int64_t i) {
  switch (view.dtype) {
    case DType::kDouble:
      return static_cast<const uint64_t*>(view.data)[i];
    case DType::kHalf:
    case DType::kBFloat16:
      return static_cast<const uint16_t*>(view.data)[i];
    default:
      return static_cast<const uint32_t*>(view.data)[i];
  }
}

// The number that an array of real numbers holds as these bits.
__device__ __forceinline__ double real_of(const View& view, uint64_t bits) {
  switch (view.dtype) {
    case DType::kDouble:
      return bit_cast<double>(bits);
    case DType::kHalf:
      return half_to_float(static_cast<uint16_t>(bits));
    case DType::kBFloat16:
      return bfloat16_to_float(static_cast<uint16_t>(bits));
    default:
      return bit_cast<float>(static_cast<uint32_t>(bits));
  }
}

// Token k of an array of real numbers.
__device__ __forceinline__ double raw_real(const View& view, const RawTokens& raw, int k) {
  return real_of(view, raw.bits[k]);
}

// Of a mask of any dtype. Of a float's zeros one has a sign.
__device__ __forceinline__ bool raw_unmasked(const View& mask, const RawTokens& raw, int k) {
  if (!mask.data) return true;
  switch (mask.dtype) {
    case DType::kHalf:
    case DType::kBFloat16:
      return (raw.bits[k] & 0x7fff) != 0;
    case DType::kFloat:
      return (raw.bits[k] & 0x7fffffff) != 0;
    case DType::kDouble:
      return raw.bits[k] << 1 != 0;
    default:
      return raw.bits[k] != 0;
  }
}

// Results are contiguous along tokens.
__device__ __forceinline__ void store_raw(const View& view, int64_t first, int inside,
                                          const double* value) {
  if (view.dtype == DType::kFloat) {
    float* to = static_cast<float*>(view.data) + first;
    detail::Four<float> four;
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) four.at[k] = static_cast<float>(value[k]);
    if (inside == kRawTokens && reinterpret_cast<uintptr_t>(to) % sizeof(four) == 0) {
      *reinterpret_cast<detail::Four<float>*>(to) = four;
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < kRawTokens; ++k) {
    if (k < inside) store(view, first + k, value[k]);
  }
}

}  // namespace pama
