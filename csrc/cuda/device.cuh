// CUDA's names for the kernel bodies: the real ones, or the host emulator's.
#pragma once

#if defined(PAMA_EMULATE)
#include "testing/emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace pama {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int64_t warps_per_block() { return blockDim.x / kWarp; }

// Index of this warp in the grid.
__device__ __forceinline__ int64_t warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
}

// The first statement of every kernel. Where the device can, a kernel is started while the one
// before it in the stream still ends (launch.h), so that the start is not waited for; what that one
// writes is there after this alone.
__device__ __forceinline__ void wait_for_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// A block's static shared memory: `__shared__ SharedArray<double, 8> x;`.
#if defined(PAMA_EMULATE)
using emulator::SharedArray;
#else
template <class T, int N>
using SharedArray = T[N];
#endif

// The block's dynamic shared memory.
__device__ __forceinline__ double* dynamic_shared() {
#if defined(PAMA_EMULATE)
  return emulator::machine.shared.data();
#else
  extern __shared__ double shared_memory[];
  return shared_memory;
#endif
}

}  // namespace pama
