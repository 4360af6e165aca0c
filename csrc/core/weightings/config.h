// config: ConFIG (Liu et al. 2024) in Gram form on unit gradients: v = Ĝ⁺1, x = Σ v_i ĝ_i, and the
// weights of L x / ‖x‖ with L = Σ ⟨g_i, x⟩ / ‖x‖.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/algebra/unit_pseudoinverse.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class Config : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return UnitPseudoinverse<Team>::reals(n) + 2 * n;
  }

  PAMA_HD void solve() {
    const double cut = n_ * problem_.rtol;
    double *norm = problem_.workspace.reals, *cosine = norm + n_;
    if (!normalize_gram(problem_, norm)) return;
    UnitPseudoinverse<Team> unit(team_, n_, problem_.gram, norm, cosine + n_);
    unit.solve(cut);
    each(team_, n_, [&](int i) { cosine[i] = out_[i] = norm[i] > 0 ? 1 : 0; });
    team_.sync();
    unit.restrict_to_range(cosine);
    unit.apply(out_);
    const auto [square, length] =
        sums_of(team_, n_, [&](int i) { return Two{out_[i] * cosine[i], norm[i] * cosine[i]}; });
    const double largest = largest_of(team_, n_, [&](int i) { return fabs(cosine[i]); });
    if (!(largest > cut)) return fill(team_, n_, 0, out_);  // x = 0
    each(team_, n_,
         [&](int i) { out_[i] = norm[i] > 0 ? length * out_[i] / (norm[i] * square) : 0; });
  }
};

}  // namespace pama
