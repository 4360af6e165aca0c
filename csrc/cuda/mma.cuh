// mma.sync.m16n8k16: C (16 x 8, float32) += A (16 x 16) B (16 x 8), halves or bfloat16s; and
// mma.sync.m8n8k4 and m16n8k(4 K) in float64.
//
// Which elements a lane holds is said once, here (PTX ISA, "Matrix fragments for mma.m16n8k16"):
// the kernels place their operands by it, and the host's version exchanges by it.
#pragma once

#include "cuda/pointer_table.cuh"

namespace pama {

// Word r of A, in lane (g, t) = (lane / 4, lane % 4), holds elements (g + 8 (r % 2), 2 t + 8 (r /
// 2)) and the one right of it, the lower half first. Words 0 and 1 of B, at (k, k + 1; column), are
// words 0 and 2 of an A whose rows are B's columns: in J Jᵀ both are rows of J, so that one load
// serves both. C:
PAMA_INLINE int mma_c_row(int lane, int r) { return lane / 4 + 8 * (r / 2); }
PAMA_INLINE int mma_c_column(int lane, int r) { return 2 * (lane % 4) + r % 2; }

// In float64, lane (g, t) holds A (g, t), B (t, g) and C (g, 2 t + r) of
// m8n8k4: in J Jᵀ one register is A and B. Of m16n8k(4 K) it holds A (g + 8 (i % 2), t + 4 (i /
// 2)), B (t + 4 k, g) and C (g + 8 (r / 2), 2 t + r % 2), which are those of m8n8k4 side by side.

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

inline void mma_f64(double (&c)[2], double a, double b) {
  for (int r = 0; r < 2; ++r) {
    for (int t = 0; t < 4; ++t) {
      const double left = __shfl_sync(kFullWarp, a, lane() / 4 * 4 + t);
      c[r] += left * __shfl_sync(kFullWarp, b, (lane() % 4 * 2 + r) * 4 + t);
    }
  }
}

#else

__device__ __forceinline__ void mma_f64(double (&c)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
}

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
PAMA_MMA(Half, "f16")
PAMA_MMA(BFloat16, "bf16")
#undef PAMA_MMA

#endif

template <int K>
__device__ __forceinline__ void mma_f64(double (&c)[4], const double (&a)[2 * K],
                                        const double (&b)[K]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static_assert(K == 2 || K == 4);
  if constexpr (K == 4) {
    asm("mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15}, {%0, %1, %2, %3};"
        : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]),
          "d"(b[0]), "d"(b[1]), "d"(b[2]), "d"(b[3]));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
  }
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    double rows[2] = {c[2 * half], c[2 * half + 1]};
#pragma unroll
    for (int k = 0; k < K; ++k) mma_f64(rows, a[2 * k + half], b[k]);
    c[2 * half] = rows[0];
    c[2 * half + 1] = rows[1];
  }
#endif
}

}  // namespace pama
