// What dualproj and upgrad share: sums of argmin vᵀGv over v >= lower, by cone_active_set.h.
#pragma once

#include <cstdint>

#include "core/algebra/cone_active_set.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"
#include "core/weightings/preference.h"

namespace pama {

template <class Team>
class ConeProjections : public Weighting<Team> {
  using Method = ConeActiveSet<Team>;

 public:
  static constexpr Takes kTakes = Takes::kPreference;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Method::reals(n) + 3 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return Method::integers(n); }

 protected:
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

  // Sets the norms, the preference with sum 1, and lower and the result to 0. False, and the result
  // NaN, where G is not finite.
  PAMA_HD bool prepare() {
    if (!normalize_gram(problem_, norm_)) return false;
    fill(team_, n_, 0, out_);
    normalize_preference(team_, n_, problem_.vector, preference_);
    fill(team_, n_, 0, lower_);
    return true;
  }

  // Adds the solution for `lower` as it stands to the result.
  PAMA_HD void add_solution() {
    team_.sync();
    const double* y = method_.solve();
    each(team_, n_, [&](int i) { out_[i] += lower_[i] + y[i]; });
    team_.sync();
  }

  double* preference_ = problem_.workspace.reals;
  double* lower_ = preference_ + n_;
  double* norm_ = lower_ + n_;
  Workspace rest_{norm_ + n_, problem_.workspace.integers};
  Method method_{team_, n_, problem_.gram, norm_, lower_, problem_.rtol, true, rest_};
};

}  // namespace pama
