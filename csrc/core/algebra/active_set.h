// What the active-set methods share: the rows in the active set, their factor, and moves of x over
// them that keep it nonnegative.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/ldl.h"
#include "core/algebra/vectors.h"

namespace pama {

template <class Team>
class ActiveSet {
 public:
  PAMA_HD static constexpr int64_t integers(int64_t n) { return 2 * n; }
  // Of rows entering. In min_norm no more than 1.6 n came over the tests' families.
  PAMA_HD static constexpr int limit(int n) { return 8 * n + 32; }

 protected:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return 2 * n + Ldl<Team>::reals(n); }

  static constexpr int kNone = -1;  // no row enters
  static constexpr int kRejected = 2;
  static constexpr int kRounds = 4;
  // A multiple of the unit roundoff below which a violation is noise.
  static constexpr double kNoise = 8 * (DBL_EPSILON / 2);

  PAMA_HD ActiveSet(Team team, int n, const double* gram, const double* norm, Workspace workspace)
      : team_(team),
        n_(n),
        gram_(gram),
        norm_(norm),
        x_(workspace.reals),
        member_(workspace.integers) {}

  // Row `only` has x = 1 and is no row of the factor; with kNone all x are 0.
  PAMA_HD void start(int only) {
    each(team_, n_, [&](int i) { x_[i] = inside_[i] = i == only; });
    factor_.clear();
    rejections_ = false;
    team_.sync();
  }

  // `forward`: L⁻¹ of the row's products with the others.
  PAMA_HD void append(int i, const double* forward, double pivot) {
    team_.sync();
    if (team_.rank() == 0) {
      member_[factor_.size()] = i;
      inside_[i] = 1;
    }
    factor_.append(forward, pivot);
  }

  PAMA_HD void drop(int position) {
    team_.sync();
    if (team_.rank() == 0) inside_[member_[position]] = 0;
    close_gap(member_, position);
    team_.sync();
    factor_.remove(position);
    team_.sync();
  }

  // Of numbers in the order of the set, before the row at `position` is dropped.
  template <class Number>
  PAMA_HD void close_gap(Number* numbers, int position) {
    if (team_.rank() != 0) return;
    PAMA_ROLLED for (int c = position + 1; c < factor_.size(); ++c) numbers[c - 1] = numbers[c];
  }

  // Leaves row i, whose slope was only the others' residual, out until another row has entered.
  PAMA_HD void reject(int i) {
    if (team_.rank() == 0) inside_[i] = kRejected;
    rejections_ = true;
    team_.sync();
  }

  PAMA_HD void readmit() {
    if (!rejections_) return;
    each(team_, n_, [&](int i) {
      if (inside_[i] == kRejected) inside_[i] = 0;
    });
    rejections_ = false;
    team_.sync();
  }

  // How far to go along way · direction: `full`, with index −1, unless an x reaches 0 before.
  PAMA_HD Located longest_step(double way, double full) const {
    return smallest_of(team_, factor_.size(),
                       [&](int c) {
                         const double step = way * direction_[c];
                         return step < 0 ? -x_[member_[c]] / step : INFINITY;
                       },
                       {full, -1});
  }

  // The x of the row at position c, `step` along the direction, which reaches 0 at `limit`.
  PAMA_INLINE double move_one(int c, const Located& limit, double step) {
    const int i = member_[c];
    const double moved = x_[i] + step * direction_[c];
    return x_[i] = c == limit.index ? 0 : fmax(moved, 0.0);
  }

  Team team_;
  int n_;
  const double* gram_;
  const double* norm_;  // ‖g_i‖
  double* x_;
  double* direction_ = x_ + n_;  // over the set
  int* member_;                  // the set in the order of the factor
  int* inside_ = member_ + n_;   // whether row i is in the set (1), or rejected for now
  Ldl<Team> factor_{team_, n_, direction_ + n_};
  bool rejections_ = false;
};

}  // namespace pama
