// Launches kernels on the device and current stream of a tensor, or on the host emulator.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <type_traits>

#include "cuda/device.cuh"
#include "tensors/tensor.h"

#if defined(PAMA_EMULATE)
// The same launchers, run on the host: their ops live in a namespace of their own, on the CPU key.
#define PAMA_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(pama_ops_emulated, CPU, m)
#else
#include <torch/csrc/stable/accelerator.h>

#include "cuda/current_stream.h"
#define PAMA_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(pama_ops, CUDA, m)
#endif

namespace pama {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// choose(constant) with a number from 1 to `Most` as a constant.
template <int Most, class Choose>
auto with_number(int n, const Choose& choose) {
  if constexpr (Most > 1) {
    if (n < Most) return with_number<Most - 1>(n, choose);
  }
  return choose(std::integral_constant<int, Most>{});
}

// Bytes of static shared memory that no kernel exceeds: tests/test_kernel_resources.py.
inline constexpr int64_t kStaticShared = 4096;

#if defined(PAMA_EMULATE)

class Launcher {
 public:
  explicit Launcher(const Tensor&) {}
  bool double_is_fast() const { return true; }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t grid, int block, int64_t shared,
                  const Arguments&... arguments) const {
    emulator::run(grid, block, shared, [&] { kernel(arguments...); });
  }
};

#else

class Launcher {
 public:
  explicit Launcher(const Tensor& x) : guard_(x.get_device_index()), device_(x.get_device_index()) {
    const CurrentStream current_stream = current_stream_function();
    if (!current_stream) throw std::runtime_error("pama_ops: this torch has no CUDA support");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Whether the device's double precision is at least half as fast as single.
  bool double_is_fast() const {
    int ratio = 0;
    check(cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device_));
    return ratio <= 2;
  }

  // `shared` bytes of dynamic shared memory; an empty grid launches nothing.
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t grid, int block, int64_t shared,
                  const Arguments&... arguments) const {
    if (grid == 0) return;
    if (grid > std::numeric_limits<int32_t>::max()) {
      throw std::runtime_error("pama_ops: a launch of " + std::to_string(grid) +
                               " blocks is more than a GPU's grid holds");
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(static_cast<unsigned>(block));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream_;
    // A block has 48 KB without asking, of which a kernel's static arrays take some.
    if (shared > 48 * 1024 - kStaticShared) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)));
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = starts_early(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

 private:
  // Whether this device's kernels wait for their inputs themselves (wait_for_inputs in device.cuh),
  // as those compiled for 9.0 and later do. All kernels are compiled for the same architectures.
  bool starts_early(const void* kernel) const {
    constexpr int kDevices = 64;
    static std::array<std::atomic<int>, kDevices> architecture{};  // 0: not asked yet
    if (device_ >= kDevices) return false;
    int known = architecture[device_].load(std::memory_order_relaxed);
    if (known == 0) {
      cudaFuncAttributes attributes{};
      check(cudaFuncGetAttributes(&attributes, kernel));
      known = attributes.ptxVersion;
      architecture[device_].store(known, std::memory_order_relaxed);
    }
    return known >= 90;
  }

  static void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // a failed launch must not surface again in somebody else's check
    throw std::runtime_error(std::string("pama_ops: CUDA error: ") + cudaGetErrorString(error));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  int device_;
  cudaStream_t stream_;
};

#endif

}  // namespace pama
