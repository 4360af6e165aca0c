// min ½ cᵀGc + t bᵀc over the simplex, by Wolfe's finite active-set method (Math. Prog. 11, 1976)
// on the Gram matrix. Without the linear part, the shortest vector of the hull of the gradients;
// with b_i = <g_i, g>, that of their hull shifted by t g.
//
// The corral S is a base vertex b and the rows R. What is factorised is not G_S, which is singular
// exactly where the optimum is 0, but the Gram matrix of the differences g_i − g_b over R: positive
// definite wherever the minimiser over the affine hull of S is unique, whatever the sign of the
// optimum. With b the shortest row, its rounding errors are no larger than those of G.
//
// Each step solves for the correction of the gradient G x as it stands, so that errors of earlier
// steps are corrected, not accumulated. Where rounding made G indefinite and the curvature towards
// the entering row is negative, the step goes to the face of the simplex that it runs into; the
// objective falls there too. So the method ends at a point where no slope (Gx)_i + t b_i is below
// their mean Σ x_i slope_i, to rounding, also for such G; for t = 0, xᵀGx >= λ_min(G) there.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/active_set.h"

namespace pama {

template <class Team>
class SimplexActiveSet : ActiveSet<Team> {
  using Base = ActiveSet<Team>;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Base::reals(n) + 5 * n; }
  using Base::integers;

  // `gram`: n x n, symmetric, entries of magnitude up to 2^900; `norm`: roots of its diagonal.
  // `leader[i]` == i marks a candidate; other rows stay out of the corral.
  PAMA_HD SimplexActiveSet(Team team, int n, const double* gram, const double* norm,
                           const int* leader, Workspace workspace)
      : Base(team, n, gram, norm, workspace),
        leader_(leader),
        best_(workspace.reals + Base::reals(n)) {}

  // x = the shortest row.
  PAMA_HD void start() {
    base_ = smallest_of(team_, n_, [&](int i) { return leader_[i] == i ? gram(i, i) : INFINITY; },
                        {INFINITY, n_})
                .index;
    due_ = false;
    Base::start(base_);
  }

  // The linear part. `shift`: the length that t b_i is rounded to, per length of row i.
  PAMA_HD void tilt(const double* linear, double t, double shift) {
    linear_ = linear;
    t_ = t;
    shift_ = shift;
  }

  // The minimiser, going on from the point that is there; valid until the workspace is used again.
  // At the limit the point of least duality gap is returned, of those visited in the second half:
  // runs that end, as all known ones do, need not pay for the record.
  PAMA_HD const double* solve() {
    readmit();
    double least_gap = INFINITY;
    for (int step = 0;; ++step) {
      settle();
      const Located entering = most_violating();
      if (entering.index < 0) return x_;
      if (2 * step >= limit(n_)) {
        const double gap = value_ - lowest_slope();
        if (gap < least_gap) {
          least_gap = gap;
          copy(team_, n_, x_, best_);
        }
        if (step == limit(n_)) return best_;
      }
      advance(entering.index);
    }
  }

  // −d²/dt² of the minimum on the corral as it is: the square of the part of b's gradient along it.
  PAMA_HD double response() {
    each(team_, factor_.size(), [&](int c) { a_[c] = linear_[member_[c]] - linear_[base_]; });
    const double total = factor_.explain(a_);
    team_.sync();
    return total;
  }

 private:
  using Base::limit, Base::kNone, Base::kRounds, Base::kNoise;
  using Base::readmit;
  using Base::team_, Base::n_, Base::gram_, Base::norm_, Base::x_, Base::direction_, Base::member_,
      Base::inside_, Base::factor_;

  PAMA_HD double gram(int i, int j) const { return gram_[i * n_ + j]; }

  // slope = G x + t b and value = xᵀ slope, from the rows in the corral.
  PAMA_HD void differentiate() {
    const int k = factor_.size();
    double norms = norm_[base_] * x_[base_];
    if constexpr (Team::kOneEach) {  // in a register
      each(team_, n_, [&](int r) {
        double slope = gram(base_, r) * x_[base_];
        for (int c = 0; c < k; ++c) slope += gram(member_[c], r) * x_[member_[c]];
        slope_[r] = slope;
      });
      for (int c = 0; c < k; ++c) norms += norm_[member_[c]] * x_[member_[c]];
    } else {
      each(team_, n_, [&](int r) { slope_[r] = gram(base_, r) * x_[base_]; });
      PAMA_ROLLED for (int c = 0; c < k; ++c) {
        const int i = member_[c];
        add_multiple(team_, n_, x_[i], gram_ + i * n_, slope_);
        norms += norm_[i] * x_[i];
      }
    }
    if (t_ > 0) add_multiple(team_, n_, t_, linear_, slope_);
    mean_norm_ = norms;
    value_ = dot(team_, n_, slope_, x_);
    team_.sync();
  }

  PAMA_HD double noise(int i) const {
    return kNoise * (norm_[i] + mean_norm_) * (mean_norm_ + shift_);
  }

  // Whether all slopes of the corral are the value, to rounding.
  PAMA_HD bool settled() const {
    return !any_of(team_, n_,
                   [&](int i) { return inside_[i] == 1 && fabs(slope_[i] - value_) > noise(i); });
  }

  // The candidate outside the corral whose slope is furthest below the value, beyond rounding.
  PAMA_HD Located most_violating() const {
    const auto violation = [&](int i) {
      if (leader_[i] != i || inside_[i]) return static_cast<double>(INFINITY);
      // Few rows come this far: a branch, and nothing that others would wait for.
      const double below = slope_[i] - value_;
      return -below > noise(i) ? below : INFINITY;
    };
    return smallest_of(team_, n_, violation, {0, kNone});
  }

  PAMA_HD double lowest_slope() const {
    const auto slope = [&](int i) { return leader_[i] == i ? slope_[i] : INFINITY; };
    return smallest_of(team_, n_, slope, {INFINITY, n_}).value;
  }

  PAMA_HD double difference(int i, int j) const {
    return (gram(i, j) - gram(i, base_)) - (gram(base_, j) - gram(base_, base_));
  }

  // Slopes; and where rows of the corral nearly depend on each other, so that a step left them
  // slopes of their own, steps within it.
  PAMA_HD void settle() {
    for (int round = 0;;) {
      differentiate();
      if (!due_) {
        if (round == kRounds + n_ || settled()) return;
        ++round;
      }
      due_ = false;
      advance(kNone);
    }
  }

  // Moves to the minimiser over the affine hull of the corral and row j, dropping the rows whose
  // weights reach 0 on the way. Without a row j, one Newton step within the corral, from the slopes
  // as they are, as far as the simplex goes. One function for both: a GPU waits for its code.
  PAMA_HD void advance(int j) {
    const bool enters = j != kNone;
    double residual = enters ? slope_[j] - slope_[base_] : 0;
    each(team_, factor_.size(), [&](int c) { residual_[c] = slope_[member_[c]] - slope_[base_]; });
    for (;;) {
      const int k = factor_.size();
      Curvature along = reduce(j, residual);
      if (enters && !(along.descent > 0)) {  // only by rounding; j stays if it has a weight already
        if (x_[j] == 0) {
          due_ = true;  // what made j seem to enter was the corral's own residual
          return Base::reject(j);
        }
        along.descent = 0;
      }
      // A Newton step needs positive curvature; if it leaves the simplex anyway only its direction
      // matters, and 1 for the entering row keeps that finite.
      const bool newton = !enters || along.descent < along.pivot;
      const double step_j = !enters ? 0 : newton ? along.descent / along.pivot : 1;
      const double step_base = direct(step_j, newton ? 1 : 0);
      const double full = newton ? 1 : along.pivot > 0 ? along.descent / along.pivot : INFINITY;
      const Located limit = longest_step(step_base, full);
      move(limit, j, step_j);
      int rows = -1;  // of a factor to be built anew, for another base
      bool done = !enters;
      if (limit.index < 0) {
        if (!enters) return;
        readmit();
        Base::append(j, a_, along.pivot);
        if (!(norm_[j] < norm_[base_] / 4)) return;
        give_base_to_last();
        rows = k + 1;
        done = true;
      } else {
        if (!enters) {
          readmit();
        } else if (newton) {
          each(team_, k, [&](int c) { residual_[c] *= 1 - limit.value; });
          residual *= 1 - limit.value;
        } else {
          residual += limit.value * along.pivot;
        }
        team_.sync();
        if (limit.index < k) {
          drop(limit.index);
        } else if (k == 0) {  // only j is left
          readmit();
          replace_base(j);
          return;
        } else {
          residual -= change_base();
          rows = k - 1;
        }
      }
      if (rows >= 0) factorise(rows);
      if (done) return;
    }
  }

  // Of the entering row, once R has been eliminated.
  struct Curvature {
    double pivot, descent;
  };

  // Also leaves L⁻¹ of the cross products in a_ and of the negative residuals in b_.
  PAMA_HD Curvature reduce(int j, double residual) {
    const int k = factor_.size();
    each(team_, k, [&](int c) {
      a_[c] = j == kNone ? 0 : difference(member_[c], j);
      b_[c] = -residual_[c];
    });
    factor_.forward(a_, b_);
    if (j == kNone) return {0, 0};
    const auto [explained, moved] = sums_of(team_, k, [&](int c) {
      const double along = a_[c] * factor_.inverses()[c];
      return Two{a_[c] * along, b_[c] * along};
    });
    return {difference(j, j) - explained, -residual - moved};
  }

  // The direction over R that goes with a step of the entering row; `correct` is 1 to remove the
  // residuals of R as well. Returns the base's part.
  PAMA_HD double direct(double step_j, double correct) {
    const int k = factor_.size();
    each(team_, k, [&](int c) {
      // No step of j leaves no trace of it, were it NaN.
      const double moved = step_j == 0 ? 0 : step_j * a_[c];
      direction_[c] = (correct * b_[c] - moved) * factor_.inverses()[c];
    });
    factor_.backward(direction_);
    return -(step_j + sum_of(team_, k, [&](int c) { return direction_[c]; }));
  }

  // That of the rows of R, unless the base's weight reaches 0 before; index k stands for the base.
  PAMA_HD Located longest_step(double step_base, double full) const {
    const Located limit = Base::longest_step(1, full);
    const double base = step_base < 0 ? -x_[base_] / step_base : INFINITY;
    return base < limit.value ? Located{base, factor_.size()} : limit;
  }

  PAMA_HD void move(const Located& limit, int j, double step_j) {
    const int k = factor_.size();
    const double rest =
        sum_of(team_, k, [&](int c) { return Base::move_one(c, limit, limit.value); });
    const double entering = j == kNone ? 0 : x_[j] + limit.value * step_j;
    const double others = rest + entering;
    team_.sync();
    if (team_.rank() == 0) {
      if (j != kNone) x_[j] = entering;
      x_[base_] = limit.index == k ? 0 : fmax(1 - others, 0.0);
    }
    team_.sync();
  }

  PAMA_HD void drop(int position) {
    Base::close_gap(residual_, position);
    Base::drop(position);
  }

  PAMA_HD void replace_base(int j) {
    if (team_.rank() == 0) {
      inside_[base_] = 0;
      inside_[j] = 1;
    }
    base_ = j;
    team_.sync();
  }

  // The base has left: the shortest row of R takes its place, and the factor is to be built anew.
  // Returns by how much residuals relative to the new base are lower than those to the old one.
  PAMA_HD double change_base() {
    const int k = factor_.size() - 1;
    const int position =
        smallest_of(team_, k + 1, [&](int c) { return gram(member_[c], member_[c]); },
                    {INFINITY, k})
            .index;
    const int base = member_[position];
    const double shift = residual_[position];
    team_.sync();
    if (team_.rank() == 0) inside_[base_] = 0;
    Base::close_gap(member_, position);
    Base::close_gap(residual_, position);
    base_ = base;
    team_.sync();
    each(team_, k, [&](int c) { residual_[c] -= shift; });
    return shift;
  }

  // The row that entered last is much shorter than the base, whose rounding errors would drown it:
  // they change places, and the factor is to be built anew.
  PAMA_HD void give_base_to_last() {
    const int k = factor_.size(), shorter = member_[k - 1];
    team_.sync();
    if (team_.rank() == 0) member_[k - 1] = base_;
    base_ = shorter;
    due_ = true;
    team_.sync();
  }

  // The factor of the first k members' differences from the base.
  PAMA_HD void factorise(int k) {
    factor_.factorise(
        k, [&](int r, int c) { return difference(member_[c], member_[r]); },
        [&](int r, double pivot) {
          const int i = member_[r];
          return pivot > 0 ? pivot : DBL_EPSILON * (gram(i, i) + gram(base_, base_));
        });
  }

  const int* leader_;
  double* best_;
  double* slope_ = best_ + n_;
  double* residual_ = slope_ + n_;  // slope_i − slope_b over R
  double* a_ = residual_ + n_;
  double* b_ = a_ + n_;
  bool due_ = false;  // whether a step within the corral is due, even if it looks settled
  int base_ = 0;
  double value_ = 0;
  double mean_norm_ = 0;  // Σ x_i ‖g_i‖
  const double* linear_ = nullptr;
  double t_ = 0;
  double shift_ = 0;
};

}  // namespace pama
