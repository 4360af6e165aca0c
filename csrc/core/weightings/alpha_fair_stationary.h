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
#include "core/team.h"
#include "core/weightings/alpha_fair_line_search.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class AlphaFairStationary {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return ConeActiveSet<Team>::reals(n) + 3 * n;
  }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return ConeActiveSet<Team>::integers(n); }
  static constexpr int kLimit = 100;

  // `gram`: of unit gradients, overwritten; `length`: of the gradients as they came, 0 for those
  // without a part; `v` to `root`: room.
  PAMA_HD AlphaFairStationary(Team team, int n, double* gram, const double* length, double* v,
                              double* share, double* q, double* root, Workspace workspace)
      : team_(team),
        n_(n),
        gram_(gram),
        length_(length),
        v_(v),
        share_(share),
        q_(q),
        root_(root),
        total_(workspace.reals),
        norm_(total_ + n),
        lower_(norm_ + n),
        rest_{lower_ + n, workspace.integers},
        column_(rest_.reals) {}

  // Rank and S are decided at ‖Σ v g‖² <= `noise` (Σ v)² for unit gradients.
  PAMA_HD void solve(double beta, double noise, double* out) {
    w_ = out;
    cover(noise);
    PAMA_LANES(team_, i, 0, n_) {
      w_[i] = v_[i] > 0 ? v_[i] / length_[i] : 0;
    }
    normalize();
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
  PAMA_HD double* basis(int k) { return gram_ + k * n_; }

  // Sets v to a sum of solutions, positive on S. If none is 0 to rounding, although some weights on
  // the simplex were, to the one nearest to that.
  PAMA_HD void cover(double noise) {
    PAMA_LANES(team_, i, 0, n_) norm_[i] = length_[i] > 0 ? 1 : 0;
    fill(team_, n_, 0, total_);
    fill(team_, n_, 0, lower_);
    ConeActiveSet<Team> method(team_, n_, gram_, norm_, lower_, noise, false, rest_);
    double nearest = INFINITY;
    for (int i = 0; i < n_; ++i) {
      if (total_[i] > 0 || norm_[i] == 0) continue;
      team_.sync();
      if (team_.rank() == 0) lower_[i] = 1;
      method.start();
      method.solve();
      double sum = 0;
      PAMA_LANES(team_, j, 0, n_) {
        q_[j] = lower_[j] + method.y()[j];
        sum += q_[j];
      }
      sum = team_.sum(sum);
      team_.sync();
      const double value = square() / sum / sum;
      if (value < nearest) {
        nearest = value;
        PAMA_LANES(team_, j, 0, n_) v_[j] = q_[j] / sum;
      }
      if (value <= noise) {
        // A smaller part may be rounding, and moves the combination by less than the noise; if it
        // belongs to S, it has a problem of its own.
        const double least = pow(noise, 0.75);
        PAMA_LANES(team_, j, 0, n_) {
          if (j == i || q_[j] > least * sum) total_[j] += q_[j] / sum;
        }
      }
      team_.sync();
      if (team_.rank() == 0) lower_[i] = 0;
    }
    if (nearest <= noise) {
      PAMA_LANES(team_, i, 0, n_) v_[i] = total_[i];
    }
    team_.sync();
  }

  PAMA_HD double square() const {
    double total = 0;
    PAMA_LANES(team_, i, 0, n_) {
      double here = 0;
      for (int j = 0; j < n_; ++j) here += gram_[j * n_ + i] * q_[j];
      total += q_[i] * here;
    }
    return team_.sum(total);
  }

  // Columns of F, as many as rank, over the members of S.
  PAMA_HD void factorise(double noise) {
    double* left = norm_;
    double members = 0;
    PAMA_LANES(team_, i, 0, n_) {
      left[i] = w_[i] > 0 ? 1 : -INFINITY;
      members += w_[i] > 0;
    }
    members_ = static_cast<int>(team_.sum(members));
    team_.sync();
    for (rank_ = 0; rank_ < members_; ++rank_) {
      Located largest{0, n_};  // of the negatives, as teams find the smallest
      PAMA_LANES(team_, i, 0, n_) {
        const Located here{-left[i], i};
        if (before(here, largest)) largest = here;
      }
      largest = team_.smallest(largest);
      if (!(-largest.value > noise)) break;
      const int p = largest.index;
      const double scale = 1 / sqrt(-largest.value);
      PAMA_LANES(team_, i, 0, n_) {
        double element = gram_[p * n_ + i];
        for (int k = 0; k < rank_; ++k) element -= at(i, k) * at(p, k);
        q_[i] = left[i] == -INFINITY ? 0 : element * scale;
      }
      team_.sync();
      PAMA_LANES(team_, i, 0, n_) {
        at(i, rank_) = q_[i];
        left[i] = i == p ? -INFINITY : left[i] - q_[i] * q_[i];
      }
      team_.sync();
    }
  }

  PAMA_HD void normalize() {
    double total = 0;
    PAMA_LANES(team_, i, 0, n_) total += w_[i];
    total = team_.sum(total);
    PAMA_LANES(team_, i, 0, n_) w_[i] /= total;
    team_.sync();
  }

  // ‖Σ w g‖² / (Σ w ‖g‖)², by F.
  PAMA_HD double imbalance() {
    double lengths = 0;
    PAMA_LANES(team_, i, 0, n_) lengths += w_[i] * length_[i];
    lengths = team_.sum(lengths);
    double square = 0;
    for (int k = 0; k < rank_; ++k) {
      double along = 0;
      PAMA_LANES(team_, i, 0, n_) {
        if (w_[i] > 0) along += at(i, k) * w_[i] * length_[i];
      }
      along = team_.sum(along) / lengths;
      square += along * along;
    }
    return square;
  }

  // False where rounding took the last step off the face, as where w^(1−β) spreads over more than
  // 10^32: the weights are those before it.
  PAMA_HD bool ascend(double beta, double wanted, double limit) {
    double* before = v_;
    for (int step = 0; step < kLimit; ++step) {
      double total = 0;
      relative_powers(team_, n_, w_, beta, share_);
      PAMA_LANES(team_, i, 0, n_) {
        root_[i] = sqrt(share_[i]);
        total += share_[i];
      }
      total = team_.sum(total);
      span();
      // √share less its part along the constraints' gradients, to a step relative to w.
      PAMA_LANES(team_, i, 0, n_) q_[i] = root_[i];
      remove_basis(q_, rank_ + 1);
      double square = 0;
      PAMA_LANES(team_, i, 0, n_) {
        square += q_[i] * q_[i];
        q_[i] = root_[i] > 0 ? q_[i] / root_[i] / beta : 0;
      }
      square = team_.sum(square);
      team_.sync();
      // What rounding leaves of the projection, as where S allows but one w.
      const double rounding = 4 * n_ * DBL_EPSILON;
      if (!(square > rounding * rounding * total)) return true;
      const double descent = square / beta;
      const double t = fair_step(team_, n_, share_, q_, beta, descent, 0);
      PAMA_LANES(team_, i, 0, n_) {
        before[i] = w_[i];
        w_[i] *= 1 + t * q_[i];
      }
      normalize();
      if (!(imbalance() <= limit)) {
        PAMA_LANES(team_, i, 0, n_) w_[i] = before[i];
        return false;
      }
      if (descent <= (beta == wanted ? DBL_EPSILON / 4 : 0.01) * total) return true;
    }
    return true;
  }

  // An orthonormal basis of the constraints' gradients: Σ w = 1 and Fᵀ D w = 0.
  PAMA_HD void span() {
    for (int k = 0; k <= rank_; ++k) {
      double* vector = basis(k);
      PAMA_LANES(team_, i, 0, n_) {
        const double part = k == 0 ? 1 : at(i, k - 1) * length_[i];
        vector[i] = w_[i] > 0 ? part * w_[i] / root_[i] : 0;
      }
      shorten(vector);  // first, as lengths may spread beyond what squares can hold
      remove_basis(vector, k);
      shorten(vector);
    }
  }

  PAMA_HD void shorten(double* x) {
    double largest = 0;
    PAMA_LANES(team_, i, 0, n_) largest = fmax(largest, fabs(x[i]));
    largest = team_.largest(largest);
    if (!(largest > 0)) return;
    double square = 0;
    PAMA_LANES(team_, i, 0, n_) {
      const double part = x[i] / largest;
      square += part * part;
    }
    const double length = sqrt(team_.sum(square));
    PAMA_LANES(team_, i, 0, n_) x[i] = x[i] / largest / length;
    team_.sync();
  }

  PAMA_HD void remove_basis(double* x, int count) {
    team_.sync();
    for (int round = 0; round < 2; ++round) {  // twice is enough (Kahan)
      for (int k = 0; k < count; ++k) {
        const double* other = basis(k);
        double along = 0;
        PAMA_LANES(team_, i, 0, n_) along += x[i] * other[i];
        along = team_.sum(along);
        PAMA_LANES(team_, i, 0, n_) x[i] -= along * other[i];
      }
    }
    team_.sync();
  }

  Team team_;
  int n_;
  double* gram_;
  const double* length_;
  double* v_;
  double* share_;
  double* q_;
  double* root_;  // of share
  double* total_;
  double* norm_;
  double* lower_;
  Workspace rest_;
  double* column_;  // F, column by column
  double* w_ = nullptr;
  int rank_ = 0;
  int members_ = 0;  // of S
};

}  // namespace pama
