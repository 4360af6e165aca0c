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
  using Weighting<Team>::problem_;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return UnitPseudoinverse<Team>::reals(n) + 2 * n;
  }

  using Weighting<Team>::Weighting;

  PAMA_HD void solve() {
    const Team& team = problem_.team;
    const int n = problem_.n;
    const double cut = n * problem_.rtol;
    double *norm = problem_.workspace.reals, *cosine = norm + n, *out = problem_.out;
    if (!normalize_gram(problem_, norm)) return;
    UnitPseudoinverse<Team> unit(team, n, problem_.gram, norm, cosine + n);
    unit.solve(cut);
    each(team, n, [&](int i) { cosine[i] = out[i] = norm[i] > 0 ? 1 : 0; });
    team.sync();
    unit.restrict_to_range(cosine);
    unit.apply(out);
    const auto [square, length] =
        sums_of(team, n, [&](int i) { return Two{out[i] * cosine[i], norm[i] * cosine[i]}; });
    const double largest = largest_of(team, n, [&](int i) { return fabs(cosine[i]); });
    if (!(largest > cut)) return fill(team, n, 0, out);  // x = 0
    each(team, n, [&](int i) { out[i] = norm[i] > 0 ? length * out[i] / (norm[i] * square) : 0; });
  }
};

}  // namespace pama
