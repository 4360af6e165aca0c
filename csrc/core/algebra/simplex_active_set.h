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

#include "core/algebra/ldl.h"
#include "core/team.h"

namespace pama {

template <class Team>
class SimplexActiveSet {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return n * n + 11 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return 2 * n; }

  // `gram`: n x n, symmetric, entries of magnitude up to 2^900; `norm`: roots of its diagonal.
  // `leader[i]` == i marks a candidate; other rows stay out of the corral.
  PAMA_HD SimplexActiveSet(Team team, int n, const double* gram, const double* norm,
                           const int* leader, Workspace workspace)
      : team_(team),
        n_(n),
        gram_(gram),
        norm_(norm),
        leader_(leader),
        x_(workspace.reals),
        best_(x_ + n),
        slope_(x_ + 2 * n),
        cross_(x_ + 3 * n),
        residual_(x_ + 4 * n),
        a_(x_ + 5 * n),
        b_(x_ + 6 * n),
        direction_(x_ + 7 * n),
        member_(workspace.integers),
        inside_(workspace.integers + n),
        factor_(team, n, x_ + 11 * n, x_ + 8 * n, x_ + 9 * n, x_ + 10 * n) {}

  // x = the shortest row.
  PAMA_HD void start() {
    Located shortest{INFINITY, n_};
    PAMA_LANES(team_, i, 0, n_) {
      if (leader_[i] != i) continue;
      const Located here{gram(i, i), i};
      if (before(here, shortest)) shortest = here;
    }
    base_ = team_.smallest(shortest).index;
    PAMA_LANES(team_, i, 0, n_) {
      x_[i] = i == base_ ? 1 : 0;
      inside_[i] = i == base_;
    }
    factor_.clear();
    rejections_ = due_ = false;
    team_.sync();
  }

  // The linear part. `shift`: the length that t b_i is rounded to, per length of row i.
  PAMA_HD void tilt(const double* linear, double t, double shift) {
    linear_ = linear;
    t_ = t;
    shift_ = shift;
  }

  // The minimiser, going on from the point that is there; valid until the workspace is used again.
  // `limit` bounds the number of entering rows. At the limit the point of least duality gap is
  // returned, of those visited in the second half: runs that end, as all known ones do, need not
  // pay for the record.
  PAMA_HD const double* solve(int limit) {
    readmit();
    double least_gap = INFINITY;
    for (int step = 0;; ++step) {
      settle();
      const Located entering = most_violating();
      if (entering.index < 0) return x_;
      if (2 * step >= limit) {
        const double gap = value_ - team_.smallest(lowest_slope()).value;
        if (gap < least_gap) {
          least_gap = gap;
          PAMA_LANES(team_, i, 0, n_) best_[i] = x_[i];
        }
        if (step == limit) return best_;
      }
      advance(entering.index);
    }
  }

  // −d²/dt² of the minimum on the corral as it is: the square of the part of b's gradient along it.
  PAMA_HD double response() {
    const int k = factor_.size();
    PAMA_LANES(team_, c, 0, k) {
      a_[c] = linear_[member_[c]] - linear_[base_];
    }
    factor_.forward(a_);
    double total = 0;
    PAMA_LANES(team_, c, 0, k) {
      total += a_[c] * (a_[c] * factor_.inverses()[c]);
    }
    total = team_.sum(total);
    team_.sync();
    return total;
  }

 private:
  static constexpr int kNone = -1;  // no row enters
  static constexpr int kRejected = 2;
  static constexpr int kRounds = 4;
  // A multiple of the unit roundoff below which a violation is noise.
  static constexpr double kNoise = 8 * (DBL_EPSILON / 2);

  PAMA_HD double gram(int i, int j) const { return gram_[i * n_ + j]; }

  // slope = G x + t b and value = xᵀ slope, from the rows in the corral.
  PAMA_HD void differentiate() {
    const int k = factor_.size();
    double norms = norm_[base_] * x_[base_];
    if constexpr (Team::kOneEach) {  // in a register
      PAMA_LANES(team_, r, 0, n_) {
        double slope = gram(base_, r) * x_[base_];
        for (int c = 0; c < k; ++c) slope += gram(member_[c], r) * x_[member_[c]];
        slope_[r] = slope;
      }
      for (int c = 0; c < k; ++c) norms += norm_[member_[c]] * x_[member_[c]];
    } else {
      PAMA_LANES(team_, r, 0, n_) slope_[r] = gram(base_, r) * x_[base_];
      PAMA_ROLLED for (int c = 0; c < k; ++c) {
        const int i = member_[c];
        const double xi = x_[i];
        const double* __restrict__ row = gram_ + i * n_;
        double* __restrict__ slope = slope_;
        PAMA_LANES(team_, r, 0, n_) slope[r] += row[r] * xi;
        norms += norm_[i] * xi;
      }
    }
    if (t_ > 0) {
      PAMA_LANES(team_, r, 0, n_) slope_[r] += t_ * linear_[r];
    }
    mean_norm_ = norms;
    double value = 0;
    PAMA_LANES(team_, r, 0, n_) value += slope_[r] * x_[r];
    value_ = team_.sum(value);
    team_.sync();
  }

  PAMA_HD double noise(int i) const {
    return kNoise * (norm_[i] + mean_norm_) * (mean_norm_ + shift_);
  }

  // Whether all slopes of the corral are the value, to rounding.
  PAMA_HD bool settled() const {
    bool off = false;
    PAMA_LANES(team_, i, 0, n_) {
      off = off || (inside_[i] == 1 && fabs(slope_[i] - value_) > noise(i));
    }
    return !team_.any(off);
  }

  // The candidate outside the corral whose slope is furthest below the value, beyond rounding.
  PAMA_HD Located most_violating() const {
    Located found{0, -1};
    PAMA_LANES(team_, i, 0, n_) {
      if (leader_[i] != i || inside_[i]) continue;
      const Located here{slope_[i] - value_, i};
      if (-here.value > noise(i) && before(here, found)) found = here;
    }
    return team_.smallest(found);
  }

  PAMA_HD Located lowest_slope() const {
    Located lowest{INFINITY, n_};
    PAMA_LANES(team_, i, 0, n_) {
      if (leader_[i] == i && slope_[i] < lowest.value) lowest = {slope_[i], i};
    }
    return lowest;
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
    PAMA_LANES(team_, c, 0, factor_.size()) {
      residual_[c] = slope_[member_[c]] - slope_[base_];
    }
    for (bool related = false;;) {
      const int k = factor_.size();
      if (!related) relate(j);
      related = true;
      Curvature along = reduce(j, residual);
      if (enters && !(along.descent > 0)) {  // only by rounding; j stays if it has a weight already
        if (x_[j] == 0) return reject(j);
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
        accept(j, along.pivot);
        if (!(norm_[j] < norm_[base_] / 4)) return;
        give_base_to_last();
        rows = k + 1;
        done = true;
      } else {
        if (!enters) {
          readmit();
        } else if (newton) {
          PAMA_LANES(team_, c, 0, k) residual_[c] *= 1 - limit.value;
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
          related = false;
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
    PAMA_LANES(team_, c, 0, k) {
      a_[c] = cross_[c];
      b_[c] = -residual_[c];
    }
    factor_.forward(a_, b_);
    double explained = 0, moved = 0;
    PAMA_LANES(team_, c, 0, k) {
      const double along = a_[c] * factor_.inverses()[c];
      explained += a_[c] * along;
      moved += b_[c] * along;
    }
    if (j == kNone) return {0, 0};
    return {difference(j, j) - team_.sum(explained), -residual - team_.sum(moved)};
  }

  // The direction over R that goes with a step of the entering row; `correct` is 1 to remove the
  // residuals of R as well. Returns the base's part.
  PAMA_HD double direct(double step_j, double correct) {
    const int k = factor_.size();
    PAMA_LANES(team_, c, 0, k) {
      // No step of j leaves no trace of it, were it NaN.
      const double moved = step_j == 0 ? 0 : step_j * a_[c];
      direction_[c] = (correct * b_[c] - moved) * factor_.inverses()[c];
    }
    factor_.backward(direction_);
    double total = 0;
    PAMA_LANES(team_, c, 0, k) total += direction_[c];
    return -(step_j + team_.sum(total));
  }

  PAMA_HD void relate(int j) {
    PAMA_LANES(team_, c, 0, factor_.size()) {
      cross_[c] = j == kNone ? 0 : difference(member_[c], j);
    }
    team_.sync();
  }

  // How far to go along the direction: `full`, with index −1, unless a weight reaches 0 before;
  // index k stands for the base.
  PAMA_HD Located longest_step(double step_base, double full) const {
    const int k = factor_.size();
    Located limit{full, -1};
    PAMA_LANES(team_, c, 0, k) {
      if (!(direction_[c] < 0)) continue;
      const Located here{-x_[member_[c]] / direction_[c], c};
      if (here.value < limit.value) limit = here;
    }
    if (step_base < 0 && -x_[base_] / step_base < limit.value) {
      limit = {-x_[base_] / step_base, k};
    }
    return team_.smallest(limit);
  }

  PAMA_HD void move(const Located& limit, int j, double step_j) {
    const int k = factor_.size();
    double others = 0;
    PAMA_LANES(team_, c, 0, k) {
      const int i = member_[c];
      const double moved = x_[i] + limit.value * direction_[c];
      x_[i] = c == limit.index ? 0 : fmax(moved, 0.0);
      others += x_[i];
    }
    const double entering = j == kNone ? 0 : x_[j] + limit.value * step_j;
    others = team_.sum(others) + entering;
    team_.sync();
    if (team_.rank() == 0) {
      if (j != kNone) x_[j] = entering;
      x_[base_] = limit.index == k ? 0 : fmax(1 - others, 0.0);
    }
    team_.sync();
  }

  PAMA_HD void accept(int j, double pivot) {
    if (team_.rank() == 0) {
      member_[factor_.size()] = j;
      inside_[j] = 1;
    }
    factor_.append(a_, pivot);
  }

  // What made row j seem to enter was the corral's own residual: remove that, and leave j out until
  // another row has entered.
  PAMA_HD void reject(int j) {
    if (team_.rank() == 0) inside_[j] = kRejected;
    rejections_ = true;
    due_ = true;
  }

  PAMA_HD void readmit() {
    if (!rejections_) return;
    PAMA_LANES(team_, i, 0, n_) {
      if (inside_[i] == kRejected) inside_[i] = 0;
    }
    rejections_ = false;
    team_.sync();
  }

  PAMA_HD void drop(int position) {
    const int k = factor_.size();
    if (team_.rank() == 0) {
      inside_[member_[position]] = 0;
      PAMA_ROLLED for (int c = position + 1; c < k; ++c) {
        member_[c - 1] = member_[c];
        cross_[c - 1] = cross_[c];
        residual_[c - 1] = residual_[c];
      }
    }
    team_.sync();
    factor_.remove(position);
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
    Located shortest{INFINITY, k};
    for (int c = team_.rank(); c <= k; c += team_.size()) {
      const Located here{gram(member_[c], member_[c]), c};
      if (before(here, shortest)) shortest = here;
    }
    const int position = team_.smallest(shortest).index;
    const int base = member_[position];
    const double shift = residual_[position];
    team_.sync();
    if (team_.rank() == 0) {
      inside_[base_] = 0;
      PAMA_ROLLED for (int c = 0; c < k; ++c) {
        const int from = c < position ? c : c + 1;
        member_[c] = member_[from];
        residual_[c] = residual_[from] - shift;
      }
    }
    base_ = base;
    team_.sync();
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
    factor_.clear();
    PAMA_ROLLED for (int r = 0; r < k; ++r) {
      const int i = member_[r];
      PAMA_LANES(team_, c, 0, r) a_[c] = difference(member_[c], i);
      factor_.forward(a_);
      double explained = 0;
      PAMA_LANES(team_, c, 0, r) {
        explained += a_[c] * (a_[c] * factor_.inverses()[c]);
      }
      const double pivot = difference(i, i) - team_.sum(explained);
      factor_.append(a_, pivot > 0 ? pivot : DBL_EPSILON * (gram(i, i) + gram(base_, base_)));
    }
  }

  Team team_;
  int n_;
  const double* gram_;
  const double* norm_;  // ‖g_i‖
  const int* leader_;
  double* x_;
  double* best_;
  double* slope_;
  double* cross_;     // <g_i − g_b, g_j − g_b> over R, j the entering row
  double* residual_;  // slope_i − slope_b over R
  double* a_;
  double* b_;
  double* direction_;  // over R
  int* member_;        // the rows of R in the order of the factor
  int* inside_;        // whether row i is in the corral (1), or rejected for now
  bool rejections_ = false;
  bool due_ = false;  // whether a step within the corral is due, even if it looks settled
  Ldl<Team> factor_;
  int base_ = 0;
  double value_ = 0;
  double mean_norm_ = 0;  // Σ x_i ‖g_i‖
  const double* linear_ = nullptr;
  double t_ = 0;
  double shift_ = 0;
};

}  // namespace pama
