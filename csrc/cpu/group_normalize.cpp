// Normalising rewards within groups of consecutive completions, one group after another: a batch
// holds one reward per sequence, a thousandth of what the other ops read.
#include "tensors/group_normalize.h"

#include "core/tokens/group_reward.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

// reward(j) is the j-th of a group of `size`.
template <class Reward>
double unit_of_group(const Reward& reward, int64_t size) {
  double largest = 0;
  for (int64_t j = 0; j < size; ++j) largest = std::fmax(largest, std::fabs(reward(j)));
  return group_unit(largest);
}

// Of rewards times `unit`: around the first one that applies, then around the mean.
template <class Reward>
Moments group_moments(const Reward& reward, int64_t size, double unit) {
  Moments moments{};
  double shift = 0;
  for (int pass = 0; pass < 2; ++pass) {
    double count = 0, sum = 0, squares = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double x = reward(j) * unit;
      if (x != x) continue;
      if (pass == 0 && count == 0) shift = x;
      count += 1;
      sum += x - shift;
      squares += (x - shift) * (x - shift);
    }
    moments = moments_about(shift, count, sum, squares);
    shift = moments.mean;
  }
  return moments;
}

// body(reward, out): the rewards of a group, and where their results begin.
template <class Body>
void for_groups(const Groups& groups, const Body& body) {
  const View &in = groups.rewards, &out = groups.out;
  const int64_t grain = std::max<int64_t>(4096 / groups.size, 1);
  parallel_for(0, groups.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups.of_objective, token = i % groups.of_objective * groups.size;
      const auto reward = [&](int64_t j) {
        return load(in, n * in.sequence + (token + j) * in.token);
      };
      body(reward, n * out.sequence + token);
    }
  });
}

void normalize(const Tensor&, const Groups& groups) {
  for_groups(groups, [&](const auto& reward, int64_t to) {
    const double unit = unit_of_group(reward, groups.size);
    const Moments moments = group_moments(reward, groups.size, unit);
    for (int64_t j = 0; j < groups.size; ++j) {
      store(groups.out, to + j, group_normalized(reward(j), moments, unit, groups.eps));
    }
  });
}

void find_informative(const Tensor&, const Groups& groups) {
  for_groups(groups, [&](const auto& reward, int64_t to) {
    bool* out = static_cast<bool*>(groups.out.data) + to;
    double least = HUGE_VAL, largest = -HUGE_VAL;  // which NaN is neither below nor above
    for (int64_t j = 0; j < groups.size; ++j) {
      if (reward(j) < least) least = reward(j);
      if (reward(j) > largest) largest = reward(j);
    }
    for (int64_t j = 0; j < groups.size; ++j) out[j] = least < largest && reward(j) == reward(j);
  });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("group_normalize", TORCH_BOX(&group_normalize<normalize>));
  m.impl("group_informative", TORCH_BOX(&group_informative<find_informative>));
}

}  // namespace
}  // namespace pama
