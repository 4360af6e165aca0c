// Normalising rewards within groups of consecutive completions, one group after another: a batch
// holds one reward per sequence, a thousandth of what the other ops read.
#include "tensors/group_normalize.h"

#include "core/tokens/group_reward.h"
#include "cpu/token_tiles.h"

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

// body(rewards, out): where the rewards of a group begin, and their results.
template <class Body>
void for_groups(const Groups& groups, const Body& body) {
  const View &in = groups.rewards, &out = groups.out;
  const int64_t grain = std::max<int64_t>(4096 / groups.size, 1);
  parallel_for(0, groups.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups.of_objective, token = i % groups.of_objective * groups.size;
      body(n * in.sequence + token * in.token, n * out.sequence + token);
    }
  });
}

void normalize(const Tensor&, const Groups& groups) {
  const View& in = groups.rewards;
  for_groups(groups, [&](int64_t from, int64_t to) {
    const double unit = unit_of_group(in, from, groups.size);
    const Moments moments = group_moments(in, from, groups.size, unit);
    for (int64_t j = 0; j < groups.size; ++j) {
      const double reward = load(in, from + j * in.token);
      store(groups.out, to + j, group_normalized(reward, moments, unit, groups.eps));
    }
  });
}

void find_informative(const Tensor&, const Groups& groups) {
  const View& in = groups.rewards;
  for_groups(groups, [&](int64_t from, int64_t to) {
    bool* out = static_cast<bool*>(groups.out.data) + to;
    const auto reward = [&](int64_t j) { return load(in, from + j * in.token); };
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
