// min vᵀGv over v = lower + x, x >= 0, by an active-set method (Lawson & Hanson 1974, ch. 23, on
// the Gram matrix): the point of lower's gradient plus the cone of all gradients that is nearest to
// 0, which conflicts with none of them.
//
// The support S = {x > 0} is factorised, G_S = L D Lᵀ. Only rows that keep G_S regular enter. One
// that depends on S but for rounding takes the place of a row of S: along the dependence vᵀGv has
// no curvature, so it falls until an x reaches 0. Where no x falls, rounding hides a nonnegative
// combination of length 0. Then G is widened and the method starts anew: each gradient gets one
// more coordinate, of the same small part of its length, which makes vᵀGv > 0 for v >= 0 whatever
// rounding took from G. So what is solved is a problem of a matrix within rounding of G, which
// itself stays as it came.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/active_set.h"

namespace pama {

template <class Team>
class ConeActiveSet : ActiveSet<Team> {
  using Base = ActiveSet<Team>;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Base::reals(n) + 2 * n; }
  using Base::integers;

  // `gram`: entries of magnitude up to 4, in error by `rtol` of the norms' products; `norm`: roots
  // of its diagonal; `lower` >= 0; `widens`: false where G must stay as it is.
  PAMA_HD ConeActiveSet(Team team, int n, const double* gram, const double* norm,
                        const double* lower, double rtol, bool widens, Workspace workspace)
      : Base(team, n, gram, norm, workspace),
        widening_(widens ? kNoise + rtol : 0),
        noise_(fmax(kNoise, rtol)),
        lower_(lower),
        slope_(workspace.reals + Base::reals(n)) {}

  // The minimiser, valid until the workspace is used again; at the limit the point that is there.
  PAMA_HD const double* solve() {
    for (widened_ = 0;; widened_ = widening_) {
      Base::start(kNone);
      if (descend()) return x_;
    }
  }

 private:
  using Base::append, Base::drop, Base::longest_step, Base::move_one, Base::readmit, Base::reject;
  using Base::limit, Base::kNone, Base::kRounds, Base::kNoise;
  using Base::team_, Base::n_, Base::gram_, Base::norm_, Base::x_, Base::direction_, Base::member_,
      Base::inside_, Base::factor_;

  // Of the square of a row: a pivot above that part of it is clear of rounding.
  static constexpr double kRegular = 1.0 / 16;

  // Of the matrix that is solved for.
  PAMA_HD double gram(int i, int j) const {
    return gram_[i * n_ + j] + widened_ * (norm_[i] * norm_[j]);
  }

  // False if G is to be widened first, as it is once at most.
  PAMA_HD bool descend() {
    differentiate();
    for (int step = 0; step < limit(n_); ++step) {
      const Located entering = most_violating();
      if (entering.index < 0) break;
      if (!admit(entering.index)) return false;
      // On the way row j may have left again.
      const bool fresh = x_[entering.index] == 0 && inside_[entering.index] == 1;
      if (!fresh) differentiate();
      minimise(fresh ? entering.index : kNone);
    }
    return true;
  }

  // Settles, and again while that leaves slopes on the support, as where x was much larger before,
  // and with it the rounding of its slopes, or where a pivot was raised.
  PAMA_HD void minimise(int entered) {
    for (int round = 0; round < kRounds; ++round) {
      settle(round == 0 ? entered : kNone);
      differentiate();
      if (settled()) return;
    }
  }

  PAMA_HD void move(const Located& limit, double way) {
    const double step = way * limit.value;
    each(team_, factor_.size(), [&](int c) { move_one(c, limit, step); });
    team_.sync();
  }

  PAMA_HD bool settled() const {
    return !any_of(team_, factor_.size(), [&](int c) {
      const int i = member_[c];
      return fabs(slope_[i]) > kNoise * norm_[i] * norms_;
    });
  }

  // slope = G v.
  PAMA_HD void differentiate() {
    double norms = 0;
    each(team_, n_, [&](int r) { slope_[r] = 0; });
    for (int i = 0; i < n_; ++i) {
      const double vi = lower_[i] + x_[i];
      if (vi == 0) continue;
      add_multiple(team_, n_, vi, gram_ + i * n_, slope_);
      norms += norm_[i] * vi;
    }
    norms_ = norms;
    add_multiple(team_, n_, widened_ * norms, norm_, slope_);
    team_.sync();
  }

  // The row outside the support whose slope per length is lowest, if below 0 beyond rounding.
  PAMA_HD Located most_violating() const {
    return smallest_of(team_, n_,
                       [&](int i) {
                         const bool candidate = !inside_[i] && norm_[i] > 0;
                         const bool violates = candidate && -slope_[i] > kNoise * norm_[i] * norms_;
                         return violates ? slope_[i] / norm_[i] : INFINITY;
                       },
                       {0, kNone});
  }

  // Adds row j to the support, or puts it in the place of rows that it depends on; false if G is to
  // be widened first. The row that is eliminated last is the one of most weight in the dependence:
  // its pivot is the dependence's own square, and no small pivot comes before another's.
  PAMA_HD bool admit(int j) {
    int last = j;
    double way = 1, slope = slope_[j];  // in which x_last moves as x_j rises, and how vᵀGv falls
    for (bool chosen = false;;) {
      double pivot = eliminate(last);
      if (pivot < kRegular * gram(last, last)) {
        const double least = depend(last);
        const Located heavy = heaviest();
        if (!chosen && -heavy.value > 2 * norm_[last]) {
          chosen = true;
          const int other = member_[heavy.index];
          const double share = direction_[heavy.index];
          drop(heavy.index);
          append(last, cross_, fmax(eliminate(last), noise_ * gram(last, last)));
          last = other;
          slope /= fabs(share);
          if (share < 0) way = -way;
          continue;
        }
        if (pivot < least) {
          pivot = fmax(-pivot, least);
          Located limit = longest_step(way, -slope / pivot);
          const bool leaves = way < 0 && x_[last] <= limit.value;
          if (leaves) limit = {x_[last], -1};
          if (leaves || limit.index >= 0) {
            move(limit, way);
            if (team_.rank() == 0) x_[last] = leaves ? 0 : x_[last] + way * limit.value;
            team_.sync();
            if (leaves) return true;
            drop(limit.index);
            chosen = false;
            continue;
          }
          if (widened_ < widening_) return false;
        }
      }
      append(last, cross_, pivot);
      return true;
    }
  }

  // The pivot of row j after the support's; leaves L⁻¹ of its products with the support in cross_.
  PAMA_HD double eliminate(int j) {
    each(team_, factor_.size(), [&](int c) { cross_[c] = gram(member_[c], j); });
    return gram(j, j) - factor_.explain(cross_);
  }

  // Makes `direction` the change of x that goes with x_j and keeps the slopes on the support.
  // Returns the rounding of the pivot, which is vᵀGv of that change.
  PAMA_HD double depend(int j) {
    each(team_, factor_.size(), [&](int c) { direction_[c] = -cross_[c] * factor_.inverses()[c]; });
    factor_.backward(direction_);
    const double square = sum_of(team_, factor_.size(), [&](int c) {
      const double length = direction_[c] * norm_[member_[c]];
      return length * length;
    });
    return noise_ * (gram(j, j) + square);
  }

  // The position of the row that moves most in `direction`, and minus how much.
  PAMA_HD Located heaviest() const {
    return smallest_of(team_, factor_.size(),
                       [&](int c) { return -fabs(direction_[c]) * norm_[member_[c]]; }, {0, kNone});
  }

  // To the minimiser over the support, dropping the rows whose x reaches 0 on the way. If the row
  // that has just entered would fall at once, its slope was the others' residual: it is rejected
  // until another row has entered.
  PAMA_HD void settle(int entered) {
    for (bool fresh = entered != kNone;; fresh = false) {
      direct();
      if (fresh) {
        const int position = position_of(entered);
        if (!(direction_[position] > 0)) {
          drop(position);
          reject(entered);
          entered = kNone;
          continue;
        }
      }
      const Located limit = longest_step(1, 1);
      move(limit, 1);
      if (limit.index < 0) break;
      each(team_, factor_.size(), [&](int c) { slope_[member_[c]] *= 1 - limit.value; });
      team_.sync();
      drop(limit.index);
    }
    if (entered != kNone) readmit();
  }

  PAMA_HD int position_of(int i) const {
    int c = factor_.size() - 1;
    while (member_[c] != i) --c;
    return c;
  }

  // −G_S⁻¹ slope.
  PAMA_HD void direct() {
    each(team_, factor_.size(), [&](int c) { direction_[c] = -slope_[member_[c]]; });
    factor_.solve(direction_);
  }

  // The square of the coordinate that is added to unit gradients: Σ v_i v_j ‖g_i‖ ‖g_j‖ times that
  // is more than errors of G may have taken from vᵀGv.
  double widening_;
  double noise_;        // what rounding makes of the square of a unit vector
  double widened_ = 0;  // 0 until it is done
  const double* lower_;
  double* slope_;
  double* cross_ = slope_ + n_;
  double norms_ = 0;  // Σ v_i ‖g_i‖
};

}  // namespace pama
