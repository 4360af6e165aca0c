#include "cuda/launch.h"
#include "kernels/group_normalize.cuh"

namespace pama {
namespace {

using Kernel = void (*)(GroupArgs);

// A warp for each group.
Tensor by_group(Kernel kernel, const Tensor& rewards, int64_t group_size, double eps,
                ScalarType dtype) {
  check_group_normalize(rewards, group_size);
  const Launcher launch(rewards);
  Tensor out = allocate(rewards, rewards.sizes(), dtype);
  const int64_t groups = rewards.size(rewards.dim() - 1) / group_size;
  const int64_t count = groups * (rewards.dim() > 1 ? rewards.size(0) : 1);
  const GroupArgs args{view_of(rewards), view_of(out), groups, count, group_size, eps};
  constexpr int block = 128;
  launch(kernel, ceil_div(count, block / kWarp), block, 0, args);
  return out;
}

Tensor group_normalize(const Tensor& rewards, int64_t group_size, double eps) {
  return by_group(group_normalize_kernel, rewards, group_size, eps, result_dtype(&rewards));
}

Tensor group_informative(const Tensor& rewards, int64_t group_size) {
  return by_group(group_informative_kernel, rewards, group_size, 0, ScalarType::Bool);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("group_normalize", TORCH_BOX(&group_normalize));
  m.impl("group_informative", TORCH_BOX(&group_informative));
}

}  // namespace
}  // namespace pama
