// G w = w^(−β), w > 0: the minimiser of ½wᵀGw − Σ φ(w) with φ' = w^(−β), which is strictly convex.
//
// Solved for unit gradients, Ĝ = D⁻¹GD⁻¹ and v = Dw, where β = 1 (Nash) sees no lengths at all. In
// steps relative to v the Hessian is VĜV + β diag(w^(1−β)), at β = 1 never below 1: no singular G
// is a special case. Newton's method with a line search; after each step the best multiple of v is
// known in closed form. Over the tests' families β = 1 took some ten steps, and up to 36 to find
// that rounding allows no better where the condition is 10^12. Another β is reached from there by
// doublings and halvings, each from the last one's solution, as from the start it would take
// hundreds of steps where norms or eigenvalues spread: for α from 0.1 to 10 at most 61 each.
//
// Where the gradients are Pareto stationary the minimum lies at infinity, and v/Σv on the way there
// proves it: alpha_fair_stationary.h takes over.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/compensated_sum.h"
#include "core/algebra/ldl.h"
#include "core/algebra/vectors.h"
#include "core/weightings/alpha_fair_line_search.h"
#include "core/weightings/alpha_fair_stationary.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

template <class Team>
class AlphaFair : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Stationary = AlphaFairStationary<Team>;
  using Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Stationary::reals(n) + n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return Stationary::integers(n); }
  // Of Newton steps for each β.
  static constexpr int kLimit = 100;
  // Of a weight in one step.
  static constexpr double kGrowth = 0x1p20;

  PAMA_HD AlphaFair(const GramProblem<Team>& problem, double beta)
      : Weighting<Team>(problem), beta_(beta) {}

  PAMA_HD void solve() {
    int half = 0;
    const bool meant = beta_ > 0 && beta_ <= DBL_MAX;
    if (!normalize_gram(problem_, length_, &half)) return;
    if (!meant) return fill(team_, n_, NAN, out_);
    make_unit();
    noise_ = 4 * n_ * DBL_EPSILON + problem_.rtol;
    Outcome outcome = descend(1);
    for (double beta = 1; outcome == kInterior && beta != beta_;) {
      beta = beta_ > beta ? fmin(2 * beta, beta_) : fmax(beta / 2, beta_);
      outcome = descend(beta);
    }
    if (outcome == kLost) return fill(team_, n_, NAN, out_);
    if (outcome == kStationary) {
      Stationary face(team_, n_, problem_.gram, length_, {v_, problem_.workspace.integers});
      return face.solve(beta_, noise_, out_);
    }
    // G was divided by 4^half.
    const double scale = exp2(-2 * half / (1 + beta_));
    each(team_, n_, [&](int i) { out_[i] = length_[i] > 0 ? v_[i] / length_[i] * scale : 0; });
  }

 private:
  enum Outcome { kInterior, kStationary, kLost };

  PAMA_HD double& gram(int i, int j) { return problem_.gram[i * n_ + j]; }

  // Zero gradients get rows of zeros and v = 0. That no cosine exceeds 1 keeps what is no Gram
  // matrix within range.
  PAMA_HD void make_unit() {
    for (int i = 0; i < n_; ++i) {
      each(team_, n_, [&](int j) {
        const bool used = length_[i] > 0 && length_[j] > 0;
        const double cosine = used ? gram(i, j) / length_[i] / length_[j] : 0;
        gram(i, j) = used && i == j ? 1 : fmin(fmax(cosine, -1.0), 1.0);
      });
    }
    each(team_, n_, [&](int i) { v_[i] = length_[i] > 0 ? 1 : 0; });
    team_.sync();
  }

  PAMA_HD Outcome descend(double beta) {
    const bool last = beta == beta_;
    for (int step = 0; step < kLimit; ++step) {
      const double total = differentiate(beta);
      const auto [value, sum] =
          sums_of(team_, n_, [&](int i) { return Two{v_[i] * slope_[i], v_[i]}; });
      if (sum == 0) return kInterior;  // zero gradients only
      if (!(fabs(value) <= DBL_MAX && total <= DBL_MAX)) return kLost;
      if (!(value > noise_ * sum * sum)) {
        // No Gram matrix has a negative square: its entries' errors are what it shows, at least.
        noise_ = fmax(noise_, 4 * fabs(value) / sum / sum);
        return kStationary;
      }
      // Where gradients nearly cancel, their combination is less than rounding of its terms: sums
      // are exact from here on.
      precise_ = precise_ || value < 0x1p-24 * sum * sum;
      const double factor = best_multiple(total, value, beta);
      rescale(beta, factor);
      if (!precise_ && solved(sum * factor)) return kInterior;
      factorise(beta);
      const double descent = aim();
      const double longest = largest_of(team_, n_, [&](int i) { return fabs(q_[i]); });
      const double bent = sum_of(team_, n_, [&](int i) { return share_[i] * q_[i] * q_[i]; });
      const double curvature = fmax(descent - beta * bent, 0.0);
      // Convergence is quadratic: the step after a short one would be about its square.
      const bool close = longest <= 0x1p-27;
      double t = close ? 1 : fair_step(team_, n_, share_, q_, beta, descent, curvature);
      // Where errors of G make it indefinite, the objective may fall without end.
      if (t * longest > kGrowth) t = kGrowth / longest;
      each(team_, n_, [&](int i) { v_[i] *= 1 + t * q_[i]; });
      team_.sync();
      if (close || (!last && longest <= 0.1)) return kInterior;
    }
    return kInterior;
  }

  // Of v with vᵀĜv = `value`, whose shares add up to `total`.
  PAMA_HD double best_multiple(double total, double value, double beta) const {
    if (beta == 1) return sqrt(total / value);
    return pow(total / value, 1 / (1 + beta)) * pow(unit_, (1 - beta) / (1 + beta));
  }

  // slope = Ĝv and share = (w / unit)^(1−β), whose sum is returned.
  PAMA_HD double differentiate(double beta) {
    double* __restrict__ slope = slope_;
    double* __restrict__ rest = row_;  // what rounding took from it
    each(team_, n_, [&](int r) { slope[r] = rest[r] = 0; });
    for (int i = 0; i < n_; ++i) {
      const double vi = v_[i];
      const double* __restrict__ row = problem_.gram + i * n_;
      if (precise_) {
        each(team_, n_, [&](int r) { add_product(row[r], vi, &slope[r], &rest[r]); });
      } else {
        add_multiple(team_, n_, vi, row, slope);
      }
    }
    each(team_, n_, [&](int i) {
      slope[i] += rest[i];
      share_[i] = length_[i] > 0 ? v_[i] / length_[i] : 0;
    });
    unit_ = relative_powers(team_, n_, share_, beta, share_);
    return sum_of(team_, n_, [&](int i) { return share_[i]; });
  }

  // To the best multiple of v, of which share is w^(1−β).
  PAMA_HD void rescale(double beta, double factor) {
    const double other = power(unit_ * factor, 1 - beta);
    team_.sync();
    each(team_, n_, [&](int i) {
      v_[i] *= factor;
      slope_[i] *= factor;
      share_[i] *= other;
      q_[i] = share_[i] - v_[i] * slope_[i];
    });
    team_.sync();
  }

  // Whether q, the residual, is what rounding of Ĝv leaves.
  PAMA_HD bool solved(double sum) const {
    return !any_of(team_, n_, [&](int i) {
      return fabs(q_[i]) > 4 * DBL_EPSILON * (v_[i] * sum + share_[i]);
    });
  }

  // VĜV + β diag(share), with 1 for zero gradients. A pivot below its diagonal's second part, which
  // only rounding makes it, is raised to that.
  PAMA_HD void factorise(double beta) {
    factor_.factorise(
        n_, [&](int r, int c) { return gram(r, c) * v_[r] * v_[c]; },
        [&](int r, double pivot) {
          const double least = length_[r] > 0 ? fmax(beta * share_[r], DBL_MIN) : 1;
          return fmax(pivot, 0.0) + least;
        });
  }

  // From the residual to Newton's step; returns their product.
  PAMA_HD double aim() {
    copy(team_, n_, q_, row_);
    factor_.solve(row_);
    const double descent = dot(team_, n_, q_, row_);
    copy(team_, n_, row_, q_);
    team_.sync();
    return descent;
  }

  double beta_;
  double* length_ = problem_.workspace.reals;  // ‖g_i‖
  double* v_ = length_ + n_;
  double* slope_ = v_ + n_;
  double* share_ = slope_ + n_;
  double* q_ = share_ + n_;
  double* row_ = q_ + n_;
  Ldl<Team> factor_{team_, n_, row_ + n_};
  bool precise_ = false;
  double unit_ = 1;
  double noise_ = 0;  // the square of a unit gradient's part that may be rounding
};

}  // namespace pama
