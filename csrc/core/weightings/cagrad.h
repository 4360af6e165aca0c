// cagrad: the direction d with ‖d − g_0‖ <= φ = c‖g_0‖ of the largest min_i <g_i, d>, g_0 the mean
// gradient (Liu et al. 2021).
//
// By duality d = g_0 + φ g_w / ‖g_w‖ with w = argmin <g_w, g_0> + φ ‖g_w‖ over the simplex. That w
// also minimises ½ ‖g_w‖² + t <g_w, g_0> for t = ‖g_w‖ / φ, which simplex_active_set.h solves for
// any t. There w stays on the simplex where 1 / t, the sum of the answer's weights, is large. Along
// t, ‖g_w‖² is linear in t² on each corral, and ‖g_w‖ / t falls. Newton's method on t² meets φ in
// finitely many steps, each of which goes on from the corral of the last.
//
// At t = 0 it starts with min_norm. Where that is 0 to rounding, the gradients are Pareto
// stationary and no min_i <g_i, d> above 0 is feasible: dualproj reaches 0, and is the result if φ
// reaches that far.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/compensated_sum.h"
#include "core/algebra/cone_active_set.h"
#include "core/algebra/simplex_active_set.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class CaGrad : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;
  using Method = SimplexActiveSet<Team>;  // the other needs no more workspace

 public:
  static constexpr int kOptions = 1;
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Method::reals(n) + 4 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return Method::integers(n) + n; }
  // Of Newton steps.
  PAMA_HD static constexpr int limit(int n) { return n + 64; }

  PAMA_HD void solve() {
    if (!normalize_gram(problem_, norm_)) return;
    fill(team_, n_, 1.0 / n_, mean_);
    each(team_, n_, [&](int i) {
      leader_[i] = i;
      inner_[i] = product(i, mean_);
    });
    team_.sync();
    const double c = problem_.options[0];
    if (!(c > 0)) return fill(team_, n_, 1.0 / n_, out_);
    approach(c * sqrt(fmax(dot(mean_, inner_), 0.0)));
  }

 private:
  PAMA_HD double dot(const double* a, const double* b) const { return pama::dot(team_, n_, a, b); }

  // (Gx)_i as if in twice the precision: where ‖g_x‖ is small, what rounding leaves of the terms is
  // larger than their sum.
  PAMA_HD double product(int i, const double* x) const {
    double total = 0, rest = 0;
    for (int j = 0; j < n_; ++j) {
      if (x[j] != 0) add_product(problem_.gram[j * n_ + i], x[j], &total, &rest);
    }
    return total + rest;
  }

  PAMA_HD void multiply(const double* x) {
    each(team_, n_, [&](int i) { slope_[i] = product(i, x); });
    team_.sync();
  }

  // Finds t with ‖g_w‖ = φ t. Where rounding leaves it in doubt, the best direction on the way
  // counts.
  PAMA_HD void approach(double radius) {
    const double shift = dot(mean_, norm_), square = radius * radius;
    double t = 0, low = 0, high = INFINITY, wide = INFINITY;  // bounds of t², and their last ratio
    bool projected = false;
    fill(team_, n_, 0, slope_);
    offer(mean_, 0);
    if (!(radius > 0)) return;
    method_.start();
    for (int step = 0;; ++step) {
      method_.tilt(inner_, t, t * shift);
      const double* x = method_.solve();
      multiply(x);
      double found = dot(x, slope_);
      const double norms = dot(x, norm_), rounding = noise_ * norms * norms;
      const bool told = found > rounding;
      if (!told && !projected) {
        projected = true;
        if (project(radius, &t)) return;
        low = t * t;
        method_.start();
        continue;
      }
      if (step == 0) {
        offer(x, radius / sqrt(found));
        t = sqrt(found) / radius;
        low = t * t;
        continue;
      }
      // Where rounding hides ‖g_w‖², the least that it can be on this corral says how t goes on,
      // and the most how far the radius surely reaches.
      const double response = method_.response(), most = told ? found : fmax(found, 0.0) + rounding;
      if (!told) found = t * t * response;
      const double excess = found - square * (t * t);
      const double scale = fmin(radius / sqrt(most), 1 / t);
      const bool met = fabs(excess) <= 4 * DBL_EPSILON * square * (t * t);
      if (met && told) return take(x, scale);
      offer(x, scale);
      if (met || step >= limit(n_)) return;
      if (!told && high == INFINITY && square * (t * t) < 2 * rounding) {
        t = 2 * sqrt(rounding) / radius;  // where rounding hides less than ‖g_w‖² = φ² t²
        continue;
      }
      (excess > 0 ? low : high) = t * t;
      double next = response < square ? t * t + excess / (square - response) : INFINITY;
      const double ratio = high / low;
      if (!(next > low && next < high) || ratio * ratio > wide) {
        // ‖g_w‖ does not fall as t rises, so found / φ² is a bound, too.
        next = high < INFINITY ? sqrt(low) * sqrt(high) : fmax(16 * low, found / square);
      }
      wide = ratio;
      if (!(next > low && next < high)) return;  // nothing lies between
      t = sqrt(next);
    }
  }

  // Makes g_0 + scale · g_x the result if its least slope, less what rounding may hide, is the
  // largest so far. G x is in slope.
  PAMA_HD void offer(const double* x, double scale) {
    const double size = dot(mean_, norm_) + scale * dot(x, norm_);
    const auto sure = [&](int i) {
      const double hidden = 4 * DBL_EPSILON * norm_[i] * size;
      return inner_[i] + scale * slope_[i] - hidden;
    };
    const double least = smallest_of(team_, n_, sure, {INFINITY, n_}).value;
    if (!(least >= best_)) return;
    best_ = least;
    take(x, scale);
  }

  PAMA_HD void take(const double* x, double scale) {
    each(team_, n_, [&](int i) { out_[i] = 1.0 / n_ + scale * x[i]; });
  }

  // dualproj: the result if it lies within the radius. Else it is offered as far as the
  // radius goes, and t, where that is less, set to that of its weights, which is no more than the
  // one that is looked for.
  PAMA_HD bool project(double radius, double* t) {
    ConeActiveSet<Team> method(team_, n_, problem_.gram, norm_, mean_, problem_.rtol, true, rest_);
    const double *y = method.solve(), norms = dot(y, norm_) + dot(mean_, norm_);
    multiply(y);
    // As long as rounding may make it. For c >= 1 the zero gradient is within reach, and with it no
    // conflict, whatever rounding says.
    const double most = fmax(dot(y, slope_), 0.0) + noise_ * norms * norms;
    const bool inside = problem_.options[0] >= 1 || most <= radius * radius;
    if (inside && *t == 0) {
      take(y, 1);
    } else {
      offer(y, inside ? 1 : radius / sqrt(most));
    }
    *t = fmax(*t, 1 / (n_ * dot(y, mean_)));
    team_.sync();
    return inside;
  }

  // What rounding makes of the square of a unit vector.
  double noise_ = 16 * DBL_EPSILON + 2 * problem_.rtol;
  double* norm_ = problem_.workspace.reals;
  double* mean_ = norm_ + n_;                  // 1/n
  double* inner_ = mean_ + n_;                 // <g_i, g_0>
  double* slope_ = inner_ + n_;                // of what is tried
  int* leader_ = problem_.workspace.integers;  // every row is a candidate
  Workspace rest_{slope_ + n_, leader_ + n_};
  Method method_{team_, n_, problem_.gram, norm_, leader_, rest_};
  double best_ = -INFINITY;  // the least slope of the result
};

}  // namespace pama
