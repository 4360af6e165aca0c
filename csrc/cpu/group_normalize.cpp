// Normalising rewards within groups of consecutive completions, one group after another: a batch
// holds one reward per sequence, a thousandth of what the other ops read.
#include "core/group.h"
#include "cpu/rows.h"

namespace pama {
namespace {

double unit_of_group(const View& rewards, int64_t first, int64_t size) {
  double largest = 0;
  for (int64_t j = 0; j < size; ++j) {
    largest = std::fmax(largest, std::fabs(load(rewards, first + j * rewards.token)));
  }
  return group_unit(largest);
}

// Of rewards times `unit`: around the first one that applies, then around the mean.
Moments group_moments(const View& rewards, int64_t first, int64_t size, double unit) {
  Moments moments{};
  double shift = 0;
  for (int pass = 0; pass < 2; ++pass) {
    double count = 0, sum = 0, squares = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double reward = load(rewards, first + j * rewards.token) * unit;
      if (reward != reward) continue;
      if (pass == 0 && count == 0) shift = reward;
      count += 1;
      sum += reward - shift;
      squares += (reward - shift) * (reward - shift);
    }
    moments = moments_about(shift, count, sum, squares);
    shift = moments.mean;
  }
  return moments;
}

Tensor group_normalize(const Tensor& rewards, int64_t group_size, double eps) {
  check_group_normalize(rewards, group_size);
  Tensor result = allocate(rewards, rewards.sizes(), result_dtype(&rewards));
  const View in = view_of(rewards), out = view_of(result);
  const int64_t groups = rewards.size(rewards.dim() - 1) / group_size;
  const int64_t objectives = rewards.dim() > 1 ? rewards.size(0) : 1;
  const int64_t grain = std::max<int64_t>(4096 / group_size, 1);
  parallel_for(0, objectives * groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups, token = i % groups * group_size;
      const int64_t from = n * in.sequence + token * in.token, to = n * out.sequence + token;
      const double unit = unit_of_group(in, from, group_size);
      const Moments group = group_moments(in, from, group_size, unit);
      for (int64_t j = 0; j < group_size; ++j) {
        store(out, to + j, group_normalized(load(in, from + j * in.token), group, unit, eps));
      }
    }
  });
  return result;
}

Tensor group_informative(const Tensor& rewards, int64_t group_size) {
  check_group_normalize(rewards, group_size);
  Tensor result = allocate(rewards, rewards.sizes(), ScalarType::Bool);
  bool* out = static_cast<bool*>(result.mutable_data_ptr());
  const View in = view_of(rewards);
  const int64_t length = rewards.size(rewards.dim() - 1);
  const int64_t groups = rewards.numel() / group_size;
  parallel_for(0, groups, std::max<int64_t>(4096 / group_size, 1), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * group_size; at < end * group_size; at += group_size) {
      const int64_t from = at / length * in.sequence + at % length * in.token;
      const auto reward = [&](int64_t j) { return load(in, from + j * in.token); };
      double least = HUGE_VAL, largest = -HUGE_VAL;  // which NaN is neither below nor above
      for (int64_t j = 0; j < group_size; ++j) {
        if (reward(j) < least) least = reward(j);
        if (reward(j) > largest) largest = reward(j);
      }
      for (int64_t j = 0; j < group_size; ++j) {
        out[at + j] = least < largest && reward(j) == reward(j);
      }
    }
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("group_normalize", TORCH_BOX(&group_normalize));
  m.impl("group_informative", TORCH_BOX(&group_informative));
}

}  // namespace
}  // namespace pama
