// Gram matrices of 9 to 64 rows of float32 (and float64): tiles of pairs over staged columns.
//
// A stage holds, for each of a block's `chunks` chunks, 16 packs of 16 bytes of every row (64
// float32 columns), rows 17 packs apart: the 16 lanes of a team read one pack each of the same
// row, in no two the same bank. A team sums one tile, 8 x 8 for float32: 16 shared loads for
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
// needed at 700 ns. Predicted from that: n = 16 at 80 % of the copy bandwidth or
// more; n = 32 at 60 to 75 %, bound by shared memory. Measured on an H200, which has
// gram_fragments.cuh for them since: 69 and 42 %.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/gram_partial.cuh"

namespace pama {

inline constexpr int kTileBlock = 192;  // at most: two such blocks leave 168 registers a thread
inline constexpr int kTileStages = 3;
inline constexpr int kTeam = 16;              // lanes that share a tile
inline constexpr int kTilePitch = kTeam + 1;  // packs from a staged row to the next
inline constexpr int kTileChain = 15;         // packs of a lane between promotions

template <class Element>
inline constexpr int kTileHeight = sizeof(Element) == 8 ? 4 : 8;

// How a block's teams share the tiles: all tiles at once for as many chunks as fit, or, if they do
// not fit, a set of the tiles.
struct TilePlan {
  int groups, tiles, sets, tiles_of_set, chunks;

  PAMA_HD TilePlan(int rows, int height)
      : groups(tile_groups(rows, height)), tiles(tile_count(rows, height)) {
    constexpr int teams = kTileBlock / kTeam;
    sets = (tiles + teams - 1) / teams;
    tiles_of_set = (tiles + sets - 1) / sets;
    chunks = teams / tiles_of_set;
  }
  PAMA_HD int threads() const {
    return (chunks * tiles_of_set * kTeam + kWarp - 1) / kWarp * kWarp;
  }
  // Packs of one chunk, and of one stage.
  PAMA_HD int chunk_packs(int height) const { return groups * height * kTilePitch; }
  PAMA_HD int stage_packs(int height) const { return chunks * chunk_packs(height); }
  PAMA_HD int64_t shared_bytes(int height) const {
    return int64_t{kTileStages} * stage_packs(height) * 16;
  }
};

// Walks the chunks that are dealt to one group of teams, over the pieces of a table.
template <class Element>
struct ChunkCursor {
  static constexpr int64_t kColumns = kTeam * Pack<Element>::kSize;

  const PointerTable& table;
  int64_t chunk;  // of this piece
  int piece = 0;
  bool aligned;

  __device__ __forceinline__ ChunkCursor(const PointerTable& table, int64_t first)
      : table(table), chunk(first), aligned(table.aligned(0)) {}

  __device__ __forceinline__ static int64_t chunks(const PointerTable& table, int piece) {
    return (table.columns(piece) + kColumns - 1) / kColumns;
  }

  // Starts to copy pack `pack` of the rows first, first + step, ... of the chunk; zeros past the
  // last one.
  __device__ __forceinline__ void fetch(Pack<Element>* to, int pack, int first, int step,
                                        int rows) {
    while (piece < table.pieces && chunk >= chunks(table, piece)) {
      chunk -= chunks(table, piece);
      if (++piece < table.pieces) aligned = table.aligned(piece);
    }
    constexpr int width = Pack<Element>::kSize;
    const bool inside = piece < table.pieces;
    const int64_t columns = inside ? table.columns(piece) : 0;
    const int64_t at = chunk * kColumns + pack * width;
#pragma unroll 1
    for (int i = first; i < rows; i += step) {
      const Element* row = inside && i < table.rows ? table.row<Element>(piece, i) : nullptr;
      Pack<Element>& pad = to[i * kTilePitch + pack];
      if (row && aligned && at + width <= columns) {
        copy_async(&pad, row + at);
      } else {
#pragma unroll
        for (int k = 0; k < width; ++k) {
          pad.at[k] = row && at + k < columns ? row[at + k] : Element(0);
        }
      }
    }
  }
};

template <class Element, int Height>
struct TileSums {
  static constexpr int kEntries = Height * Height;
  static constexpr int kKept = kEntries / kTeam;  // of a lane, from its kKept-th on

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
    halve<kEntries / 2, kTeam / 2>();
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
  constexpr int height = kTileHeight<Element>;
  using Sums = TileSums<Element, height>;
  const PointerTable& table = args.table;
  const TilePlan plan(table.rows, height);
  const int block = static_cast<int>(blockIdx.x) / plan.sets;
  const int blocks = static_cast<int>(gridDim.x) / plan.sets;
  const int first_tile = static_cast<int>(blockIdx.x) % plan.sets * plan.tiles_of_set;
  const int team = static_cast<int>(threadIdx.x) / kTeam, pack = lane() % kTeam;
  const int local = team % plan.tiles_of_set, group = team / plan.tiles_of_set;
  // A spare half of the last warp, and teams past the last tile, sum tile 0 for nobody.
  const bool spare = group >= plan.chunks, idle = spare || first_tile + local >= plan.tiles;
  int first = 0, second = 0;
  tile_at(idle ? 0 : first_tile + local, plan.groups, first, second);

  int64_t chunks = 0;
  for (int piece = 0; piece < table.pieces; ++piece) {
    chunks += ChunkCursor<Element>::chunks(table, piece);
  }
  const int64_t stride = static_cast<int64_t>(blocks) * plan.chunks;
  const int64_t steps = (chunks - block * plan.chunks + stride - 1) / stride;
  ChunkCursor<Element> cursor(table, static_cast<int64_t>(block) * plan.chunks + group);
  Pack<Element>* const stages = reinterpret_cast<Pack<Element>*>(dynamic_shared()) +
                                (spare ? 0 : group) * plan.chunk_packs(height);
  const auto fetch = [&](int64_t step) {
    if (step < steps && !spare) {
      cursor.fetch(stages + step % kTileStages * plan.stage_packs(height), pack, local,
                   plan.tiles_of_set, plan.groups * height);
      cursor.chunk += stride;
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
    const Pack<Element>* stage = stages + step % kTileStages * plan.stage_packs(height) + pack;
    sums.add(stage + first * height * kTilePitch, stage + second * height * kTilePitch);
    if (++chained == kTileChain) {
      sums.promote();
      chained = 0;
    }
  }
  sums.promote();
  double* total = dynamic_shared() + (local * kTeam + pack) * Sums::kKept;
  for (int g = 0; g < plan.chunks; ++g) {
    __syncthreads();
    if (group != g || idle) continue;
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
