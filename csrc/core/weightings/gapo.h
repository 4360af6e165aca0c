// gapo: min_norm on g_i / ‖g_i‖^p, which is min_norm with the preference ‖g_i‖^p.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/weightings/gram_problem.h"
#include "core/weightings/min_norm.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class Gapo : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  static constexpr int kOptions = 1;
  PAMA_HD static constexpr int64_t reals(int64_t n) { return MinNorm<Team>::reals(n) + 2 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return MinNorm<Team>::integers(n); }

  PAMA_HD void solve() {
    const double power = problem_.options[0];
    double *norm = problem_.workspace.reals, *preference = norm + n_;
    int half = 0;
    if (!normalize_gram(problem_, norm, &half)) return;
    const double longest = largest_of(team_, n_, [&](int i) { return norm[i]; });
    if (longest == 0) return fill(team_, n_, 0, out_);
    each(team_, n_,
         [&](int i) { preference[i] = norm[i] > 0 ? raised(norm[i] / longest, power) : 0; });
    team_.sync();
    GramProblem<Team> inner = problem_;
    inner.vector = preference;
    inner.workspace = {preference + n_, problem_.workspace.integers};
    MinNorm<Team>(inner).solve();
    team_.sync();
    // Σ c = 1 with c_i = w_i ‖g_i‖^p.
    const double unit = ldexp(longest, half);  // as it was before the matrix was normalised
    const double scale = 1 / dot(team_, n_, out_, preference) / raised(unit, power);
    each(team_, n_, [&](int i) { out_[i] *= scale; });
  }

 private:
  PAMA_HD static double raised(double x, double power) { return power == 1 ? x : pow(x, power); }
};

}  // namespace pama
