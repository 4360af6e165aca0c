// pama_weights: Theorem 1 of He & Maghsudi (arXiv 2508.07768). Of all weights c on the simplex that
// minimise (Σ c_i a_i)², the ones nearest to the preference p.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/vectors.h"
#include "core/weightings/preference.h"

namespace pama {

// Where all values have one sign (or 0), the objective of least rank gets the weight; objectives of
// equal rank share it. `preference` is positive and relative to the largest.
PAMA_HD inline double one_sided_rank(double value, double preference) {
  return fabs(value) / preference;
}

// The weight of one of `count` objectives of least rank, whose preferences sum to `tied` where all
// preferences sum to 1.
PAMA_HD inline double one_sided_weight(double preference, double tied, int count) {
  return preference + (1 - tied) / count;
}

template <class Team>
class PamaWeights {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return 3 * n; }

  PAMA_HD PamaWeights(Team team, int n, Workspace workspace)
      : team_(team), n_(n), relative_(workspace.reals) {}

  // The preference of the problems that follow; null is uniform.
  PAMA_HD void prefer(const double* preference) {
    relative_preference(team_, n_, preference, DBL_MIN, relative_);
    copy(team_, n_, relative_, preference_);
    divide_by_sum(team_, n_, preference_);
  }

  // Returns the optimum of Σ c_i a_i. A used value that is not finite gives NaN throughout.
  PAMA_HD double solve(const double* values, double* weights) {
    bool finite = true, negative = false, positive = false;
    each(team_, n_, [&](int i) {
      if (relative_[i] == 0) return;
      finite = finite && fabs(values[i]) <= DBL_MAX;
      negative = negative || values[i] < 0;
      positive = positive || values[i] > 0;
    });
    if (team_.any(!finite)) {
      each(team_, n_, [&](int i) { weights[i] = NAN; });
      return NAN;
    }
    if (team_.any(negative) && team_.any(positive)) {
      balance(values, weights);
      return 0;
    }
    return choose(values, weights);
  }

 private:
  static constexpr double kTie = 16 * DBL_EPSILON;  // what rounding may do to a ratio of weights

  PAMA_HD double choose(const double* values, double* weights) {
    double* rank = slope_;
    const auto ranked = [&](int i) {
      const double size = fabs(values[i]), wanted = relative_[i];
      // Divided only where that changes it.
      return rank[i] = wanted == 0 ? NAN : wanted == 1 ? size : one_sided_rank(size, wanted);
    };
    const Located least = smallest_of(team_, n_, ranked, {INFINITY, n_});
    const auto shares = [&](int i) { return rank[i] == least.value; };
    const auto [shared, count] =
        sums_of(team_, n_, [&](int i) { return shares(i) ? Two{preference_[i], 1} : Two{0, 0}; });
    const bool partly = any_of(team_, n_, [&](int i) { return relative_[i] != 0 && !shares(i); });
    const double tied = partly ? shared : 1;
    // Differences from one of the winners: exact where all tied values are equal.
    const double winner = values[least.index];
    return winner + sum_of(team_, n_, [&](int i) {
             weights[i] = !shares(i) ? 0
                          : count == 1
                              ? 1
                              : one_sided_weight(preference_[i], tied, static_cast<int>(count));
             return shares(i) ? weights[i] * (values[i] - winner) : 0;
           });
  }

  // The projection of p onto {c in the simplex, Σ c_i a_i = 0}: max(p − λ − μ a, 0) for some λ and
  // μ. From μ = 0, where c = p, μ moves until Σ c_i a_i = 0. On the way a weight falls while its
  // value is above the mean over the support; those that reach 0 leave the support, which lowers
  // the mean, so none comes back, and n − 1 steps are enough. Signs are chosen such that μ > 0.
  // Where a weight reaches 0 just as Σ c_i a_i does, to rounding, the values that remain decide, at
  // their own scale, which came first.
  PAMA_HD void balance(const double* values, double* weights) {
    each(team_, n_, [&](int i) {
      weights[i] = preference_[i];
      slope_[i] = relative_[i] == 0 ? 0 : values[i];
    });
    sign_ = 1;
    team_.sync();
    double excess = survey(weights);
    if (excess < 0) {
      sign_ = -1;
      first_ = -first_;
      mean_ = -mean_;
      excess = -excess;
    }
    for (int step = 0; step < n_; ++step) {
      const double end = excess / spread_;
      const auto reaches_zero = [&](int i) {
        return weights[i] > 0 && fall(i) > 0 ? weights[i] / fall(i) : INFINITY;
      };
      const Located limit = smallest_of(team_, n_, reaches_zero, {end * (1 + kTie), -1});
      if (limit.index < 0) break;
      each(team_, n_, [&](int i) {
        if (!(weights[i] > 0)) return;
        weights[i] = i == limit.index ? 0 : fmax(weights[i] - limit.value * fall(i), 0.0);
      });
      team_.sync();
      excess = survey(weights);
      if (limit.value < end * (1 - kTie) || excess >= 0) continue;
      if (limit.index % team_.size() == team_.rank()) weights[limit.index] = 1;  // in the support
      team_.sync();
      survey(weights);
      break;
    }
    settle(weights);
  }

  // Size, mean value and spread of the support, in units of the power of 2 at or below its largest
  // value; returns Σ c_i a_i in them.
  PAMA_HD double survey(const double* weights) {
    const double largest =
        largest_of(team_, n_, [&](int i) { return weights[i] > 0 ? fabs(slope_[i]) : 0; });
    const int exponent = largest > 0 ? -ilogb(largest) : 0;
    first_ = ldexp(sign_, exponent / 2);
    second_ = ldexp(1.0, exponent - exponent / 2);
    const auto [total, size] =
        sums_of(team_, n_, [&](int i) { return weights[i] > 0 ? Two{value(i), 1} : Two{0, 0}; });
    size_ = size;
    mean_ = total / size;
    spread_ = sum_of(team_, n_, [&](int i) { return weights[i] > 0 ? fall(i) * fall(i) : 0; });
    return excess_of(weights);
  }

  // The value of an objective of the support in that unit. In two factors, as the unit's inverse
  // may be out of range.
  PAMA_HD double value(int i) const { return slope_[i] * first_ * second_; }

  // How fast weight i falls as μ grows.
  PAMA_HD double fall(int i) const { return value(i) - mean_; }

  PAMA_HD double excess_of(const double* weights) const {
    return sum_of(team_, n_, [&](int i) { return weights[i] > 0 ? weights[i] * value(i) : 0; });
  }

  // The projection on the support surveyed, from p itself, and once more from its own residuals, so
  // that the weights of large values, which are small, are right to their own precision.
  PAMA_HD void settle(double* weights) {
    if (size_ == 2 && spread_ > 0) return settle_pair(weights);
    each(team_, n_, [&](int i) {
      if (weights[i] > 0) weights[i] = preference_[i];
    });
    team_.sync();
    for (int round = 0; round < 2; ++round) {
      const double missing = 1 - sum_of(team_, n_, [&](int i) { return weights[i]; });
      const double along = excess_of(weights) + missing * mean_;
      const double multiplier = spread_ > 0 ? along / spread_ : 0;
      each(team_, n_, [&](int i) {
        if (!(weights[i] > 0)) return;
        const double moved = weights[i] + missing / size_ - multiplier * fall(i);
        weights[i] = fmax(moved, 0.0);
      });
      team_.sync();
    }
  }

  // c = (a_2, −a_1) / (a_2 − a_1): inversely as the magnitudes.
  PAMA_HD void settle_pair(double* weights) {
    const auto size = [&](int i) { return weights[i] > 0 ? fabs(slope_[i]) : INFINITY; };
    const Located least = smallest_of(team_, n_, size, {INFINITY, n_});
    each(team_, n_, [&](int i) {
      if (!(weights[i] > 0)) return;
      weights[i] = i == least.index ? 1 : least.value / fabs(slope_[i]);  // 1 for 0, too
    });
    divide_by_sum(team_, n_, weights);
  }

  Team team_;
  int n_;
  double* relative_;                     // p_i / max p
  double* preference_ = relative_ + n_;  // p_i / Σ p
  double* slope_ = preference_ + n_;     // a_i, or their ranks
  double sign_ = 1;
  double first_ = 1, second_ = 1;  // whose product is sign_ / unit
  double size_ = 0, mean_ = 0, spread_ = 1;
};

}  // namespace pama
