#include "cuda/launch.h"
#include "kernels/group_normalize.cuh"

namespace pama {
namespace {

Tensor group_normalize(const Tensor& rewards, int64_t group_size, double eps) {
  check_group_normalize(rewards, group_size);
  const Launcher launch(rewards);
  Tensor out = allocate(rewards, rewards.sizes(), result_dtype(&rewards));
  const int64_t groups = rewards.size(rewards.dim() - 1) / group_size;
  const int64_t count = groups * (rewards.dim() > 1 ? rewards.size(0) : 1);
  const GroupArgs args{view_of(rewards), view_of(out), groups, count, group_size, eps};
  constexpr int block = 128;
  launch(group_normalize_kernel, ceil_div(count, block / kWarp), block, 0, args);
  return out;
}

PAMA_CUDA_LIBRARY(m) { m.impl("group_normalize", TORCH_BOX(&group_normalize)); }

}  // namespace
}  // namespace pama
