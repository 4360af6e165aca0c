// cagrad: the direction d with ‖d − g_0‖ <= φ = c‖g_0‖ of the largest min_i <g_i, d>, g_0 the mean
// gradient (Liu et al. 2021).
//
// Turned around: the least ‖d − g_0‖ with <g_i, d> >= μ for all i is a problem of
// cone_active_set.h, d = g_0 + Σ y_i g_i, and that distance is a convex function of μ, the root of
// a quadratic on each support. Newton's method from above meets φ in finitely many steps, each of
// which goes on from the support of the last. At μ = 0 it starts with dualproj, which is the result
// where the gradients are Pareto stationary and φ reaches that far: there no μ > 0 is feasible.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/cone_active_set.h"
#include "core/gram_problem.h"
#include "core/min_norm.h"
#include "core/normalize_gram.h"

namespace pama {

template <class Team>
class CaGrad {
 public:
  static constexpr bool kScalar = false;
  static constexpr Takes kTakes = Takes::kNothing;
  static constexpr int kOptions = 1;
  PAMA_HD static constexpr int64_t vector(int64_t) { return 0; }
  PAMA_HD static constexpr int64_t reals(int64_t n) {
    return ConeActiveSet<Team>::reals(n) + MinNorm<Team>::reals(n) + 3 * n;
  }
  PAMA_HD static constexpr int64_t integers(int64_t n) {
    return ConeActiveSet<Team>::integers(n) + MinNorm<Team>::integers(n);
  }
  // Of Newton steps.
  PAMA_HD static constexpr int limit(int n) { return n + 64; }

  PAMA_HD explicit CaGrad(const GramProblem<Team>& problem)
      : problem_(problem),
        team_(problem.team),
        n_(problem.n),
        norm_(problem.workspace.reals),
        mean_(norm_ + n_),
        shortest_(mean_ + n_),
        rest_{shortest_ + n_, problem.workspace.integers},
        method_(team_, n_, problem.gram, norm_, mean_, problem.rtol, true, rest_) {}

  PAMA_HD void solve() {
    int half = 0;
    if (!normalize_gram(team_, n_, problem_.gram, norm_, &half)) {
      return fill(team_, n_, NAN, problem_.out);
    }
    fill(team_, n_, 1.0 / n_, mean_);
    const double radius = problem_.options[0] * sqrt(fmax(square(mean_), 0.0));
    if (!(radius > 0)) return fill(team_, n_, 1.0 / n_, problem_.out);
    method_.resolve(0x1p-30 * radius * radius);
    method_.start();
    method_.solve(0);
    const double wanted = radius * radius, doubt = method_.doubt();
    // For c >= 1 no conflict is within reach, whatever rounding says.
    const bool within = problem_.options[0] >= 1 || method_.square_of_move() - wanted <= -doubt;
    double scale = 1;
    if (!within) {
      scale = approach(lowest_slope(), wanted);
    } else if (rise(radius)) {
      scale = approach(fmax(lowest_slope(), 0.0), wanted);
    }
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      problem_.out[i] = 1.0 / n_ + scale * method_.y()[i];
    }
  }

 private:
  PAMA_HD double square(const double* x) const { return product(x, x); }

  PAMA_HD double product(const double* x, const double* z) const {
    double total = 0;
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      double here = 0;
      for (int j = 0; j < n_; ++j) here += problem_.gram[j * n_ + i] * z[j];
      total += x[i] * here;
    }
    return team_.sum(total);
  }

  // By weak duality every w on the simplex bounds μ: μ <= <g_w, g_0> + φ ‖g_w‖. Sets the level to
  // that of the shortest g_w; false if that is 0 to rounding.
  PAMA_HD bool rise(double radius) {
    GramProblem<Team> inner = problem_;
    inner.vector = nullptr;
    inner.rtol = DBL_EPSILON;
    inner.out = shortest_;
    inner.workspace = {rest_.reals + ConeActiveSet<Team>::reals(n_),
                       rest_.integers + ConeActiveSet<Team>::integers(n_)};
    MinNorm<Team>(inner).solve();
    team_.sync();
    double norms = 0;
    for (int i = team_.rank(); i < n_; i += team_.size()) norms += shortest_[i] * norm_[i];
    norms = team_.sum(norms);
    const double least = square(shortest_);
    if (!(least > (4 * n_ * DBL_EPSILON + problem_.rtol) * norms * norms)) return false;
    level_ = product(shortest_, mean_) + radius * sqrt(least);
    method_.solve(level_);
    return true;
  }

  // Moves the level, up from `low`, until yᵀGy = φ², and returns what to multiply y by to make it
  // so. A level at which rounding hides whether it is more counts as too high: that costs no more
  // of min <g_i, d> than rounding of G may.
  PAMA_HD double approach(double low, double wanted) {
    double high = INFINITY;
    for (int step = 0; step < limit(n_); ++step) {
      const double total = method_.sum(), doubt = method_.doubt();
      const double excess = method_.square_of_move() - wanted;
      const bool sure = doubt <= 0x1p-20 * wanted;
      const double curvature = sure && method_.support() > 0 ? method_.response() : 0;
      const double change = step_of(excess, total, curvature);
      const double near = method_.large() ? 0x1p-30 : 2 * DBL_EPSILON;
      if (sure && fabs(excess) <= near * wanted + doubt) {
        // To solve anew would draw other errors; a move along dy/dμ keeps these.
        if (method_.support() > 0 && !method_.large()) {
          method_.shift(change);
          level_ += change;
        }
        return sqrt(wanted / method_.square_of_move());
      }
      (excess > -doubt ? high : low) = level_;
      double level = level_ + change;
      if (!(sure && level > low && level < high)) level = 0.5 * (low + high);
      if (!(level > low && level < high && level <= DBL_MAX)) break;
      level_ = level;
      method_.solve(level_);
    }
    if (level_ != low) {
      level_ = low;
      method_.solve(level_);
    }
    const double square = method_.square_of_move();
    return square > wanted && method_.doubt() <= square - wanted ? sqrt(wanted / square) : 1;
  }

  // By how much to change the level so that the excess, a quadratic on this support, becomes 0.
  PAMA_HD static double step_of(double excess, double total, double curvature) {
    const double inside = total * total - curvature * excess;
    return -excess / (total + sqrt(fmax(inside, 0.0)));
  }

  // Of the mean gradient, where y = 0.
  PAMA_HD double lowest_slope() const {
    Located lowest{INFINITY, n_};
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      double along = 0;
      for (int j = 0; j < n_; ++j) along += problem_.gram[j * n_ + i];
      const Located here{along / n_, i};
      if (before(here, lowest)) lowest = here;
    }
    return team_.smallest(lowest).value;
  }

  GramProblem<Team> problem_;
  Team team_;
  int n_;
  double* norm_;
  double* mean_;      // 1/n
  double* shortest_;  // min_norm
  Workspace rest_;
  ConeActiveSet<Team> method_;
  double level_ = 0;
};

}  // namespace pama
