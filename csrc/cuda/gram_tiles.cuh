// Gram matrices of 9 to 64 rows of float32 (and float64): tiles of pairs over staged columns.
//
// A stage holds, for each of a block's `chunks` chunks, 16 packs of 16 bytes of every row (64
// float32 columns), rows 17 packs apart: the 16 lanes of a half of a warp read one pack each of the
// same row, in no two the same bank. A half sums one tile, 8 x 8 for float32: 16 shared loads for
// 256 multiply-adds, 1 to 16 (4 x 4 tiles: 1 to 8). cp.async fills two stages while a third is
// used. float32 chains end after 60 columns: the 16 lanes' sums are then added pairwise in four
// float32 steps, half of the entries going to either half of the lanes and so on, until a lane
// holds four entries, which it adds in float64: 8 registers, where a tile's own would be 128.
// float64 takes 4 x 4 tiles.
//
// Counts for an H200 at 4.8 TB/s (33.5 T multiply-adds a second), float32: 192 multiply-adds per
// 64 bytes at n = 16, 14.4 T/s or 43 % of its rate; 640 per 128 bytes at n = 32, 24 T/s or 72 %;
// 2304 per 256 bytes at n = 64, beyond it (129 %): bound by arithmetic. Shared memory is as busy:
// 64 cycles of a multiprocessor for a warp's 16 loads of 512 bytes, as for its 256 multiply-adds,
// and the copies' writes besides, 53 and 86 % of its time at n = 16 and 32. Two blocks of 6
// (n = 16) or 5 (n = 32) warps share a multiprocessor, with 64 or 32 KB in flight; 25 KB are
// needed at 700 ns.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/gram_partial.cuh"

namespace pama {

inline constexpr int kTileBlock = 192;  // at most: two such blocks leave 168 registers a thread
inline constexpr int kTileStages = 3;
inline constexpr int kTileLanes = 16;              // half of a warp, which sums a tile
inline constexpr int kTilePitch = kTileLanes + 1;  // packs from a staged row to the next
inline constexpr int kTileChain = 15;              // packs of a lane between promotions

// How the halves of a block's warps share the tiles: all tiles at once for as many chunks as fit,
// or, if they do not fit, a set of the tiles.
template <class Element>
struct TilePlan {
  static constexpr int kHeight = sizeof(Element) == 8 ? 4 : 8;

  int groups, tiles, sets, tiles_of_set, chunks;

  PAMA_HD explicit TilePlan(int rows)
      : groups(tile_groups(rows, kHeight)), tiles(tile_count(rows, kHeight)) {
    constexpr int halves = kTileBlock / kTileLanes;
    sets = (tiles + halves - 1) / halves;
    tiles_of_set = (tiles + sets - 1) / sets;
    chunks = halves / tiles_of_set;
  }
  PAMA_HD int threads() const {
    return (chunks * tiles_of_set * kTileLanes + kWarp - 1) / kWarp * kWarp;
  }
  // Packs of one chunk, and of one stage.
  PAMA_HD int chunk_packs() const { return groups * kHeight * kTilePitch; }
  PAMA_HD int stage_packs() const { return chunks * chunk_packs(); }
  PAMA_HD int64_t shared_bytes() const { return int64_t{kTileStages} * stage_packs() * 16; }
};

template <class Element, int Height>
struct TileSums {
  static constexpr int kEntries = Height * Height;
  static constexpr int kKept = kEntries / kTileLanes;  // of a lane, from its kKept-th on

  Element part[kEntries] = {};
  double sum[kKept] = {};

  __device__ __forceinline__ void add(const Pack<Element>* first, const Pack<Element>* second) {
    Pack<Element> a[Height];
#pragma unroll
    for (int i = 0; i < Height; ++i) a[i] = first[i * kTilePitch];
#pragma unroll
    for (int j = 0; j < Height; ++j) {
      const Pack<Element> b = second[j * kTilePitch];
#pragma unroll
      for (int i = 0; i < Height; ++i) {
#pragma unroll
        for (int k = 0; k < Pack<Element>::kSize; ++k) part[i * Height + j] += a[i].at[k] * b.at[k];
      }
    }
  }

  // Keeps half of the entries, gives the other half to the lane that keeps those, and so on.
  template <int Half, int Bit>
  __device__ __forceinline__ void halve() {
    const bool upper = lane() & Bit;
#pragma unroll
    for (int e = 0; e < Half; ++e) {
      const Element give = upper ? part[e] : part[e + Half];
      const Element keep = upper ? part[e + Half] : part[e];
      part[e] = keep + __shfl_xor_sync(kFullWarp, give, Bit);
    }
    if constexpr (Bit > 1) halve<Half / 2, Bit / 2>();
  }

  __device__ __forceinline__ void promote() {
    halve<kEntries / 2, kTileLanes / 2>();
#pragma unroll
    for (int e = 0; e < kKept; ++e) sum[e] += static_cast<double>(part[e]);
#pragma unroll
    for (int e = 0; e < kEntries; ++e) part[e] = 0;
  }
};

template <class Element>
__global__ void __launch_bounds__(kTileBlock, 2)
    gram_tiles_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  using Plan = TilePlan<Element>;
  constexpr int width = Pack<Element>::kSize, height = Plan::kHeight;
  using Sums = TileSums<Element, height>;
  const PointerTable& table = args.table;
  const Plan plan(table.rows);
  const int block = static_cast<int>(blockIdx.x) / plan.sets;
  const int blocks = static_cast<int>(gridDim.x) / plan.sets;
  const int first_tile = static_cast<int>(blockIdx.x) % plan.sets * plan.tiles_of_set;
  const int half = static_cast<int>(threadIdx.x) / kTileLanes, pack = lane() % kTileLanes;
  const int local = half % plan.tiles_of_set, own = half / plan.tiles_of_set;  // tile and chunk
  // A spare half of the last warp, and halves past the last tile, sum tile 0 for nobody.
  const bool spare = own >= plan.chunks, idle = spare || first_tile + local >= plan.tiles;
  int first = 0, second = 0;
  tile_at(idle ? 0 : first_tile + local, plan.groups, first, second);

  ChunkWalk<kTileLanes * width> walk(table, static_cast<int64_t>(block) * plan.chunks + own);
  int64_t chunks = 0;
  for (int piece = 0; piece < table.pieces; ++piece) chunks += walk.chunks(piece);
  const int64_t stride = static_cast<int64_t>(blocks) * plan.chunks;
  const int64_t steps = (chunks - block * plan.chunks + stride - 1) / stride;
  Pack<Element>* const stages =
      reinterpret_cast<Pack<Element>*>(dynamic_shared()) + (spare ? 0 : own) * plan.chunk_packs();
  // Starts to copy this lane's pack of the rows that its half takes; zeros past the last one.
  const auto fetch = [&](int64_t step) {
    if (step < steps && !spare) {
      Pack<Element>* to = stages + step % kTileStages * plan.stage_packs() + pack;
      const bool inside = walk.found();
      const int columns = inside ? walk.columns() : 0, at = pack * width;
      const bool whole = at + width <= columns && table.aligned(walk.piece);
#pragma unroll 1
      for (int i = local; i < plan.groups * height; i += plan.tiles_of_set) {
        const bool given = inside && i < table.rows;
        const Element* row = given ? table.row<Element>(walk.piece, i) + walk.first() : nullptr;
        if (given && whole) {
          copy_async(&to[i * kTilePitch], row + at);
        } else {
          to[i * kTilePitch] = load_pack(row, at, columns, false);
        }
      }
      walk.chunk += stride;
    }
    commit_copies();
  };

  Sums sums;
  int chained = 0;
  for (int step = 0; step < kTileStages - 1; ++step) fetch(step);
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    await_copies<kTileStages - 2>();
    __syncthreads();  // this step's stage is full, and the last one's has been used
    fetch(step + kTileStages - 1);
    const Pack<Element>* stage = stages + step % kTileStages * plan.stage_packs() + pack;
    sums.add(stage + first * height * kTilePitch, stage + second * height * kTilePitch);
    if (++chained == kTileChain) {
      sums.promote();
      chained = 0;
    }
  }
  sums.promote();
  double* total = dynamic_shared() + (local * kTileLanes + pack) * Sums::kKept;
  for (int g = 0; g < plan.chunks; ++g) {
    __syncthreads();
    if (own != g || idle) continue;
#pragma unroll
    for (int e = 0; e < Sums::kKept; ++e) total[e] = (g == 0 ? 0 : total[e]) + sums.sum[e];
  }
  __syncthreads();
  const int left = plan.tiles - first_tile;
  const int entries = (left < plan.tiles_of_set ? left : plan.tiles_of_set) * Sums::kEntries;
  double* to =
      args.partial + (static_cast<int64_t>(block) * plan.tiles + first_tile) * Sums::kEntries;
  for (int e = static_cast<int>(threadIdx.x); e < entries; e += static_cast<int>(blockDim.x)) {
    to[e] = (args.add ? to[e] : 0) + dynamic_shared()[e];
  }
}

}  // namespace pama
