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
// (6 for 48 rows) 16-byte loads in flight beside those being multiplied: 4 KB a warp. On an H200 8
// warps of a multiprocessor gave 75 % of the copy bandwidth at n = 16, and 16 warps 92 %; at n = 32
// 70 and 76 %.
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

// `Bands` bands of 16 rows.
template <class Element, int Bands>
__global__ void __launch_bounds__(kMmaBlock, mma_blocks(Bands))
    gram_mma_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  constexpr int step = 32, steps = Bands < 3 ? 4 / Bands : 1;  // steps of columns, loaded at once
  constexpr int tiles = mma_count(Bands);
  using Words = MmaWords[steps][2 * Bands];
  const PointerTable& table = args.table;
  double* mine = dynamic_shared() + threadIdx.x;
  for (int e = 0; e < 4 * tiles; ++e) mine[e * kMmaBlock] = 0;
  float sum[tiles][4] = {};
#pragma unroll 1
  for (ChunkWalk<kMmaColumns> walk(table, warp()); walk.found();
       walk.chunk += gridDim.x * warps_per_block()) {
    const Element* row[2 * Bands];
    mma_rows(table, walk, row);
    const int columns = walk.columns();
    const bool whole = columns == kMmaColumns && table.aligned(walk.piece);
    Words next;
    const auto load = [&](int at) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
#pragma unroll
        for (int band = 0; band < 2 * Bands; ++band) {
          next[s][band] = mma_load(row[band], at + s * step + lane() % 4 * 8, columns, whole);
        }
      }
    };
    load(0);
#pragma unroll 1
    for (int at = 0; at < columns; at += steps * step) {
      Words now;
      memcpy(now, next, sizeof(now));
      if (at + steps * step < columns) load(at + steps * step);
#pragma unroll
      for (int s = 0; s < 2 * steps; ++s) {
        const auto word = [&](int band, int k) { return now[s / 2][band].at[s % 2 * 2 + k]; };
        int tile = 0;
#pragma unroll
        for (int i = 0; i < Bands; ++i) {
          const uint32_t a[4] = {word(2 * i, 0), word(2 * i + 1, 0), word(2 * i, 1),
                                 word(2 * i + 1, 1)};
#pragma unroll
          for (int j = 2 * i; j < 2 * Bands; ++j) {
            mma<Element>(sum[tile++], a, {word(j, 0), word(j, 1)});
          }
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 4 * tiles; ++e) {
      // Else the compiler loads all of them at once, and spills.
      if (e % 8 == 0) __syncwarp();  // not shown on the host
      mine[e * kMmaBlock] += static_cast<double>(sum[e / 4][e % 4]);
      sum[e / 4][e % 4] = 0;
    }
  }
  mma_store_partial(args, Bands);
}

}  // namespace pama
