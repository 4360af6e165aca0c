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

// Calls launch(layout) with the layout as a constant.
template <class Launch>
void with_layout(Layout layout, const Launch& launch) {
  if (layout == Layout::kPacks) return launch(std::integral_constant<Layout, Layout::kPacks>{});
  if (layout == Layout::kFloats) return launch(std::integral_constant<Layout, Layout::kFloats>{});
  return launch(std::integral_constant<Layout, Layout::kAny>{});
}

// Neighbouring tokens, four or, in kernels that solve a problem for each, one.
template <Layout kLayout, int kTokens = kPackTokens>
struct alignas(kTokens * sizeof(float)) TokenPack {
  float at[kTokens];
};

template <int kTokens>
struct TokenPack<Layout::kAny, kTokens> {
  uint64_t at[kTokens];
};

// A byte each; 0 of tokens that are not there.
template <Layout kLayout, int kTokens = kPackTokens>
struct MaskPack {
  uint32_t bytes;
};

template <int kTokens>
struct MaskPack<Layout::kAny, kTokens> {
  TokenPack<Layout::kAny, kTokens> tokens;
  int inside;
};

// body(T{}) with the unsigned integer that holds the bits of one element.
template <class Body>
__device__ __forceinline__ auto with_bits(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUInt8:
    case DType::kInt8:
      return body(uint8_t{});
    case DType::kInt16:
    case DType::kHalf:
    case DType::kBFloat16:
      return body(uint16_t{});
    case DType::kInt64:
    case DType::kDouble:
      return body(uint64_t{});
    default:
      return body(uint32_t{});
  }
}

// A sequence as a kernel of one layout sees it, whose threads take packs from token `t` on. Where
// arrays lie in whole packs, no sequences are ragged.
template <Layout kLayout, int kTokens = kPackTokens>
class PackedSequence {
 public:
  using Pack = TokenPack<kLayout, kTokens>;
  using Mask = MaskPack<kLayout, kTokens>;

  int64_t size;

  __device__ __forceinline__ PackedSequence(const Sequences& s, int64_t b)
      : size(s.length), b_(b), begin_(0) {
    if constexpr (kLayout != Layout::kPacks) {
      size = s.size(b);
      begin_ = s.begin(b);
    }
  }

  // A row of an array, whatever sequences it holds.
  __device__ __forceinline__ PackedSequence(int64_t row, int64_t size)
      : size(size), b_(row), begin_(0) {}

  // Zeros for the tokens that are not there.
  __device__ __forceinline__ Pack load(const View& view, int64_t objective, int64_t t) const {
    const int64_t first = index(view, objective, t);
    Pack pack{};
    if constexpr (kLayout == Layout::kPacks) {
      const float* from = static_cast<const float*>(view.data) + first;
      if (inside(t) > 0) pack = *reinterpret_cast<const Pack*>(from);
    } else {
      const auto load_each = [&](auto element) {
        const auto* from = static_cast<const decltype(element)*>(view.data) + first;
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          if (k < inside(t)) pack.at[k] = from[k * stride(view)];
        }
      };
      if constexpr (kLayout == Layout::kAny) {
        with_bits(view.dtype, load_each);
      } else {
        load_each(float{});
      }
    }
    return pack;
  }

  // Tokens that are not there are masked.
  __device__ __forceinline__ Mask load_mask(const View& mask, int64_t t) const {
    if constexpr (kLayout == Layout::kAny) {
      if (!mask.data) return {{}, inside(t)};
      return {load(mask, 0, t), inside(t)};
    } else {
      const uint8_t* from =
          mask.data ? static_cast<const uint8_t*>(mask.data) + index(mask, 0, t) : nullptr;
      Mask pack{0};
      if constexpr (kLayout == Layout::kPacks) {
        if (inside(t) > 0) {
          pack.bytes = from ? *reinterpret_cast<const uint32_t*>(from) : 0x01010101u;
        }
      } else {
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          if (k < inside(t)) pack.bytes |= (from ? uint32_t{from[k]} : 1u) << 8 * k;
        }
      }
      return pack;
    }
  }

  // Results are contiguous along tokens.
  __device__ __forceinline__ void store(const View& view, int64_t objective, int64_t t,
                                        const double* value) const {
    const int64_t first = index(view, objective, t);
    if constexpr (kLayout == Layout::kPacks) {
      Pack pack;
#pragma unroll
      for (int k = 0; k < kTokens; ++k) pack.at[k] = static_cast<float>(value[k]);
      float* to = static_cast<float*>(view.data) + first;
      if (inside(t) > 0) *reinterpret_cast<Pack*>(to) = pack;
    } else {
      View known = view;
      if constexpr (kLayout == Layout::kFloats) known.dtype = DType::kFloat;
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        if (k < inside(t)) pama::store(known, first + k, value[k]);
      }
    }
  }

 private:
  int64_t b_, begin_;

  __device__ __forceinline__ static int64_t stride(const View& view) {
    return kLayout == Layout::kAny ? view.token : 1;
  }
  __device__ __forceinline__ int64_t index(const View& view, int64_t objective, int64_t t) const {
    return objective * view.objective + b_ * view.sequence + (begin_ + t) * stride(view);
  }
  // How many of a pack's tokens there are.
  __device__ __forceinline__ int inside(int64_t t) const {
    const int64_t left = size - t;
    return static_cast<int>(left < 0 ? 0 : left < kTokens ? left : kTokens);
  }
};

// The number that was loaded.
__device__ __forceinline__ double real_of(const View&, float number) { return number; }
__device__ __forceinline__ double real_of(const View& view, uint64_t bits) {
  return with_real(view.dtype, [&](auto element) -> double {
    memcpy(&element, &bits, sizeof(element));  // the lower bytes
    return number(element);
  });
}

// Whether token k is there and not masked. Of a float's zeros one has a sign.
template <Layout kLayout, int kTokens>
__device__ __forceinline__ bool unmasked_at(const View& mask, const MaskPack<kLayout, kTokens>& raw,
                                            int k) {
  if constexpr (kLayout != Layout::kAny) {
    return (raw.bytes >> 8 * k & 0xff) != 0;
  } else {
    if (k >= raw.inside) return false;
    if (!mask.data) return true;
    const bool has_sign = mask.dtype >= DType::kHalf;
    return raw.tokens.at[k] << (has_sign ? 65 - 8 * size_of(mask.dtype) : 0) != 0;
  }
}

}  // namespace pama
