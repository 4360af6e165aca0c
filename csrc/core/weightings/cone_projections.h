// What dualproj and upgrad share: sums of argmin vᵀGv over v >= lower, by cone_active_set.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/algebra/cone_active_set.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"
#include "core/weightings/preference.h"

namespace pama {

template <class Team>
class ConeProjections : public Weighting {
 public:
  static constexpr Takes kTakes = Takes::kPreference;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return ConeActiveSet<Team>::reals(n) + 3 * n;
  }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return ConeActiveSet<Team>::integers(n); }

 protected:
  PAMA_HD explicit ConeProjections(const GramProblem<Team>& problem)
      : team_(problem.team),
        n_(problem.n),
        problem_(problem),
        norm_(problem.workspace.reals),
        preference_(norm_ + n_),
        lower_(preference_ + n_),
        method_(team_, n_, problem.gram, norm_, lower_, problem.rtol, true,
                {lower_ + n_, problem.workspace.integers}) {}

  // Sets the norms, the preference with sum 1, and lower and the result to 0. False, and the result
  // NaN, where G is not finite.
  PAMA_HD bool prepare() {
    const bool finite = normalize_gram(team_, n_, problem_.gram, norm_);
    fill(team_, n_, finite ? 0 : NAN, problem_.out);
    if (!finite) return false;
    normalize_preference(team_, n_, problem_.vector, preference_);
    fill(team_, n_, 0, lower_);
    return true;
  }

  // Adds the solution for `lower` as it stands to the result.
  PAMA_HD void add_solution() {
    team_.sync();
    method_.start();
    method_.solve();
    each(team_, n_, [&](int i) { problem_.out[i] += lower_[i] + method_.y()[i]; });
    team_.sync();
  }

  Team team_;
  int n_;

 private:
  GramProblem<Team> problem_;
  double* norm_;

 protected:
  double* preference_;
  double* lower_;

 private:
  ConeActiveSet<Team> method_;
};

}  // namespace pama
