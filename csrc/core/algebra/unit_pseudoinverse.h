// Pseudoinverse of the Gram matrix of unit gradients, Ĝ = D^(−½) G D^(−½). Ranks are decided on it,
// so that a gradient's length has no say in whether it counts.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/jacobi.h"
#include "core/algebra/ldl.h"
#include "core/team.h"

namespace pama {

template <class Team>
class UnitPseudoinverse {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Jacobi<Team>::reals(n) + 2 * n; }

  // Overwrites `gram` with Ĝ; rows and columns of zero gradients become 0.
  PAMA_HD UnitPseudoinverse(Team team, int n, double* gram, const double* norm, double* workspace)
      : team_(team),
        n_(n),
        gram_(gram),
        norm_(norm),
        spare_(workspace),
        eigen_(team, n, gram, workspace + 2 * n),
        factor_(team, n, workspace + 2 * n, workspace + 2 * n + n * n, workspace + 3 * n + n * n,
                workspace) {}

  // Decides the rank. Ĝ is regular beyond doubt, and factorised, if even the bound
  // λ_min >= 1 / tr Ĝ⁻¹ is above the cut; else its eigenvalues tell.
  PAMA_HD void solve(double cut) {
    for (int i = 0; i < n_; ++i) {
      PAMA_LANES(team_, j, 0, n_) {
        const bool zero = !(norm_[i] > 0 && norm_[j] > 0);
        gram_[i * n_ + j] = zero ? 0 : i == j ? 1 : gram_[i * n_ + j] / norm_[i] / norm_[j];
      }
    }
    team_.sync();
    regular_ = factorise() && inverse_trace() * cut * n_ < 0.125;
    if (!regular_) eigen_.solve(cut);
  }

  PAMA_HD bool regular() const { return regular_; }

  // x <- Ĝ Ĝ⁺ x.
  PAMA_HD void restrict_to_range(double* x) {
    if (regular_) return;
    combine(x, 1);
  }

  // x <- Ĝ⁺ x.
  PAMA_HD void apply(double* x) {
    if (regular_) {
      factor_.forward(x);
      PAMA_LANES(team_, i, 0, n_) x[i] *= factor_.inverses()[i];
      factor_.backward(x);
      return;
    }
    combine(x, 2);
  }

  // Where Ĝ is singular: puts an orthonormal basis of the range of G where `gram` was, for
  // project(), which projects onto it.
  PAMA_HD void span_range() {
    for (int k = 0; k < eigen_.rank(); ++k) {
      double* column = basis(k);
      PAMA_LANES(team_, i, 0, n_) {
        column[i] = eigen_.column(k)[i] * norm_[i];
      }
      team_.sync();
      for (int round = 0; round < 2; ++round) {  // twice is enough (Kahan)
        for (int other = 0; other < k; ++other) {
          const double along = dot(column, basis(other));
          PAMA_LANES(team_, i, 0, n_) {
            column[i] -= along * basis(other)[i];
          }
          team_.sync();
        }
      }
      const double length = sqrt(dot(column, column));
      PAMA_LANES(team_, i, 0, n_) column[i] /= length;
      team_.sync();
    }
  }

  PAMA_HD void project(double* x) {
    double* total = spare_;
    PAMA_LANES(team_, i, 0, n_) total[i] = 0;
    for (int k = 0; k < eigen_.rank(); ++k) {
      const double along = dot(x, basis(k));
      PAMA_LANES(team_, i, 0, n_) total[i] += along * basis(k)[i];
    }
    PAMA_LANES(team_, i, 0, n_) x[i] = total[i];
    team_.sync();
  }

 private:
  PAMA_HD double* basis(int k) { return gram_ + k * n_; }

  // x <- Σ v λ^(1 − power) vᵀ x over the eigenvectors; columns are √λ v.
  PAMA_HD void combine(double* x, int power) {
    double* total = spare_;
    team_.sync();
    PAMA_LANES(team_, i, 0, n_) total[i] = 0;
    for (int k = 0; k < eigen_.rank(); ++k) {
      const double* column = eigen_.column(k);
      double along = dot(column, x) / eigen_.eigenvalue(k);
      if (power == 2) along /= eigen_.eigenvalue(k);
      PAMA_LANES(team_, i, 0, n_) total[i] += along * column[i];
    }
    team_.sync();
    PAMA_LANES(team_, i, 0, n_) x[i] = total[i];
    team_.sync();
  }

  PAMA_HD double dot(const double* a, const double* b) const {
    double total = 0;
    PAMA_LANES(team_, i, 0, n_) total += a[i] * b[i];
    return team_.sum(total);
  }

  PAMA_HD bool factorise() {
    factor_.clear();
    for (int r = 0; r < n_; ++r) {
      PAMA_LANES(team_, c, 0, r) spare_[c] = gram_[r * n_ + c];
      factor_.forward(spare_);
      double explained = 0;
      PAMA_LANES(team_, c, 0, r) {
        explained += spare_[c] * (spare_[c] * factor_.inverses()[c]);
      }
      const double pivot = gram_[r * n_ + r] - team_.sum(explained);
      if (!(pivot > n_ * DBL_EPSILON)) return false;
      factor_.append(spare_, pivot);
    }
    return true;
  }

  PAMA_HD double inverse_trace() {
    double total = 0;
    for (int c = 0; c < n_; ++c) {
      team_.sync();
      PAMA_LANES(team_, i, 0, n_) spare_[i] = i == c;
      factor_.forward(spare_);
      double square = 0;
      PAMA_LANES(team_, i, 0, n_) {
        square += spare_[i] * spare_[i] * factor_.inverses()[i];
      }
      total += team_.sum(square);
    }
    team_.sync();
    return total;
  }

  Team team_;
  int n_;
  double* gram_;
  const double* norm_;
  double* spare_;
  Jacobi<Team> eigen_;  // or, where it is regular, the factor in the same memory
  Ldl<Team> factor_;
  bool regular_ = false;
};

}  // namespace pama
