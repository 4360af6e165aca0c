// Reductions over the threads of a block, in a fixed order, of any struct of doubles.
#pragma once

#include "core/view.h"
#include "cuda/device.cuh"

namespace pama {

template <class T>
__device__ __forceinline__ T shuffle_down(const T& value, int distance) {
  constexpr int words = sizeof(T) / sizeof(double);
  static_assert(sizeof(T) == words * sizeof(double));
  struct Words {
    double word[words];
  };
  Words all = bit_cast<Words>(value);
#pragma unroll
  for (int i = 0; i < words; ++i) {
    all.word[i] = __shfl_down_sync(kFullWarp, all.word[i], distance);
  }
  return bit_cast<T>(all);
}

// Of `count` numbers that lie `stride` apart, the sum of those that are this lane's. Eight loads
// are in flight at once.
__device__ __forceinline__ double lane_sum(const double* from, int64_t count, int64_t stride) {
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
  return sum;
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
  constexpr int words = sizeof(T) / sizeof(double);
  __shared__ SharedArray<double, (1 + kWarp) * words> result;
  double* parts = result + words;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  value = warp_reduce(value, join);
  if (lane() == 0) memcpy(parts + warp * words, &value, sizeof(T));
  __syncthreads();
  if (warp == 0) {
    T part{};
    if (lane() < warps_per_block()) memcpy(&part, parts + lane() * words, sizeof(T));
    part = warp_reduce(part, join);
    if (lane() == 0) memcpy(result, &part, sizeof(T));
  }
  __syncthreads();
  memcpy(&value, result, sizeof(T));
  return value;
}

}  // namespace pama
