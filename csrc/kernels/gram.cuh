// Gram matrices on a GPU: partial sums of a fixed grid, then a second kernel that adds them.
//
// Up to n = 8 a thread holds all pairs in registers and takes 16 bytes of each row at a time:
// bound by memory. Beyond, a block stages 64 columns of all rows in shared memory as [column][row],
// and a thread sums a 4 x 4 tile of pairs over its share of the columns: two 16-byte loads for 16
// multiply-adds. (8 x 8 tiles would need half the loads, but their float64 sums spill.) float32
// products are chained for at most 64 columns, then added in float64.
#pragma once

#include "kernels/gradient_list.cuh"
#include "kernels/reduce.cuh"

namespace pama {

inline constexpr int kGramBlock = 256;
inline constexpr int kGramRows = 64;     // of a launch of the tile kernel
inline constexpr int kGramColumns = 64;  // staged at a time; also the longest float32 chain

template <int N>
struct Pairs {
  double entry[N * (N + 1) / 2];
};

struct GramArgs {
  PointerTable table;
  double* partial;  // [block][entry]
  bool add;         // to what earlier launches left there
};

template <class Real, int N>
struct PairSums {
  static constexpr int kPairs = N * (N + 1) / 2;
  Real part[kPairs] = {};
  double sum[kPairs] = {};
  int chained = 0;

  __device__ __forceinline__ void add(const Real (&x)[N]) {
    int e = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = i; j < N; ++j) part[e++] += x[i] * x[j];
    }
  }
  __device__ __forceinline__ void promote() {
#pragma unroll
    for (int e = 0; e < kPairs; ++e) {
      sum[e] += static_cast<double>(part[e]);
      part[e] = 0;
    }
    chained = 0;
  }
};

template <class Element, int N>
__global__ void __launch_bounds__(kGramBlock)
    gram_pairs_kernel(const __grid_constant__ GramArgs args) {
  using Real = decltype(real(Element{}));
  constexpr int width = Pack<Element>::kSize;
  const PointerTable& table = args.table;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  PairSums<Real, N> sums;
  int64_t dealt = 0;
#pragma unroll 1
  for (int piece = 0; piece < table.pieces; ++piece) {
    const int64_t columns = table.columns(piece);
    const int64_t packs = table.aligned(piece) ? columns / width : 0;
#pragma unroll 1
    for (int64_t u = first_unit(dealt); u < packs; u += threads) {
      Pack<Element> pack[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Element* row = table.row<Element>(piece, i);
        pack[i] = row ? reinterpret_cast<const Pack<Element>*>(row)[u] : Pack<Element>{};
      }
#pragma unroll
      for (int k = 0; k < width; ++k) {
        Real x[N];
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = real(pack[i].at[k]);
        sums.add(x);
      }
      if ((sums.chained += width) > kGramColumns - width) sums.promote();
    }
    dealt += packs;
    const int64_t rest = columns - packs * width;
#pragma unroll 1
    for (int64_t u = first_unit(dealt); u < rest; u += threads) {
      Real x[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Element* row = table.row<Element>(piece, i);
        x[i] = row ? real(row[packs * width + u]) : Real(0);
      }
      sums.add(x);
      if ((sums.chained += 1) > kGramColumns - width) sums.promote();
    }
    dealt += rest;
  }
  sums.promote();
  constexpr int pairs = PairSums<Real, N>::kPairs;
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * pairs;
  __shared__ double shared[kGramBlock / kWarp];
  // One entry at a time: a struct of them would double the registers.
#pragma unroll
  for (int e = 0; e < pairs; ++e) {
    double x = sums.sum[e];
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      x += __shfl_down_sync(kFullWarp, x, distance);
    }
    __syncthreads();  // the last entry has been read
    if (lane() == 0) shared[threadIdx.x / kWarp] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = args.add ? to[e] : 0;
      for (int w = 0; w < kGramBlock / kWarp; ++w) total += shared[w];
      to[e] = total;
    }
  }
}

// --- tiles ---------------------------------------------------------------------------------------

inline constexpr int kTileRows = 4;

PAMA_INLINE int tile_groups(int rows) { return (rows + kTileRows - 1) / kTileRows; }
PAMA_INLINE int tile_count(int rows) { return tile_groups(rows) * (tile_groups(rows) + 1) / 2; }

// Tile t of the upper triangle, row by row: groups (first, second) of rows, first <= second.
PAMA_INLINE void tile_at(int t, int groups, int& first, int& second) {
  first = 0;
  while (t >= groups - first) t -= groups - first++;
  second = first + t;
}

// Reals between a staged column and the next: rows in whole tiles, and off each other's banks.
PAMA_INLINE int stage_stride(int rows) { return (tile_groups(rows) + 1) * kTileRows; }

PAMA_HD inline int64_t tile_shared_bytes(int rows, int64_t real_size) {
  const int64_t stage = kGramColumns * stage_stride(rows) * real_size;
  const int64_t sums = tile_count(rows) * kTileRows * kTileRows * int64_t{8};
  return stage > sums ? stage : sums;
}

template <class Element, class Real>
__device__ __forceinline__ void stage(const PointerTable& table, int piece, int64_t first,
                                      int columns, Real* to) {
  const int rows = table.rows, padded = tile_groups(rows) * kTileRows;
  for (int u = static_cast<int>(threadIdx.x); u < padded * kGramColumns;
       u += static_cast<int>(blockDim.x)) {
    const int i = u / kGramColumns, k = u % kGramColumns;
    const Element* row = i < rows ? table.row<Element>(piece, i) : nullptr;
    to[k * stage_stride(rows) + i] = row && k < columns ? real(row[first + k]) : Real(0);
  }
}

template <class Element>
__global__ void __launch_bounds__(kGramBlock)
    gram_tiles_kernel(const __grid_constant__ GramArgs args) {
  using Real = decltype(real(Element{}));
  struct alignas(16) Rows {
    Real at[kTileRows];
  };
  const PointerTable& table = args.table;
  const int tiles = tile_count(table.rows), stride = stage_stride(table.rows);
  const int slices = kGramBlock / tiles, thread = static_cast<int>(threadIdx.x);
  const int tile = thread % tiles, slice = thread / tiles;
  int first = 0, second = 0;
  tile_at(tile, tile_groups(table.rows), first, second);
  Real* staged = reinterpret_cast<Real*>(dynamic_shared());
  double sum[kTileRows][kTileRows] = {};
  int64_t chunk = blockIdx.x;  // of this piece; negative chunks were dealt to earlier pieces
#pragma unroll 1
  for (int piece = 0; piece < table.pieces; ++piece) {
    const int64_t columns = table.columns(piece);
    const int64_t chunks = (columns + kGramColumns - 1) / kGramColumns;
#pragma unroll 1
    for (; chunk < chunks; chunk += gridDim.x) {
      const int64_t at = chunk * kGramColumns, left = columns - at;
      const int count = left < kGramColumns ? static_cast<int>(left) : kGramColumns;
      __syncthreads();  // the last chunk has been used
      stage<Element>(table, piece, at, count, staged);
      __syncthreads();
      if (slice < slices) {
        Real part[kTileRows][kTileRows] = {};
        for (int k = slice; k < count; k += slices) {
          const Rows a = *reinterpret_cast<const Rows*>(staged + k * stride + first * kTileRows);
          const Rows b = *reinterpret_cast<const Rows*>(staged + k * stride + second * kTileRows);
#pragma unroll
          for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
            for (int j = 0; j < kTileRows; ++j) part[i][j] += a.at[i] * b.at[j];
          }
        }
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
          for (int j = 0; j < kTileRows; ++j) sum[i][j] += static_cast<double>(part[i][j]);
        }
      }
    }
    chunk -= chunks;
  }
  double* total = dynamic_shared() + tile * kTileRows * kTileRows;
  for (int s = 0; s < slices; ++s) {
    __syncthreads();
    if (slice != s) continue;
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
      for (int j = 0; j < kTileRows; ++j) {
        const int e = i * kTileRows + j;
        total[e] = s == 0 ? sum[i][j] : total[e] + sum[i][j];
      }
    }
  }
  __syncthreads();
  const int entries = tiles * kTileRows * kTileRows;
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * entries;
  for (int e = thread; e < entries; e += kGramBlock) {
    to[e] = (args.add ? to[e] : 0) + dynamic_shared()[e];
  }
}

// --- the sum of the partial sums -----------------------------------------------------------------

struct GramFinishArgs {
  const double* partial;
  double* gram;  // [n][n]; the entries are added to it
  int64_t n, blocks, entries;
  int rows;           // of the partial sums
  bool tiles;         // their layout
  int64_t low, high;  // where the first `split` rows lie in the matrix, and the others
  int split;
  bool inside_low, inside_high;  // whether pairs within each of the two belong to this launch
};

// A warp for each entry.
__global__ void __launch_bounds__(128)
    gram_finish_kernel(const __grid_constant__ GramFinishArgs args) {
  for (int64_t e = warp(); e < args.entries; e += gridDim.x * warps_per_block()) {
    int i = 0, j = 0;
    if (args.tiles) {
      const int within = static_cast<int>(e % (kTileRows * kTileRows));
      tile_at(static_cast<int>(e / (kTileRows * kTileRows)), tile_groups(args.rows), i, j);
      i = i * kTileRows + within / kTileRows;
      j = j * kTileRows + within % kTileRows;
    } else {
      int left = static_cast<int>(e);
      while (left >= args.rows - i) left -= args.rows - i++;
      j = i + left;
    }
    const bool wanted = i < args.split ? j >= args.split || args.inside_low : args.inside_high;
    if (i > j || j >= args.rows || !wanted) continue;
    double sum = 0;
    for (int64_t b = lane(); b < args.blocks; b += kWarp) sum += args.partial[b * args.entries + e];
    for (int distance = 1; distance < kWarp; distance *= 2) {
      sum += __shfl_down_sync(kFullWarp, sum, distance);
    }
    if (lane() == 0) {
      const int64_t row = i < args.split ? args.low + i : args.high + i - args.split;
      const int64_t column = j < args.split ? args.low + j : args.high + j - args.split;
      args.gram[row * args.n + column] += sum;
      if (row != column) args.gram[column * args.n + row] += sum;
    }
  }
}

}  // namespace pama
