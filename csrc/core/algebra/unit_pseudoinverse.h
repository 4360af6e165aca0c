// Pseudoinverse of the Gram matrix of unit gradients, Ĝ = D^(−½) G D^(−½). Ranks are decided on it,
// so that a gradient's length has no say in whether it counts.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/jacobi.h"
#include "core/algebra/ldl.h"
#include "core/algebra/vectors.h"

namespace pama {

template <class Team>
class UnitPseudoinverse {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Jacobi<Team>::reals(n) + n; }

  // Overwrites `gram` with Ĝ; rows and columns of zero gradients become 0.
  PAMA_HD UnitPseudoinverse(Team team, int n, double* gram, const double* norm, double* workspace)
      : team_(team), n_(n), gram_(gram), norm_(norm), spare_(workspace) {}

  // Decides the rank. Ĝ is regular beyond doubt, and factorised, if even the bound
  // λ_min >= 1 / tr Ĝ⁻¹ is above the cut; else its eigenvalues tell.
  PAMA_HD void solve(double cut) {
    for (int i = 0; i < n_; ++i) {
      each(team_, n_, [&](int j) {
        const bool zero = !(norm_[i] > 0 && norm_[j] > 0);
        gram_[i * n_ + j] = zero ? 0 : i == j ? 1 : gram_[i * n_ + j] / norm_[i] / norm_[j];
      });
    }
    team_.sync();
    regular_ = factorise() && inverse_trace() * cut * n_ < 0.125;
    if (!regular_) eigen_.solve(cut);
  }

  PAMA_HD bool regular() const { return regular_; }

  // x <- Ĝ Ĝ⁺ x.
  PAMA_HD void restrict_to_range(double* x) {
    if (!regular_) combine(x, 1);
  }

  // x <- Ĝ⁺ x.
  PAMA_HD void apply(double* x) {
    if (regular_) return factor_.solve(x);
    combine(x, 2);
  }

  // Where Ĝ is singular: puts an orthonormal basis of the range of G where `gram` was, for
  // project(), which projects onto it.
  PAMA_HD void span_range() {
    for (int k = 0; k < eigen_.rank(); ++k) {
      double* vector = basis(k);
      each(team_, n_, [&](int i) { vector[i] = eigen_.column(k)[i] * norm_[i]; });
      orthogonalise(team_, n_, gram_, k, vector);
      const double length = sqrt(dot(team_, n_, vector, vector));
      each(team_, n_, [&](int i) { vector[i] /= length; });
      team_.sync();
    }
  }

  PAMA_HD void project(double* x) {
    fill(team_, n_, 0, spare_);
    for (int k = 0; k < eigen_.rank(); ++k) {
      add_multiple(team_, n_, dot(team_, n_, x, basis(k)), basis(k), spare_);
    }
    copy(team_, n_, spare_, x);
    team_.sync();
  }

 private:
  PAMA_HD double* basis(int k) { return gram_ + k * n_; }

  // x <- Σ v λ^(1 − power) vᵀ x over the eigenvectors; columns are √λ v.
  PAMA_HD void combine(double* x, int power) {
    fill(team_, n_, 0, spare_);
    for (int k = 0; k < eigen_.rank(); ++k) {
      const double* column = eigen_.column(k);
      double along = dot(team_, n_, column, x) / eigen_.eigenvalue(k);
      if (power == 2) along /= eigen_.eigenvalue(k);
      add_multiple(team_, n_, along, column, spare_);
    }
    team_.sync();
    copy(team_, n_, spare_, x);
    team_.sync();
  }

  PAMA_HD bool factorise() {
    return factor_.factorise(
        n_, [&](int r, int c) { return gram_[r * n_ + c]; },
        [&](int, double pivot) { return pivot > n_ * DBL_EPSILON ? pivot : 0; });
  }

  PAMA_HD double inverse_trace() {
    double total = 0;
    for (int c = 0; c < n_; ++c) {
      team_.sync();
      each(team_, n_, [&](int i) { spare_[i] = i == c; });
      total += factor_.explain(spare_);
    }
    team_.sync();
    return total;
  }

  Team team_;
  int n_;
  double* gram_;
  const double* norm_;
  double* spare_;
  Jacobi<Team> eigen_{team_, n_, gram_, spare_ + n_};
  Ldl<Team> factor_{team_, n_, spare_ + n_};  // in the same memory, as only one is wanted
  bool regular_ = false;
};

}  // namespace pama
