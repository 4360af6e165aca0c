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
  using Weighting<Team>::problem_;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return UnitPseudoinverse<Team>::reals(n) + n;
  }

  using Weighting<Team>::Weighting;

  PAMA_HD void solve() {
    const Team& team = problem_.team;
    const int n = problem_.n;
    const double cut = n * problem_.rtol;
    double *norm = problem_.workspace.reals, *out = problem_.out;
    if (!normalize_gram(problem_, norm)) return;
    UnitPseudoinverse<Team> unit(team, n, problem_.gram, norm, norm + n);
    unit.solve(cut);
    copy(team, n, norm, out);
    team.sync();
    if (!unit.regular()) {
      unit.span_range();
      unit.project(out);
      // √diag G has no part in the range, where G⁺ would blow up rounding.
      if (!(largest(out) > cut * largest(norm))) return fill(team, n, 0, out);
    }
    divide(norm);
    unit.apply(out);
    divide(norm);
    if (!unit.regular()) unit.project(out);
    const auto [total, size] = sums_of(team, n, [&](int i) { return Two{out[i], fabs(out[i])}; });
    const double scale = fabs(total) > cut * size ? 1 / total : 0;
    each(team, n, [&](int i) { out[i] *= scale; });
  }

 private:
  PAMA_HD double largest(const double* x) const {
    return largest_of(problem_.team, problem_.n, [&](int i) { return fabs(x[i]); });
  }

  PAMA_HD void divide(const double* norm) {
    each(problem_.team, problem_.n,
         [&](int i) { problem_.out[i] = norm[i] > 0 ? problem_.out[i] / norm[i] : 0; });
    problem_.team.sync();
  }
};

}  // namespace pama
