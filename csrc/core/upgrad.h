// upgrad: Σ_i argmin vᵀGv over v >= p_i e_i, one problem of cone_active_set.h for each objective.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cone_active_set.h"
#include "core/gram_problem.h"
#include "core/normalize_gram.h"

namespace pama {

template <class Team>
class UpGrad {
 public:
  static constexpr bool kScalar = false;
  static constexpr bool kTakesPreference = true;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return ConeActiveSet<Team>::reals(n) + 3 * n;
  }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return ConeActiveSet<Team>::integers(n); }

  PAMA_HD explicit UpGrad(const GramProblem<Team>& problem) : problem_(problem) {}

  PAMA_HD void solve() {
    const Team& team = problem_.team;
    const int n = problem_.n;
    double *norm = problem_.workspace.reals, *preference = norm + n, *lower = preference + n;
    int half = 0;
    if (!normalize_gram(team, n, problem_.gram, norm, &half)) {
      return fill(team, n, NAN, problem_.out);
    }
    normalize_preference(team, n, problem_.vector, preference);
    fill(team, n, 0, lower);
    fill(team, n, 0, problem_.out);
    ConeActiveSet<Team> method(team, n, problem_.gram, norm, lower,
                               {lower + n, problem_.workspace.integers});
    for (int i = 0; i < n; ++i) {
      if (preference[i] == 0) continue;
      if (team.rank() == 0) lower[i] = preference[i];
      method.start();
      method.solve(0);
      for (int j = team.rank(); j < n; j += team.size()) {
        problem_.out[j] += lower[j] + method.y()[j];
      }
      team.sync();
      if (team.rank() == 0) lower[i] = 0;
    }
  }

 private:
  GramProblem<Team> problem_;
};

}  // namespace pama
