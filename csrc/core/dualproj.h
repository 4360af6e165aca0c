// dualproj: argmin vᵀGv over v >= p, by cone_active_set.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cone_active_set.h"
#include "core/gram_problem.h"
#include "core/normalize_gram.h"

namespace pama {

template <class Team>
class DualProj {
 public:
  static constexpr bool kScalar = false;
  static constexpr bool kTakesPreference = true;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return ConeActiveSet<Team>::reals(n) + 2 * n;
  }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return ConeActiveSet<Team>::integers(n); }

  PAMA_HD explicit DualProj(const GramProblem<Team>& problem) : problem_(problem) {}

  PAMA_HD void solve() {
    const Team& team = problem_.team;
    const int n = problem_.n;
    double *norm = problem_.workspace.reals, *preference = norm + n;
    int half = 0;
    if (!normalize_gram(team, n, problem_.gram, norm, &half)) {
      return fill(team, n, NAN, problem_.out);
    }
    normalize_preference(team, n, problem_.vector, preference);
    ConeActiveSet<Team> method(team, n, problem_.gram, norm, preference,
                               {preference + n, problem_.workspace.integers});
    method.start();
    method.solve(0);
    for (int i = team.rank(); i < n; i += team.size()) {
      problem_.out[i] = preference[i] + method.y()[i];
    }
  }

 private:
  GramProblem<Team> problem_;
};

}  // namespace pama
