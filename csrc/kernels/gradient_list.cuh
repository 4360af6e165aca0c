// Gradients as kernels take them: a table of pointers in the kernel's parameters.
//
// A launch takes as many parameters of the list as fit in the 4,096 bytes that every driver
// grants; longer lists take several launches: LLaMA-2 7B, 291 tensors, takes 6 for n = 8 and 49
// for n = 64, at some 3 µs each, where its bfloat16 gradients take 22 and 180 ms at 4.8 TB/s.
// (CUDA 12.1 with driver 530 would grant 32,764 bytes.) Sizes are int64, empty tensors never enter.
#pragma once

#include "core/stack.h"
#include "kernels/device.cuh"

namespace pama {

struct PointerTable {
  static constexpr int kWords = 448;

  int rows, pieces;
  int64_t word[kWords];  // of each piece: its columns, then a pointer a row, null if it is missing

  PAMA_INLINE int stride() const { return rows + 1; }
  PAMA_INLINE int64_t columns(int piece) const { return word[piece * stride()]; }
  template <class Element>
  PAMA_INLINE const Element* row(int piece, int i) const {
    return reinterpret_cast<const Element*>(word[piece * stride() + 1 + i]);
  }
  // Whether every row of the piece starts at a multiple of 16 bytes.
  PAMA_INLINE bool aligned(int piece) const {
    int64_t bits = 0;
    for (int i = 0; i < rows; ++i) bits |= word[piece * stride() + 1 + i];
    return bits % 16 == 0;
  }
};

struct HalfElement {
  uint16_t bits;
};
struct BFloat16Element {
  uint16_t bits;
};

__device__ __forceinline__ float real(BFloat16Element x) { return bfloat16_to_float(x.bits); }
__device__ __forceinline__ float real(float x) { return x; }
__device__ __forceinline__ double real(double x) { return x; }

__device__ __forceinline__ void round_to(float x, float& to) { to = x; }
__device__ __forceinline__ void round_to(double x, double& to) { to = x; }

#if defined(PAMA_EMULATE)
inline float real(HalfElement x) { return half_to_float(x.bits); }
inline void round_to(float x, HalfElement& to) { to.bits = float_to_half(x); }
inline void round_to(float x, BFloat16Element& to) { to.bits = float_to_bfloat16(x); }
#else
// One instruction each: at 4.8 TB/s the portable ones would take half of a GPU's issue slots.
__device__ __forceinline__ float real(HalfElement x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ void round_to(float x, HalfElement& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
__device__ __forceinline__ void round_to(float x, BFloat16Element& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
#endif

// Sixteen bytes of elements, loaded and stored at once.
template <class Element>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Element);
  Element at[kSize];
};

// Threads of the grid in order, each piece's columns dealt on from where the last one's ended, so
// that lists of small tensors keep the whole grid busy.
__device__ __forceinline__ int64_t first_unit(int64_t dealt) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t start = mine - dealt % threads;
  return start < 0 ? start + threads : start;
}

}  // namespace pama
