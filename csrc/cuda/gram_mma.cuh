// Gram matrices of halves on tensor cores, 9 to 64 rows: fragments come straight from the rows.
//
// A sum over columns may take them in any order, so lane (g, t) loads the 16 bytes at column 8 t
// of row g of each band of 8 rows: 32 columns, and two mmas' words of A and of B alike, with no
// shared memory between. Null rows and rows past the last are zeros.
//
// Counts, for 16, 32, 48, 64 rows: 4, 12, 24, 40 mmas per 32 columns, whose 1, 2, 3, 4 KB of rows
// make 16, 24, 32, 40 FLOP a byte: at 4.8 TB/s 77, 115, 154, 192 TFLOP/s, a fifth of an H200's
// 990 at most, so memory bounds all four. (On plain multiply-adds 16 rows would ask for 86 % of
// its float32 rate, which is why halves leave the tiles at n = 9 already.) Each lane has 8
// (6 for 48 rows) 16-byte loads in flight beside those being multiplied: 4 KB a warp. 8 warps of a
// multiprocessor, 32 KB, were predicted to be enough for 75 % of the copy bandwidth, as 4.8 TB/s at
// 700 ns need 25 KB; on an H200 they gave 75 % at n = 16, and 16 warps 92 %; at n = 32 70 and 76 %.
//
// float32 accumulators hold 256 columns, then go to float64 sums in shared memory, as [entry]
// [thread]: in registers those of 64 rows would spill.
#pragma once

#include "cuda/gram_partial.cuh"

namespace pama {

inline constexpr int kMmaColumns = 256;  // between promotions, and dealt to a warp at a time

// Blocks that share a multiprocessor.
PAMA_INLINE constexpr int mma_blocks(int bands) { return bands <= 2 ? 4 : 2; }

struct alignas(16) MmaWords {
  uint32_t at[4];
};

// Eight columns of a row from `at` on, zeros beyond `columns`.
template <class Element>
__device__ __forceinline__ MmaWords mma_load(const Element* row, int64_t at, int64_t columns,
                                             bool whole) {
  MmaWords words{};
  if (!row) return words;
  if (whole) return *reinterpret_cast<const MmaWords*>(row + at);
  uint64_t half[2] = {};
#pragma unroll 1
  for (int k = 0; k < 4; ++k) {  // rolled: the tails' registers must not set the kernel's
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t column = at + 4 * h + k;
      const uint64_t bits = column < columns ? row[column].bits : 0;
      half[h] |= bits << (16 * k);
    }
  }
  memcpy(&words, half, sizeof(words));
  return words;
}

template <class Element, int Bands>
struct MmaSums {
  static constexpr int kSteps = Bands < 3 ? 4 / Bands : 1;  // of 32 columns, loaded at once
  static constexpr int kColumns = kSteps * 32;

  MmaWords words[kSteps][2 * Bands];
  float sum[mma_count(Bands)][4] = {};

  __device__ __forceinline__ void load(const Element* const (&row)[2 * Bands], int64_t at,
                                       int64_t columns, bool whole) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int band = 0; band < 2 * Bands; ++band) {
        words[s][band] = mma_load(row[band], at + s * 32 + lane() % 4 * 8, columns, whole);
      }
    }
  }

  __device__ __forceinline__ void multiply(const MmaWords (&rows)[kSteps][2 * Bands]) {
#pragma unroll
    for (int s = 0; s < 2 * kSteps; ++s) {
      const auto word = [&](int band, int k) { return rows[s / 2][band].at[s % 2 * 2 + k]; };
      int tile = 0;
#pragma unroll
      for (int i = 0; i < Bands; ++i) {
        const uint32_t a[4] = {word(2 * i, 0), word(2 * i + 1, 0), word(2 * i, 1),
                               word(2 * i + 1, 1)};
#pragma unroll
        for (int j = 2 * i; j < 2 * Bands; ++j) {
          const uint32_t b[2] = {word(j, 0), word(j, 1)};
          mma<Element>(sum[tile++], a, b);
        }
      }
    }
  }

  // `to` is the thread's first entry.
  __device__ __forceinline__ void promote(double* to) {
#pragma unroll
    for (int e = 0; e < 4 * mma_count(Bands); ++e) {
      // Else the compiler loads all of them at once, and spills.
      if (e % 8 == 0) __syncwarp();  // not shown on the host
      to[e * kMmaBlock] += static_cast<double>(sum[e / 4][e % 4]);
      sum[e / 4][e % 4] = 0;
    }
  }
};

template <class Element, int Bands>
__global__ void __launch_bounds__(kMmaBlock, mma_blocks(Bands))
    gram_mma_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  using Sums = MmaSums<Element, Bands>;
  constexpr int entries = mma_count(Bands) * 4 * kWarp;
  const PointerTable& table = args.table;
  const int thread = static_cast<int>(threadIdx.x);
  double* mine = dynamic_shared() + thread;
  for (int e = 0; e < entries / kWarp; ++e) mine[e * kMmaBlock] = 0;
  Sums sums;
#pragma unroll 1
  for (ChunkWalk<kMmaColumns> walk(table, warp()); walk.found();
       walk.chunk += gridDim.x * warps_per_block()) {
    const Element* row[2 * Bands];
    mma_rows(table, walk, row);
    const int columns = walk.columns();
    const bool whole = columns == kMmaColumns && table.aligned(walk.piece);
    sums.load(row, 0, columns, whole);
#pragma unroll 1
    for (int at = 0; at < columns; at += Sums::kColumns) {
      MmaWords now[Sums::kSteps][2 * Bands];
      memcpy(now, sums.words, sizeof(now));
      if (at + Sums::kColumns < columns) sums.load(row, at + Sums::kColumns, columns, whole);
      sums.multiply(now);
    }
    sums.promote(mine);
  }
  mma_store_partial(args, entries);
}

}  // namespace pama
