// imtl_g: w ∝ G⁺ √diag G with Σ w = 1. Then ⟨g_i, x⟩ ∝ ‖g_i‖: x projects alike onto all gradients.
//
// Where G is singular, G⁺ d = P D^(−½) Ĝ⁺ D^(−½) P d, with P the projection onto the range of G.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/algebra/unit_pseudoinverse.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class ImtlG : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return UnitPseudoinverse<Team>::reals(n) + n;
  }

  PAMA_HD void solve() {
    const double cut = n_ * problem_.rtol;
    double* norm = problem_.workspace.reals;
    if (!normalize_gram(problem_, norm)) return;
    UnitPseudoinverse<Team> unit(team_, n_, problem_.gram, norm, norm + n_);
    unit.solve(cut);
    copy(team_, n_, norm, out_);
    team_.sync();
    if (!unit.regular()) {
      unit.span_range();
      unit.project(out_);
      // √diag G has no part in the range, where G⁺ would blow up rounding.
      if (!(largest(out_) > cut * largest(norm))) return fill(team_, n_, 0, out_);
    }
    divide(norm);
    unit.apply(out_);
    divide(norm);
    if (!unit.regular()) unit.project(out_);
    const auto [total, size] =
        sums_of(team_, n_, [&](int i) { return Two{out_[i], fabs(out_[i])}; });
    const double scale = fabs(total) > cut * size ? 1 / total : 0;
    each(team_, n_, [&](int i) { out_[i] *= scale; });
  }

 private:
  PAMA_HD double largest(const double* x) const {
    return largest_of(team_, n_, [&](int i) { return fabs(x[i]); });
  }

  PAMA_HD void divide(const double* norm) {
    each(team_, n_, [&](int i) { out_[i] = norm[i] > 0 ? out_[i] / norm[i] : 0; });
    team_.sync();
  }
};

}  // namespace pama
