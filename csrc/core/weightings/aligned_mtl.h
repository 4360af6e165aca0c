// aligned_mtl: √σ V Λ^(−½) Vᵀ p over the numerical range of G = V Λ Vᵀ.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/algebra/jacobi.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"
#include "core/weightings/preference.h"

namespace pama {

template <class Team>
class AlignedMtl : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  static constexpr Takes kTakes = Takes::kPreference;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  static constexpr int kOptions = 1;
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Jacobi<Team>::reals(n) + 2 * n; }

  // Options: which σ.
  PAMA_HD void solve() {
    if (!normalize_gram(problem_, norm_)) return;
    normalize_preference(team_, n_, problem_.vector, preference_);
    eigen_.solve(n_ * problem_.rtol);
    const int rank = eigen_.rank();
    if (rank == 0) return copy(team_, n_, preference_, out_);
    const double sigma = scale(problem_.options[0]);
    fill(team_, n_, 0, out_);
    for (int k = 0; k < rank; ++k) {
      const double* column = eigen_.column(k);
      const double eigenvalue = eigen_.eigenvalue(k), along = dot(team_, n_, column, preference_);
      // v vᵀ λ^(−½) with column = √λ v.
      add_multiple(team_, n_, along * sqrt(sigma / eigenvalue) / eigenvalue, column, out_);
    }
  }

 private:
  static constexpr double kMin = 0, kRmse = 2;  // the option; any other is the median

  PAMA_HD double scale(double which) const {
    const int rank = eigen_.rank();
    if (which == kRmse) {
      double total = 0;
      for (int k = 0; k < rank; ++k) total += eigen_.eigenvalue(k);
      return total / rank;
    }
    const int wanted = which == kMin ? 0 : (rank - 1) / 2;  // in rising order
    for (int k = 0; k < rank; ++k) {
      int below = 0;
      for (int other = 0; other < rank; ++other) {
        below += eigen_.eigenvalue(other) < eigen_.eigenvalue(k) ||
                 (eigen_.eigenvalue(other) == eigen_.eigenvalue(k) && other < k);
      }
      if (below == wanted) return eigen_.eigenvalue(k);
    }
    return 0;
  }

  double* preference_ = problem_.workspace.reals;
  double* norm_ = preference_ + n_;
  Jacobi<Team> eigen_{team_, n_, problem_.gram, norm_ + n_};
};

}  // namespace pama
