// The partial sums of a Gram matrix: who computes them writes one of these layouts, [block][entry].
#pragma once

#include "cuda/mma.cuh"
#include "cuda/pointer_table.cuh"

namespace pama {

// The rows of a tile, which is square; those of kMma are of two mma tiles (16 x 8) side by side.
enum class GramLayout : int { kPairs = 1, kTiles4 = 4, kTiles8 = 8, kMma = 16 };

struct GramArgs {
  PointerTable table;
  double* partial;
  bool add;  // to what earlier launches left there
};

PAMA_INLINE int tile_groups(int rows, int height) { return (rows + height - 1) / height; }
PAMA_INLINE int tile_count(int rows, int height) {
  return tile_groups(rows, height) * (tile_groups(rows, height) + 1) / 2;
}

// Tile t of the upper triangle, row by row: groups (first, second) of rows, first <= second.
PAMA_INLINE void tile_at(int t, int groups, int& first, int& second) {
  first = 0;
  while (t >= groups - first) t -= groups - first++;
  second = first + t;
}

// mma tiles on and above the diagonal of `bands` bands of 16 rows, band by band.
PAMA_INLINE constexpr int mma_count(int bands) { return bands * (bands + 1); }

PAMA_HD inline int gram_entries(GramLayout layout, int rows) {
  const int height = static_cast<int>(layout);
  return tile_count(rows, height) * height * height;
}

// The pair (i, j) of rows that entry e holds; i > j and rows past the last are not wanted.
PAMA_INLINE void gram_entry_at(GramLayout layout, int rows, int e, int& i, int& j) {
  const int height = static_cast<int>(layout), within = e % (height * height);
  int row = within / height, column = within % height;
  if (layout == GramLayout::kMma) {
    const int lane = within % kWarp, c = within / kWarp % 4;
    row = mma_c_row(lane, c);
    column = within / (4 * kWarp) * 8 + mma_c_column(lane, c);
  }
  tile_at(e / (height * height), tile_groups(rows, height), i, j);
  i = i * height + row;
  j = j * height + column;
}

// --- what kernels of bands of 16 rows share ------------------------------------------------------

inline constexpr int kMmaBlock = 128;

// Of the sums, as [entry][thread].
constexpr int64_t mma_shared_bytes(int bands) {
  return int64_t{mma_count(bands)} * 4 * kMmaBlock * 8;
}

// The lane's row of each half of a band, 8 rows, from where the chunk begins; null past the last
// one.
template <class Element, int64_t Columns, int Halves>
__device__ __forceinline__ void mma_rows(const PointerTable& table, const ChunkWalk<Columns>& walk,
                                         const Element* (&row)[Halves]) {
#pragma unroll
  for (int half = 0; half < Halves; ++half) {
    const int i = half * 8 + lane() / 4;
    row[half] = i < table.rows ? table.row<Element>(walk.piece, i) + walk.first() : nullptr;
  }
}

// Adds up the warps' sums in shared memory, of so many bands of 16 rows.
__device__ __forceinline__ void mma_store_partial(const GramArgs& args, int bands) {
  __syncthreads();
  const int entries = mma_count(bands) * 4 * kWarp;
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * entries;
  for (int e = static_cast<int>(threadIdx.x); e < entries; e += kMmaBlock) {
    const double* from = dynamic_shared() + e / kWarp * kMmaBlock + e % kWarp;
    double total = args.add ? to[e] : 0;
    for (int w = 0; w < kMmaBlock; w += kWarp) total += from[w];
    to[e] = total;
  }
}

}  // namespace pama
