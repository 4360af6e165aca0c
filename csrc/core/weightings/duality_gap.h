// duality_gap: wᵀGw − min_i (Gw)_i, in one sweep over G.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/algebra/vectors.h"
#include "core/weightings/gram_problem.h"

namespace pama {

template <class Team>
class DualityGap : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  static constexpr bool kScalar = true;
  static constexpr Takes kTakes = Takes::kVector;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t) { return 0; }

  // NaN anywhere in G or w gives NaN, since 0 · NaN is NaN.
  PAMA_HD void solve() {
    const double *gram = problem_.gram, *weights = problem_.vector;
    double value = 0;
    const auto slope_of = [&](int i) {
      double slope = 0;
      for (int j = 0; j < n_; ++j) slope += gram[j * n_ + i] * weights[j];
      value += weights[i] * slope;
      return slope;
    };
    const Located lowest = smallest_of(team_, n_, slope_of, {INFINITY, n_});
    value = team_.sum(value);
    if (team_.rank() == 0) out_[0] = value - lowest.value;
  }
};

}  // namespace pama
