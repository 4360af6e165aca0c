// A warp as the team that solves one problem (core/team.h).
#pragma once

#include "core/team.h"
#include "kernels/device.cuh"

namespace pama {

struct WarpTeam {
  __device__ static int rank() { return lane(); }
  __device__ static constexpr int size() { return kWarp; }
  __device__ void sync() const { __syncwarp(); }

  // In a butterfly every lane adds the same pairs, so all get the same bits.
  __device__ double sum(double x) const {
#pragma unroll
    for (int bits = 1; bits < kWarp; bits *= 2) x += __shfl_xor_sync(kFullWarp, x, bits);
    return x;
  }

  __device__ double largest(double x) const {
#pragma unroll
    for (int bits = 1; bits < kWarp; bits *= 2) {
      x = fmax(x, __shfl_xor_sync(kFullWarp, x, bits));
    }
    return x;
  }

  __device__ Located smallest(Located x) const {
#pragma unroll
    for (int bits = 1; bits < kWarp; bits *= 2) {
      const Located other{__shfl_xor_sync(kFullWarp, x.value, bits),
                          __shfl_xor_sync(kFullWarp, x.index, bits)};
      if (before(other, x)) x = other;
    }
    return x;
  }

  __device__ bool any(bool x) const { return __any_sync(kFullWarp, x) != 0; }
};

}  // namespace pama
