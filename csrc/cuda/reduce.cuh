// Reductions over the threads of a block, in a fixed order, of any struct of doubles.
#pragma once

#include <functional>

#include "core/view.h"
#include "cuda/warp_team.cuh"

namespace pama {

template <class T>
__device__ __forceinline__ T shuffle_down(T value, int distance) {
  static_assert(sizeof(T) % sizeof(double) == 0);
  double* words = reinterpret_cast<double*>(&value);
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(double); ++i) {
    words[i] = __shfl_down_sync(kFullWarp, words[i], distance);
  }
  return value;
}

// The sum of `count` numbers that lie `stride` apart, in every lane of a warp. Eight loads of each
// are in flight at once.
__device__ __forceinline__ double warp_sum(const double* from, int64_t count, int64_t stride) {
  constexpr int ahead = 8;
  double sum = 0;
#pragma unroll 1
  for (int64_t first = lane(); first < count; first += ahead * kWarp) {
    double x[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int64_t i = first + k * kWarp;
      x[k] = i < count ? from[i * stride] : 0;
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) sum += x[k];
  }
  return WarpTeam{}.sum(sum);
}

// `join` need not commute: it is applied to neighbours, left to right. Lane 0 has the result.
template <class T, class Join>
__device__ __forceinline__ T warp_reduce(T value, const Join& join) {
  // Rolled: a join may hold a float64 division, which five times over costs registers and spills.
#pragma unroll 1
  for (int distance = 1; distance < kWarp; distance *= 2) {
    value = join(value, shuffle_down(value, distance));
  }
  return value;
}

// Every thread of the block gets the result; T{} is the identity of `join`. Blocks of whole warps.
// The result lies apart from the warps' parts: so two calls in a row need no barrier between them,
// as each has one between its last reads of either and the next call's writes.
template <class T, class Join>
__device__ __forceinline__ T block_reduce(T value, const Join& join) {
  __shared__ SharedArray<T, 1 + kWarp> result;
  T* parts = result + 1;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  value = warp_reduce(value, join);
  if (lane() == 0) parts[warp] = value;
  __syncthreads();
  if (warp == 0) {
    const T part = warp_reduce(lane() < warps_per_block() ? parts[lane()] : T{}, join);
    if (lane() == 0) result[0] = part;
  }
  __syncthreads();
  return result[0];
}

// The sums of several numbers over a block, in a fixed order, by way of [warp][entry].
template <int Threads>
struct BlockSums {
  double* of_warps;
  int entries;

  __device__ __forceinline__ double& of_warp(int warp, int e) const {
    return of_warps[warp * entries + e];
  }
  __device__ __forceinline__ void add(int e, double x) const {
    x = WarpTeam{}.sum(x);
    if (lane() == 0) of_warp(threadIdx.x / kWarp, e) = x;
  }
  // After a barrier; on top of `sum`.
  __device__ __forceinline__ double total(int e, double sum = 0) const {
    for (int w = 0; w < Threads / kWarp; ++w) sum += of_warp(w, e);
    return sum;
  }
};

}  // namespace pama
