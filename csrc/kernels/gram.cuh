// Gram matrices on a GPU: partial sums of a fixed grid, then a second kernel that adds them.
//
// On tensor cores where those of float64 are fast (gram_fragments.cuh), and for more than 8 rows of
// halves (gram_mma.cuh). Elsewhere up to n = 8 a thread holds all pairs in registers and takes 16
// bytes of each row at a time: float32 products are chained for at most 64 columns, then added in
// float64. More rows of float32 and float64 go to gram_tiles.cuh.
#pragma once

#include "kernels/gram_fragments.cuh"
#include "kernels/gram_mma.cuh"
#include "kernels/gram_tiles.cuh"
#include "kernels/reduce.cuh"

namespace pama {

inline constexpr int kGramBlock = 256;
inline constexpr int kGramRows = 64;     // of a launch
inline constexpr int kGramColumns = 64;  // the longest float32 chain

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
__global__ void __launch_bounds__(kGramBlock, 1)
    gram_pairs_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  using Real = decltype(real(Element{}));
  constexpr int width = Pack<Element>::kSize;
  // Packs of each row that a thread loads at once: eight rows' worth, where it has fewer.
  constexpr int at_once = N > 4 ? 1 : N > 2 ? 2 : N > 1 ? 4 : 8;
  const PointerTable& table = args.table;
  const int thread = static_cast<int>(threadIdx.x);
  PairSums<Real, N> sums;
#pragma unroll 1
  for (ChunkWalk<at_once * kGramBlock * width> walk(table, blockIdx.x); walk.found();
       walk.chunk += gridDim.x) {
    const int columns = walk.columns(), packs = table.aligned(walk.piece) ? columns / width : 0;
    const auto row = [&](int i) { return table.row<Element>(walk.piece, i) + walk.first(); };
    const auto add = [&](const auto& pack, int u) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        Real x[N];
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = real(pack[u][i].at[k]);
        sums.add(x);
      }
      if ((sums.chained += width) > kGramColumns - width) sums.promote();
    };
    if (packs == at_once * kGramBlock) {
      Pack<Element> pack[at_once][N];
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          pack[u][i] = reinterpret_cast<const Pack<Element>*>(row(i))[u * kGramBlock + thread];
        }
      }
#pragma unroll
      for (int u = 0; u < at_once; ++u) add(pack, u);
      continue;
    }
#pragma unroll 1
    for (int u = thread; u < packs; u += kGramBlock) {
      Pack<Element> pack[1][N];
#pragma unroll
      for (int i = 0; i < N; ++i) pack[0][i] = reinterpret_cast<const Pack<Element>*>(row(i))[u];
      add(pack, 0);
    }
#pragma unroll 1
    for (int k = packs * width + thread; k < columns; k += kGramBlock) {
      Real x[N];
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = real(row(i)[k]);
      sums.add(x);
      if ((sums.chained += 1) > kGramColumns - width) sums.promote();
    }
  }
  sums.promote();
  constexpr int pairs = PairSums<Real, N>::kPairs;
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * pairs;
  __shared__ SharedArray<double, kGramBlock / kWarp> shared;
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

// --- the sum of the partial sums -----------------------------------------------------------------

struct GramFinishArgs {
  const double* partial;
  double* gram;  // [n][n]; the entries are added to it
  int64_t n, blocks, entries;
  int rows;  // of the partial sums
  GramLayout layout;
  int objective[kGramRows];  // of each row: where it lies in the matrix
  // Whether pairs within the first `split` rows, and within the others, belong to this launch.
  int split;
  bool inside_low, inside_high;
};

// A warp for each entry.
__global__ void __launch_bounds__(128)
    gram_finish_kernel(const __grid_constant__ GramFinishArgs args) {
  wait_for_inputs();
  for (int64_t e = warp(); e < args.entries; e += gridDim.x * warps_per_block()) {
    int i = 0, j = 0;
    gram_entry_at(args.layout, args.rows, static_cast<int>(e), i, j);
    const bool wanted = i < args.split ? j >= args.split || args.inside_low : args.inside_high;
    if (i > j || j >= args.rows || !wanted) continue;
    double sum = lane_sum(args.partial + e, args.blocks, args.entries);
    for (int distance = 1; distance < kWarp; distance *= 2) {
      sum += __shfl_down_sync(kFullWarp, sum, distance);
    }
    if (lane() == 0) {
      const int64_t row = args.objective[i], column = args.objective[j];
      args.gram[row * args.n + column] += sum;
      if (row != column) args.gram[column * args.n + row] += sum;
    }
  }
}

}  // namespace pama
