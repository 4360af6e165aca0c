// Normalising rewards within groups of consecutive completions, a warp for each group, which it
// reads three times: for the largest reward, for the moments, each lane around the first reward it
// meets, and for the result.
#include "core/tokens/group_reward.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/warp_team.cuh"
#include "tensors/group_normalize.h"

namespace pama {
namespace {

__global__ void __launch_bounds__(128) group_normalize_kernel(const __grid_constant__ Groups args) {
  wait_for_inputs();
  const int64_t group = warp();
  if (group >= args.count) return;
  const int64_t row = group / args.of_objective, token = group % args.of_objective * args.size;
  const View &in = args.rewards, &out = args.out;
  const int64_t from = row * in.sequence + token * in.token, to = row * out.sequence + token;
  double largest = 0;
#pragma unroll 1
  for (int64_t j = lane(); j < args.size; j += kWarp) {
    largest = fmax(largest, fabs(load(in, from + j * in.token)));
  }
  const double unit = group_unit(WarpTeam{}.largest(largest));
  double shift = 0, count = 0, sum = 0, squares = 0;
#pragma unroll 1  // or ptxas spills around the division below
  for (int64_t j = lane(); j < args.size; j += kWarp) {
    const double reward = load(in, from + j * in.token) * unit;
    if (reward != reward) continue;
    if (count == 0) shift = reward;
    count += 1;
    sum += reward - shift;
    squares += (reward - shift) * (reward - shift);
  }
  const auto merge = [](const Moments& a, const Moments& b) { return moments_merge(a, b); };
  Moments moments = warp_reduce(moments_about(shift, count, sum, squares), merge);
  moments.count = __shfl_sync(kFullWarp, moments.count, 0);
  moments.mean = __shfl_sync(kFullWarp, moments.mean, 0);
  moments.squares = __shfl_sync(kFullWarp, moments.squares, 0);
#pragma unroll 1
  for (int64_t j = lane(); j < args.size; j += kWarp) {
    store(out, to + j, group_normalized(load(in, from + j * in.token), moments, unit, args.eps));
  }
}

// Whether a reward applies, in a group whose rewards are not all equal.
__global__ void __launch_bounds__(128)
    group_informative_kernel(const __grid_constant__ Groups args) {
  wait_for_inputs();
  const int64_t group = warp();
  if (group >= args.count) return;
  const View& in = args.rewards;
  const int64_t row = group / args.of_objective, token = group % args.of_objective * args.size;
  const int64_t from = row * in.sequence + token * in.token;
  double least = HUGE_VAL, largest = -HUGE_VAL;  // which NaN is neither below nor above
  for (int64_t j = lane(); j < args.size; j += kWarp) {
    const double reward = load(in, from + j * in.token);
    if (reward < least) least = reward;
    if (reward > largest) largest = reward;
  }
  const WarpTeam team;
  const bool differ = -team.largest(-least) < team.largest(largest);
  bool* out = static_cast<bool*>(args.out.data) + row * args.out.sequence + token;
  for (int64_t j = lane(); j < args.size; j += kWarp) {
    const double reward = load(in, from + j * in.token);
    out[j] = differ && reward == reward;
  }
}

// --- launching ----------------------------------------------------------------------------------

// A warp for each group.
template <void (*kernel)(Groups)>
void run(const Tensor& on, const Groups& groups) {
  constexpr int block = 128;
  const Launcher launch(on);
  launch(kernel, ceil_div(groups.count, block / kWarp), block, 0, groups);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("group_normalize", TORCH_BOX(&group_normalize<run<group_normalize_kernel>>));
  m.impl("group_informative", TORCH_BOX(&group_informative<run<group_informative_kernel>>));
}

}  // namespace
}  // namespace pama
