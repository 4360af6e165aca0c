// mma.sync.m16n8k16: C (16 x 8, float32) += A (16 x 16) B (16 x 8), halves or bfloat16s.
//
// Which elements a lane holds is said once, here (PTX ISA, "Matrix fragments for mma.m16n8k16"):
// the kernels place their operands by it, and the host's version exchanges by it.
#pragma once

#include "kernels/gradient_list.cuh"

namespace pama {

// Word r of A holds elements (row, column) and (row, column + 1), the lower half first. Words 0
// and 1 of B, at (k, k + 1; column), are words 0 and 2 of an A whose rows are B's columns: in
// J Jᵀ both are rows of J, so that one load serves both.
PAMA_INLINE int mma_a_row(int lane, int r) { return lane / 4 + 8 * (r % 2); }
PAMA_INLINE int mma_a_column(int lane, int r) { return 2 * (lane % 4) + 8 * (r / 2); }
PAMA_INLINE int mma_c_row(int lane, int r) { return lane / 4 + 8 * (r / 2); }
PAMA_INLINE int mma_c_column(int lane, int r) { return 2 * (lane % 4) + r % 2; }

#if defined(PAMA_EMULATE)

// One rounding for each mma. A GPU truncates the 16 products to the largest one's exponent, some
// bits below float32's last: not the same bits.
template <class Element>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto element = [](uint64_t words, int which) {
    return static_cast<double>(real(Element{static_cast<uint16_t>(words >> (16 * which))}));
  };
  const auto pair = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
  double sum[4] = {c[0], c[1], c[2], c[3]};
  for (int t = 0; t < 4; ++t) {
    uint64_t rows[2], columns[2];
    for (int h = 0; h < 2; ++h) {
      const int from = (mma_c_row(lane(), 2 * h) % 8) * 4 + t;
      rows[h] = __shfl_sync(kFullWarp, h ? pair(a[1], a[3]) : pair(a[0], a[2]), from);
      columns[h] = __shfl_sync(kFullWarp, pair(b[0], b[1]), mma_c_column(lane(), h) * 4 + t);
    }
    for (int r = 0; r < 4; ++r) {
      for (int k = 0; k < 4; ++k) sum[r] += element(rows[r / 2], k) * element(columns[r % 2], k);
    }
  }
  for (int r = 0; r < 4; ++r) c[r] = static_cast<float>(sum[r]);
}

#else

template <class Element>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define PAMA_MMA(Element, type)                                                       \
  template <>                                                                         \
  __device__ __forceinline__ void mma<Element>(float (&c)[4], const uint32_t (&a)[4], \
                                               const uint32_t (&b)[2]) {              \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                        \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));          \
  }
PAMA_MMA(HalfElement, "f16")
PAMA_MMA(BFloat16Element, "bf16")
#undef PAMA_MMA

#endif

}  // namespace pama
