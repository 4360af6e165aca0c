// Gradients as kernels take them: a table of pointers in the kernel's parameters.
//
// A launch takes as many parameters of the list as fit in the 4,096 bytes that every driver
// grants; longer lists take several launches: LLaMA-2 7B, 291 tensors, takes 6 for n = 8 and 49
// for n = 64, at some 3 µs each, where its bfloat16 gradients take 22 and 180 ms at 4.8 TB/s.
// (CUDA 12.1 with driver 530 would grant 32,764 bytes.) Sizes are int64, empty tensors never enter.
#pragma once

#include "core/matrix_stack.h"
#include "cuda/device.cuh"

namespace pama {

struct PointerTable {
  static constexpr int kWords = 448;

  int rows, pieces;
  // Of each piece: twice its columns, and 1 if every row starts at a multiple of 16 bytes; then a
  // pointer a row, null if it is missing.
  int64_t word[kWords];

  PAMA_INLINE int stride() const { return rows + 1; }
  PAMA_INLINE int64_t columns(int piece) const { return word[piece * stride()] >> 1; }
  PAMA_INLINE bool aligned(int piece) const { return word[piece * stride()] & 1; }
  template <class Element>
  PAMA_INLINE const Element* row(int piece, int i) const {
    return reinterpret_cast<const Element*>(word[piece * stride() + 1 + i]);
  }

  bool full() const { return (pieces + 1) * stride() > kWords; }
  template <class Pointer>
  void add(int64_t columns, const Pointer& pointer) {
    int64_t* to = word + pieces++ * stride();
    int64_t bits = 0;
    for (int i = 0; i < rows; ++i) {
      to[1 + i] = reinterpret_cast<int64_t>(pointer(i));
      bits |= to[1 + i];
    }
    to[0] = 2 * columns + (bits % 16 == 0);
  }
};

// The chunks of `Columns` columns, the last one of a piece shorter, that a table's pieces are cut
// into, one piece after the other: so lists of small tensors keep the whole grid busy. Who takes a
// chunk (a warp, a block) passes over those of others; it has seen every piece once by the end.
template <int64_t Columns>
struct ChunkWalk {
  const PointerTable& table;
  int64_t chunk;  // of this piece
  int piece = 0;

  __device__ __forceinline__ ChunkWalk(const PointerTable& table, int64_t first)
      : table(table), chunk(first) {}

  __device__ __forceinline__ int64_t chunks(int piece) const {
    return (table.columns(piece) + Columns - 1) / Columns;
  }
  // Whether there is such a chunk; finds its piece.
  __device__ __forceinline__ bool found() {
    for (; piece < table.pieces; chunk -= chunks(piece++)) {
      if (chunk < chunks(piece)) return true;
    }
    return false;
  }
  __device__ __forceinline__ int64_t first() const { return chunk * Columns; }
  __device__ __forceinline__ int columns() const {
    const int64_t left = table.columns(piece) - first();
    return static_cast<int>(left < Columns ? left : Columns);
  }
};

// `number`, and `round_to` of the float32 that sums of halves are.
template <class Element>
__device__ __forceinline__ auto real(Element x) {
  return number(x);
}

#if !defined(PAMA_EMULATE)
// One instruction each: at 4.8 TB/s the portable ones would take half of a GPU's issue slots.
__device__ __forceinline__ float real(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ void round_to(float x, Half& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
__device__ __forceinline__ void round_to(float x, BFloat16& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
#endif

// Sixteen bytes of elements, loaded and stored at once.
template <class Element>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Element);
  Element at[kSize];
};

// A pack of a row from column `at` on, zeros beyond `columns` and for no row. `whole` says that all
// of it is there, at a multiple of 16 bytes.
template <class Element>
__device__ __forceinline__ Pack<Element> load_pack(const Element* row, int64_t at, int64_t columns,
                                                   bool whole) {
  Pack<Element> pack{};
  if (!row) return pack;
  if (whole) return *reinterpret_cast<const Pack<Element>*>(row + at);
#pragma unroll
  for (int k = 0; k < Pack<Element>::kSize; ++k) {
    if (at + k < columns) pack.at[k] = row[at + k];
  }
  return pack;
}

}  // namespace pama
