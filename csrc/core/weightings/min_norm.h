// min_norm: the weights of the shortest vector in the convex hull of n gradients, from their Gram
// matrix. This header reduces the problem as users pose it (preferences, zero and repeated
// gradients, any scale, anything not finite) to the one that simplex_active_set.h solves.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/simplex_active_set.h"
#include "core/algebra/vectors.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"
#include "core/weightings/preference.h"

namespace pama {

// Of a preference, relative to its largest entry p_max: below this it counts as 0, the limit that
// the weights tend to, since 1 / p² would overflow.
constexpr double kLeastPreference = 0x1p-400;

// Solves on the rows divided by the preference; the weights of the rows as they came are then
// proportional to c_i / p_i.
template <class Team>
class MinNorm : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Method = SimplexActiveSet<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  static constexpr Takes kTakes = Takes::kPreference;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) { return Method::reals(n) + 2 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return Method::integers(n) + n; }

  PAMA_HD void solve() {
    relative_preference(team_, n_, problem_.vector, kLeastPreference, preference_);
    each(team_, n_, [&](int i) { leader_[i] = preference_[i] > 0 ? i : kDropped; });
    team_.sync();
    if (!rescale()) return fill(team_, n_, NAN, out_);
    if (share_among_zeros()) return;
    group_equal_rows();
    Method method(team_, n_, gram_, norm_, leader_, rest_);
    method.start();
    spread(method.solve());
  }

 private:
  static constexpr int kDropped = -1;

  PAMA_HD double& gram(int i, int j) { return gram_[i * n_ + j]; }

  // Divides by the preferences and, if it is far from 1, brings the largest entry to about 2^900,
  // by a power of two and so exactly: no product in the method overflows, and rows shorter by
  // 10^90 do not underflow.
  // False if an entry of a used row and column is not finite.
  PAMA_HD bool rescale() {
    if (problem_.vector) clear_dropped();
    double largest = largest_entry(team_, n_, gram_);
    if (!(largest <= DBL_MAX)) return false;
    if (largest == 0) return true;
    if (problem_.vector) {
      scale_by(-ilogb(largest));
      divide_by_preferences();
      largest = largest_entry(team_, n_, gram_);
    }
    const int exponent = ilogb(largest);
    if (exponent < -300 || exponent > 900) scale_by(900 - exponent);
    return true;
  }

  // Rows and columns that are not used may hold anything; 0 keeps them out of every sum.
  PAMA_HD void clear_dropped() {
    PAMA_ROLLED for (int i = 0; i < n_; ++i) {
      each(team_, n_, [&](int j) {
        if (leader_[i] == kDropped || leader_[j] == kDropped) gram(i, j) = 0;
      });
    }
    team_.sync();
  }

  PAMA_HD void divide_by_preferences() {
    PAMA_ROLLED for (int i = 0; i < n_; ++i) {
      if (leader_[i] == kDropped) continue;
      each(team_, n_, [&](int j) {
        if (leader_[j] != kDropped) gram(i, j) /= preference_[i] * preference_[j];
      });
    }
    team_.sync();
  }

  // In two factors, as 2^exponent itself may be out of range.
  PAMA_HD void scale_by(int exponent) {
    const double first = ldexp(1.0, exponent / 2), second = ldexp(1.0, exponent - exponent / 2);
    team_.sync();
    each_entry(team_, n_ * n_, [&](int i) { gram_[i] = gram_[i] * first * second; });
    team_.sync();
  }

  // Rows of norm 0 attain the optimum 0: they share the weight as the preference says.
  PAMA_HD bool share_among_zeros() {
    const bool any = any_of(team_, n_, [&](int i) {
      const bool zero = leader_[i] != kDropped && !(gram(i, i) > 0);
      norm_[i] = sqrt(fmax(gram(i, i), 0.0));
      out_[i] = zero ? preference_[i] : 0;
      return zero;
    });
    team_.sync();
    if (any) divide_by_sum(team_, n_, out_);
    return any;
  }

  // Points leader_[i] at the first row equal to row i within rounding. Only leaders enter the
  // method: the others would make its differences vanish, and share their leader's weight after it.
  PAMA_HD void group_equal_rows() {
    grouped_ = any_of(team_, n_, [&](int i) {
      if (leader_[i] == kDropped) return false;
      PAMA_ROLLED for (int j = 0; j < i; ++j) {
        if (preference_[j] != 0 && equal_rows(i, j)) {
          leader_[i] = j;
          return true;
        }
      }
      return false;
    });
    team_.sync();
    if (grouped_ && team_.rank() == 0) {
      PAMA_ROLLED for (int i = 0; i < n_; ++i) {
        if (leader_[i] != kDropped) leader_[i] = leader_[leader_[i]];
      }
    }
    team_.sync();
  }

  PAMA_HD bool equal_rows(int i, int j) {
    const double tolerance = 2 * problem_.rtol;
    // ‖g_i − g_j‖² first: it tells all but a few pairs apart.
    const double apart = (gram(i, i) - gram(i, j)) + (gram(j, j) - gram(i, j));
    if (!(apart <= 4 * tolerance * gram(i, i))) return false;
    PAMA_ROLLED for (int k = 0; k < n_; ++k) {
      if (preference_[k] == 0) continue;
      if (!(fabs(gram(i, k) - gram(j, k)) <= tolerance * norm_[i] * norm_[k])) return false;
    }
    return true;
  }

  // From weights x of the leaders' divided rows to weights of all rows as they came.
  PAMA_HD void spread(const double* x) {
    team_.sync();
    each(team_, n_, [&](int i) {
      const int leader = leader_[i];
      int sharing = grouped_ ? 0 : 1;
      if (grouped_) {
        PAMA_ROLLED for (int j = 0; j < n_; ++j) sharing += leader_[j] == leader;
      }
      out_[i] = leader == kDropped ? 0 : x[leader] / sharing / preference_[i];
    });
    divide_by_sum(team_, n_, out_);
  }

  double* gram_ = problem_.gram;
  double* preference_ = problem_.workspace.reals;  // relative to the largest; 0: dropped
  double* norm_ = preference_ + n_;
  int* leader_ = problem_.workspace.integers;
  Workspace rest_{norm_ + n_, leader_ + n_};
  bool grouped_ = false;
};

}  // namespace pama
