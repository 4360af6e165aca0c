// The ops `group_normalize` and `group_informative`.
#pragma once

#include "tensors/tokens.h"

namespace pama {

// Groups of consecutive rewards, of one objective after the other.
struct Groups {
  View rewards, out;
  int64_t of_objective, count, size;
  double eps;
};

template <void (*Run)(const Tensor& on, const Groups&)>
Tensor by_group(const Tensor& rewards, int64_t group_size, double eps, ScalarType dtype) {
  check_rows("rewards", rewards);
  const int64_t length = rewards.size(rewards.dim() - 1);
  if (group_size < 1 || length % group_size != 0) {
    refuse("group_size must be positive and divide rewards' B = " + std::to_string(length) +
           ", got " + std::to_string(group_size));
  }
  Tensor out = allocate(rewards, rewards.sizes(), dtype);
  const int64_t groups = length / group_size;
  Run(rewards,
      {view_of(rewards), view_of(out), groups, rows_in(rewards) * groups, group_size, eps});
  return out;
}

template <void (*Run)(const Tensor& on, const Groups&)>
Tensor group_normalize(const Tensor& rewards, int64_t group_size, double eps) {
  return by_group<Run>(rewards, group_size, eps, result_dtype(&rewards));
}

template <void (*Run)(const Tensor& on, const Groups&)>
Tensor group_informative(const Tensor& rewards, int64_t group_size) {
  return by_group<Run>(rewards, group_size, 0, ScalarType::Bool);
}

}  // namespace pama
