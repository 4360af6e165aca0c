// Gram matrices on tensor cores: fragments come straight from the rows, and one register of J is
// both A and B of J Jᵀ.
//
// A sum over columns may take them in any order. So lane (g, t) of a warp loads 16 bytes of row g
// at a time, and its k-th elements, with those of its three neighbours, are four columns of an mma:
// no shared memory, no exchange. float32 and float64 multiply in float64, products exact (of
// float32) and nothing to promote; halves (up to 8 rows here, more in gram_mma.cuh) in float32,
// for 128 columns, after which the sums are added to float64 ones.
//
// Of at most 8 rows a fragment holds all, and of 4, 2 or 1 rows 2, 4 or 8 runs of columns: the
// products of rows of different runs are left aside.
//
// Counts for an H200: 18.2 bytes of the copy bandwidth (4.2 TB/s measured) come in each cycle of a
// multiprocessor. 512 bytes, 16 columns of 8 rows of float32, take 28 cycles, in which 4 m8n8k4
// take 8 to 16, 4 conversions a lane 8; 32 columns of 8 rows of halves 2 m16n8k16 of 4 cycles. 16
// columns of 16 rows: 56 cycles, of which 2 m16n8k16 of float64 take 32; of 32 rows 112 cycles, 6
// of them 96: 86 % of the tensor cores, so 32 rows are as near to their bound as to memory's.
// Measured on an H200, as shares of the copy bandwidth: float32 93, 99, 93, 91, 69 % at 2, 4, 8,
// 16, 32 rows; bfloat16 83, 94, 92 % at 2, 4, 8. Loads of 8 packs a lane are in flight before the
// first is used: 32 warps of a multiprocessor, half of them waiting, make 64 KB, where 700 ns
// need 25.
#pragma once

#include "cuda/gram_partial.cuh"

namespace pama {

inline constexpr int kFragmentBlock = 256;
inline constexpr int kFragmentSteps = 8;  // packs of a row that a lane loads at once
inline constexpr int64_t kFragmentShared = kFragmentBlock / kWarp * 64 * sizeof(double);

// C of a warp: 8 x 8, lane (g, t) holds (g, 2 t) and (g, 2 t + 1).
template <class Element>
struct Fragment {
  double sum[2] = {}, other[2] = {};  // by turns, so that one need not wait for the other

  __device__ __forceinline__ void add(const Pack<Element>& pack) {
#pragma unroll
    for (int k = 0; k < Pack<Element>::kSize; ++k) {
      const double x = real(pack.at[k]);
      mma_f64(k % 2 ? other : sum, x, x);
    }
  }
  __device__ __forceinline__ void promote() {}
  __device__ __forceinline__ double total(int r) const { return sum[r] + other[r]; }
};

template <class Element>
  requires(sizeof(Element) == 2)
struct Fragment<Element> {
  float part[4] = {};  // of rows past the eighth, which are zeros, the last two
  double sum[2] = {};

  __device__ __forceinline__ void add(const Pack<Element>& pack) {
    uint32_t word[4];
    memcpy(word, &pack, sizeof(word));
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      mma<Element>(part, {word[k], 0, word[k + 1], 0}, {word[k], word[k + 1]});
    }
  }
  __device__ __forceinline__ void promote() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += static_cast<double>(part[r]);
      part[r] = 0;
    }
  }
  __device__ __forceinline__ double total(int r) const { return sum[r]; }
};

// Blocks that share a multiprocessor, at least: four leave a thread 64 registers, of which doubles
// need more, and halves on sm_80.
template <class Element>
PAMA_INLINE constexpr int fragment_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (sizeof(Element) == 2) return 3;
#endif
  return sizeof(Element) == 8 ? 2 : 4;
}

// Up to 8 / Runs rows.
template <class Element, int Runs>
__global__ void __launch_bounds__(kFragmentBlock, fragment_blocks<Element>())
    gram_fragment_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  constexpr int width = Pack<Element>::kSize, rows = 8 / Runs;
  constexpr int step = Runs * 4 * width, chunk = kFragmentSteps * step;
  const PointerTable& table = args.table;
  const int i = lane() / 4 % rows, column = (lane() / 4 / rows * 4 + lane() % 4) * width;
  Fragment<Element> fragment;
#pragma unroll 1
  for (ChunkWalk<chunk> walk(table, warp()); walk.found();
       walk.chunk += gridDim.x * warps_per_block()) {
    const Element* row =
        i < table.rows ? table.row<Element>(walk.piece, i) + walk.first() : nullptr;
    const int columns = walk.columns();
    if (columns == chunk && table.aligned(walk.piece)) {
      Pack<Element> pack[kFragmentSteps];
#pragma unroll
      for (int s = 0; s < kFragmentSteps; ++s) {
        pack[s] = load_pack(row, s * step + column, columns, true);
      }
#pragma unroll
      for (int s = 0; s < kFragmentSteps; ++s) {
        fragment.add(pack[s]);
        if (s % 4 == 3) fragment.promote();
      }
    } else {
#pragma unroll 1
      for (int s = 0; s < columns; s += step) {
        fragment.add(load_pack(row, s + column, columns, false));
        fragment.promote();
      }
    }
  }
  double* shared = dynamic_shared();  // [warp][r][lane]
#pragma unroll
  for (int r = 0; r < 2; ++r)
    shared[threadIdx.x / kWarp * 64 + r * 32 + lane()] = fragment.total(r);
  __syncthreads();
  const int e = static_cast<int>(threadIdx.x), first = e / 8, second = e % 8;
  if (first >= rows || second >= rows) return;
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * 64 + e;
  double total = args.add ? *to : 0;
  for (int w = 0; w < kFragmentBlock / kWarp; ++w) {
#pragma unroll
    for (int run = 0; run < Runs; ++run) {
      const int g = run * rows + first, h = run * rows + second;
      total += shared[w * 64 + h % 2 * 32 + g * 4 + h / 2];
    }
  }
  *to = total;
}

// --- 9 to 32 rows of float32 and float64 ---------------------------------------------------------

// Blocks that share a multiprocessor.
PAMA_INLINE constexpr int float64_blocks(int bands) { return bands == 1 ? 4 : 3; }

// `Bands` bands of 16 rows.
template <class Element, int Bands>
__global__ void __launch_bounds__(kMmaBlock, float64_blocks(Bands))
    gram_float64_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  constexpr int width = Pack<Element>::kSize, steps = kFragmentSteps / Bands;
  constexpr int step = 4 * width, chunk = steps * step;
  const PointerTable& table = args.table;
  double sum[mma_count(Bands)][4] = {};
#pragma unroll 1
  for (ChunkWalk<chunk> walk(table, warp()); walk.found();
       walk.chunk += gridDim.x * warps_per_block()) {
    const Element* row[2 * Bands];
    mma_rows(table, walk, row);
    const int columns = walk.columns();
    const auto add = [&](auto count, int first, bool whole) {
      Pack<Element> pack[count()][2 * Bands];
#pragma unroll
      for (int s = 0; s < count(); ++s) {
#pragma unroll
        for (int band = 0; band < 2 * Bands; ++band) {
          const int at = first + s * step + lane() % 4 * width;
          pack[s][band] = load_pack(row[band], at, columns, whole);
        }
      }
#pragma unroll
      for (int s = 0; s < count(); ++s) {
        double x[2 * Bands][width];
#pragma unroll
        for (int band = 0; band < 2 * Bands; ++band) {
#pragma unroll
          for (int k = 0; k < width; ++k) x[band][k] = real(pack[s][band].at[k]);
        }
        int tile = 0;
#pragma unroll
        for (int i = 0; i < Bands; ++i) {
          double a[2 * width];
#pragma unroll
          for (int k = 0; k < 2 * width; ++k) a[k] = x[2 * i + k % 2][k / 2];
#pragma unroll
          for (int j = 2 * i; j < 2 * Bands; ++j) mma_f64<width>(sum[tile++], a, x[j]);
        }
      }
    };
    if (columns == chunk && table.aligned(walk.piece)) {
      add(std::integral_constant<int, steps>{}, 0, true);
      continue;
    }
#pragma unroll 1
    for (int first = 0; first < columns; first += step) {
      add(std::integral_constant<int, 1>{}, first, false);
    }
  }
  double* shared = dynamic_shared();
#pragma unroll
  for (int e = 0; e < 4 * mma_count(Bands); ++e) {
    shared[e * kMmaBlock + threadIdx.x] = sum[e / 4][e % 4];
  }
  mma_store_partial(args, Bands);
}

}  // namespace pama
