// Pareto stationary gradients: maximise Σ_S φ(w), φ' = w^(−β), over {w on the simplex, Gw = 0},
// where S is the largest support that such a w has.
//
// i is in S if the cone of all gradients reaches −g_i: if min vᵀGv over v >= e_i is 0, a problem of
// cone_active_set.h. The sum of these v, one for each i that no earlier one covers, is positive on
// S and a start. With G_S = F Fᵀ by Cholesky with pivoting, Newton's step relative to w is a
// projection onto the complement of the constraints' gradients, which Gram-Schmidt makes
// orthonormal: so the steps leave Gw where it is, whatever the spread of the weights.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/cone_active_set.h"
#include "core/algebra/pivoted_cholesky.h"
#include "core/algebra/vectors.h"
#include "core/weightings/alpha_fair_line_search.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class AlphaFairStationary {
  using Method = ConeActiveSet<Team>;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Method::reals(n) + 7 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return Method::integers(n); }
  static constexpr int kLimit = 100;

  // `gram`: of unit gradients, overwritten; `length`: of the gradients as they came, 0 for those
  // without a part.
  PAMA_HD AlphaFairStationary(Team team, int n, double* gram, const double* length,
                              Workspace workspace)
      : team_(team), n_(n), gram_(gram), length_(length), workspace_(workspace) {}

  // Rank and S are decided at ‖Σ v g‖² <= `noise` (Σ v)² for unit gradients.
  PAMA_HD void solve(double beta, double noise, double* out) {
    w_ = out;
    cover(noise);
    each(team_, n_, [&](int i) { w_[i] = v_[i] > 0 ? v_[i] / length_[i] : 0; });
    divide_by_sum(team_, n_, w_);
    factorise(noise);
    if (rank_ >= members_) return;
    const double limit = fmax(noise, 4 * imbalance());
    bool on_face = ascend(1, beta, limit);
    for (double at = 1; on_face && at != beta;) {
      at = beta > at ? fmin(2 * at, beta) : fmax(at / 2, beta);
      on_face = ascend(at, beta, limit);
    }
  }

 private:
  PAMA_HD double& at(int i, int k) { return column_[k * n_ + i]; }

  // Sets v to a sum of solutions, positive on S. If none is 0 to rounding, although some weights on
  // the simplex were, to the one nearest to that.
  PAMA_HD void cover(double noise) {
    each(team_, n_, [&](int i) { norm_[i] = length_[i] > 0 ? 1 : 0; });
    fill(team_, n_, 0, total_);
    fill(team_, n_, 0, lower_);
    Method method(team_, n_, gram_, norm_, lower_, noise, false, {column_, workspace_.integers});
    double nearest = INFINITY;
    for (int i = 0; i < n_; ++i) {
      if (total_[i] > 0 || norm_[i] == 0) continue;
      team_.sync();
      if (team_.rank() == 0) lower_[i] = 1;
      const double* y = method.solve();
      const double sum = sum_of(team_, n_, [&](int j) { return q_[j] = lower_[j] + y[j]; });
      team_.sync();
      const double value = square() / sum / sum;
      if (value < nearest) {
        nearest = value;
        each(team_, n_, [&](int j) { v_[j] = q_[j] / sum; });
      }
      if (value <= noise) {
        // A smaller part may be rounding, and moves the combination by less than the noise; if it
        // belongs to S, it has a problem of its own.
        const double least = pow(noise, 0.75);
        each(team_, n_, [&](int j) {
          if (j == i || q_[j] > least * sum) total_[j] += q_[j] / sum;
        });
      }
      team_.sync();
      if (team_.rank() == 0) lower_[i] = 0;
    }
    if (nearest <= noise) copy(team_, n_, total_, v_);
    team_.sync();
  }

  PAMA_HD double square() const {
    return sum_of(team_, n_, [&](int i) {
      double slope = 0;
      for (int j = 0; j < n_; ++j) slope += gram_[j * n_ + i] * q_[j];
      return q_[i] * slope;
    });
  }

  // Columns of F, as many as rank, over the members of S.
  PAMA_HD void factorise(double noise) {
    double* left = norm_;
    members_ = static_cast<int>(sum_of(team_, n_, [&](int i) { return w_[i] > 0 ? 1 : 0; }));
    each(team_, n_, [&](int i) { left[i] = w_[i] > 0 ? 1 : -INFINITY; });
    team_.sync();
    rank_ = pivoted_cholesky(team_, n_, gram_, noise, left, column_);
  }

  // ‖Σ w g‖² / (Σ w ‖g‖)², by F.
  PAMA_HD double imbalance() {
    const double lengths = dot(team_, n_, w_, length_);
    double square = 0;
    for (int k = 0; k < rank_; ++k) {
      const auto part = [&](int i) { return w_[i] > 0 ? at(i, k) * w_[i] * length_[i] : 0; };
      const double along = sum_of(team_, n_, part) / lengths;
      square += along * along;
    }
    return square;
  }

  // False where rounding took the last step off the face, as where w^(1−β) spreads over more than
  // 10^32: the weights are those before it.
  PAMA_HD bool ascend(double beta, double wanted, double limit) {
    double* before = v_;
    for (int step = 0; step < kLimit; ++step) {
      relative_powers(team_, n_, w_, beta, share_);
      each(team_, n_, [&](int i) { root_[i] = sqrt(share_[i]); });
      const double total = sum_of(team_, n_, [&](int i) { return share_[i]; });
      span();
      // √share less its part along the constraints' gradients, to a step relative to w.
      copy(team_, n_, root_, q_);
      orthogonalise(team_, n_, gram_, rank_ + 1, q_);
      const double square = dot(team_, n_, q_, q_);
      each(team_, n_, [&](int i) { q_[i] = root_[i] > 0 ? q_[i] / root_[i] / beta : 0; });
      team_.sync();
      // What rounding leaves of the projection, as where S allows but one w.
      const double rounding = 4 * n_ * DBL_EPSILON;
      if (!(square > rounding * rounding * total)) return true;
      const double descent = square / beta;
      const double t = fair_step(team_, n_, share_, q_, beta, descent, 0);
      each(team_, n_, [&](int i) {
        before[i] = w_[i];
        w_[i] *= 1 + t * q_[i];
      });
      divide_by_sum(team_, n_, w_);
      if (!(imbalance() <= limit)) {
        copy(team_, n_, before, w_);
        return false;
      }
      if (descent <= (beta == wanted ? DBL_EPSILON / 4 : 0.01) * total) return true;
    }
    return true;
  }

  // An orthonormal basis of the constraints' gradients: Σ w = 1 and Fᵀ D w = 0.
  PAMA_HD void span() {
    for (int k = 0; k <= rank_; ++k) {
      double* vector = gram_ + k * n_;
      each(team_, n_, [&](int i) {
        const double part = k == 0 ? 1 : at(i, k - 1) * length_[i];
        vector[i] = w_[i] > 0 ? part * w_[i] / root_[i] : 0;
      });
      shorten(vector);  // first, as lengths may spread beyond what squares can hold
      orthogonalise(team_, n_, gram_, k, vector);
      shorten(vector);
    }
  }

  PAMA_HD void shorten(double* x) {
    const double largest = largest_of(team_, n_, [&](int i) { return fabs(x[i]); });
    if (!(largest > 0)) return;
    const double length = sqrt(sum_of(team_, n_, [&](int i) {
      const double part = x[i] / largest;
      return part * part;
    }));
    each(team_, n_, [&](int i) { x[i] = x[i] / largest / length; });
    team_.sync();
  }

  Team team_;
  int n_;
  double* gram_;
  const double* length_;
  Workspace workspace_;
  double* v_ = workspace_.reals;
  double* share_ = v_ + n_;
  double* q_ = share_ + n_;
  double* root_ = q_ + n_;  // of share
  double* total_ = root_ + n_;
  double* norm_ = total_ + n_;
  double* lower_ = norm_ + n_;
  double* column_ = lower_ + n_;  // F, column by column
  double* w_ = nullptr;
  int rank_ = 0;
  int members_ = 0;  // of S
};

}  // namespace pama
