// Packs of four neighbouring tokens of a thread, as they lie in memory: what several arrays hold of
// them is loaded before any of it is converted, so that the loads are in flight together. How the
// arrays lie is known when a kernel is compiled: told apart at run time, each load is waited for
// where the cases meet (seen in a profile of an H200, where that took most of the time).
#pragma once

#include <initializer_list>
#include <type_traits>

#include "core/view.h"
#include "cuda/device.cuh"

namespace pama {

inline constexpr int kPackTokens = 4;

enum class Layout {
  kAny,     // any dtypes and strides
  kFloats,  // numbers are float32, a mask is of bytes, and tokens lie side by side
  kPacks    // the same, and all that begins, begins and ends at a multiple of four tokens
};

// The layout of a call's arrays: of those of real numbers, inputs and results, and of its mask.
inline Layout layout_of(const Sequences& s, std::initializer_list<View> numbers, const View& mask) {
  const auto whole = [&](const View& view, uint64_t bytes) {
    return reinterpret_cast<uintptr_t>(view.data) % (kPackTokens * bytes) == 0 &&
           view.objective % kPackTokens == 0 && view.sequence % kPackTokens == 0;
  };
  bool packs = !s.offsets && s.length % kPackTokens == 0;
  for (const View& view : numbers) {
    if (!view.data) continue;
    if (view.dtype != DType::kFloat || view.token != 1) return Layout::kAny;
    packs = packs && whole(view, sizeof(float));
  }
  if (mask.data) {
    if (mask.dtype > DType::kInt8 || mask.token != 1) return Layout::kAny;
    packs = packs && whole(mask, 1);
  }
  return packs ? Layout::kPacks : Layout::kFloats;
}

// What a kernel of one layout knows of its arrays: their stride along tokens, and where packs are,
// that no sequences are ragged.
template <Layout kLayout>
__device__ __forceinline__ int64_t token_stride(const View& view) {
  return kLayout == Layout::kAny ? view.token : 1;
}

template <Layout kLayout>
__device__ __forceinline__ Sequences sequences_in(const Sequences& s) {
  Sequences known = s;
  if constexpr (kLayout == Layout::kPacks) known.offsets = nullptr;
  return known;
}

// Calls launch(layout) with the layout as a constant.
template <class Launch>
void with_layout(Layout layout, const Launch& launch) {
  switch (layout) {
    case Layout::kPacks:
      return launch(std::integral_constant<Layout, Layout::kPacks>{});
    case Layout::kFloats:
      return launch(std::integral_constant<Layout, Layout::kFloats>{});
    default:
      return launch(std::integral_constant<Layout, Layout::kAny>{});
  }
}

template <Layout kLayout>
struct alignas(16) TokenPack {
  float at[kPackTokens];
};

template <>
struct TokenPack<Layout::kAny> {
  uint64_t at[kPackTokens];
};

// A byte each; 0 of tokens that are not there.
template <Layout kLayout>
struct MaskPack {
  uint32_t bytes;
};

template <>
struct MaskPack<Layout::kAny> {
  TokenPack<Layout::kAny> tokens;
  int inside;
};

// How many of a thread's tokens there are where so many are left.
__device__ __forceinline__ int inside_pack(int64_t left) {
  return static_cast<int>(left < 0 ? 0 : left < kPackTokens ? left : kPackTokens);
}

namespace detail {

template <class T>
__device__ __forceinline__ TokenPack<Layout::kAny> load_each(const View& view, int64_t first,
                                                             int inside) {
  const T* from = static_cast<const T*>(view.data) + first;
  TokenPack<Layout::kAny> raw;
#pragma unroll
  for (int k = 0; k < kPackTokens; ++k) raw.at[k] = k < inside ? from[k * view.token] : T{};
  return raw;
}

}  // namespace detail

// Of the first `inside` tokens from index `first` on, zeros for the others.
template <Layout kLayout>
__device__ __forceinline__ TokenPack<kLayout> load_pack_of(const View& view, int64_t first,
                                                           int inside) {
  if constexpr (kLayout == Layout::kAny) {
    switch (view.dtype) {
      case DType::kBool:
      case DType::kUInt8:
      case DType::kInt8:
        return detail::load_each<uint8_t>(view, first, inside);
      case DType::kInt16:
      case DType::kHalf:
      case DType::kBFloat16:
        return detail::load_each<uint16_t>(view, first, inside);
      case DType::kInt64:
      case DType::kDouble:
        return detail::load_each<uint64_t>(view, first, inside);
      default:
        return detail::load_each<uint32_t>(view, first, inside);
    }
  } else {
    const float* from = static_cast<const float*>(view.data) + first;
    TokenPack<kLayout> raw{};
    if constexpr (kLayout == Layout::kPacks) {
      if (inside > 0) raw = *reinterpret_cast<const TokenPack<kLayout>*>(from);
    } else {
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        if (k < inside) raw.at[k] = from[k];
      }
    }
    return raw;
  }
}

// The same, and zeros for an array that was not given.
template <Layout kLayout>
__device__ __forceinline__ TokenPack<kLayout> load_if_given(const View& view, int64_t first,
                                                            int inside) {
  return view.data ? load_pack_of<kLayout>(view, first, inside) : TokenPack<kLayout>{};
}

// The mask of the same tokens, of which those not there are masked.
template <Layout kLayout>
__device__ __forceinline__ MaskPack<kLayout> load_mask_pack(const View& mask, int64_t first,
                                                            int inside) {
  if constexpr (kLayout == Layout::kAny) {
    return {load_if_given<kLayout>(mask, first, inside), inside};
  } else {
    const uint8_t* from = mask.data ? static_cast<const uint8_t*>(mask.data) + first : nullptr;
    MaskPack<kLayout> raw{0};
    if constexpr (kLayout == Layout::kPacks) {
      if (inside > 0) {
        raw.bytes = from ? *reinterpret_cast<const uint32_t*>(from) : 0x01010101u;
      }
    } else {
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        if (k < inside) raw.bytes |= (from ? uint32_t{from[k]} : 1u) << 8 * k;
      }
    }
    return raw;
  }
}

// One token of an array of real numbers, in place of four.
template <Layout kLayout>
__device__ __forceinline__ auto load_one(const View& view, int64_t i) {
  if constexpr (kLayout != Layout::kAny) {
    return static_cast<const float*>(view.data)[i];
  } else {
    switch (view.dtype) {
      case DType::kDouble:
        return static_cast<const uint64_t*>(view.data)[i];
      case DType::kHalf:
      case DType::kBFloat16:
        return uint64_t{static_cast<const uint16_t*>(view.data)[i]};
      default:
        return uint64_t{static_cast<const uint32_t*>(view.data)[i]};
    }
  }
}

// The number that was loaded.
__device__ __forceinline__ double real_of(const View&, float number) { return number; }
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
template <Layout kLayout>
__device__ __forceinline__ double real_at(const View& view, const TokenPack<kLayout>& raw, int k) {
  return real_of(view, raw.at[k]);
}

// Whether token k is there and not masked. Of a float's zeros one has a sign.
template <Layout kLayout>
__device__ __forceinline__ bool unmasked_at(const View& mask, const MaskPack<kLayout>& raw, int k) {
  if constexpr (kLayout != Layout::kAny) {
    return (raw.bytes >> 8 * k & 0xff) != 0;
  } else {
    if (k >= raw.inside) return false;
    if (!mask.data) return true;
    const uint64_t bits = raw.tokens.at[k];
    switch (mask.dtype) {
      case DType::kHalf:
      case DType::kBFloat16:
        return (bits & 0x7fff) != 0;
      case DType::kFloat:
        return (bits & 0x7fffffff) != 0;
      case DType::kDouble:
        return bits << 1 != 0;
      default:
        return bits != 0;
    }
  }
}

// Of one token, in place of four.
template <Layout kLayout>
__device__ __forceinline__ bool unmasked_one(const View& mask, int64_t i) {
  if constexpr (kLayout == Layout::kAny) return unmasked(mask, i);
  return !mask.data || static_cast<const uint8_t*>(mask.data)[i] != 0;
}

// Results are contiguous along tokens.
template <Layout kLayout>
__device__ __forceinline__ void store_pack_of(const View& view, int64_t first, int inside,
                                              const double* value) {
  if constexpr (kLayout == Layout::kPacks) {
    TokenPack<kLayout> four;
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) four.at[k] = static_cast<float>(value[k]);
    float* to = static_cast<float*>(view.data) + first;
    if (inside > 0) *reinterpret_cast<TokenPack<kLayout>*>(to) = four;
  } else {
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) {
      if (k >= inside) continue;
      if constexpr (kLayout == Layout::kFloats) {
        static_cast<float*>(view.data)[first + k] = static_cast<float>(value[k]);
      } else {
        store(view, first + k, value[k]);
      }
    }
  }
}

}  // namespace pama
