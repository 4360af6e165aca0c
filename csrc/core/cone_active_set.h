// min ½ vᵀGv − μ Σ y over v = lower + y, y >= 0, by an active-set method (Lawson & Hanson 1974, ch.
// 23, on the Gram matrix): for μ = 0, the point of lower's gradient plus the cone of all gradients
// that is nearest to 0, which conflicts with none of them.
//
// The support S = {y > 0} is factorised, G_S = L D Lᵀ. A row that depends on S has slope 0 where S
// has, so only rows that keep G_S regular enter. Where rounding would let another one enter, G is
// widened and the method starts anew: each gradient gets one more coordinate, of the same small
// part of its length, which makes vᵀGv > 0 for v >= 0 whatever rounding took from G. If a pivot is
// not positive even then, it is made as positive as it was negative, at least rounding, and G_jj
// with it. So what is solved exactly is a problem of a matrix within rounding of G, which itself
// stays as it came: what is added to it is kept apart, and forgotten at each start.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/ldl.h"
#include "core/team.h"

namespace pama {

template <class Team>
class ConeActiveSet {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return n * n + 8 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return 2 * n; }
  // Of rows entering.
  PAMA_HD static constexpr int limit(int n) { return 8 * n + 32; }

  // The square of the added coordinate for unit gradients, of a G rounded to `roundoff`: Σ v_i v_j
  // ‖g_i‖ ‖g_j‖ times that is what rounding may have taken from vᵀGv.
  PAMA_HD static constexpr double widening(double roundoff) { return kNoise + 2 * roundoff; }

  // `gram`: entries of magnitude up to 4; `norm`: roots of its diagonal; `lower` >= 0; `widening`:
  // as above, or 0 where G must stay as it is.
  PAMA_HD ConeActiveSet(Team team, int n, const double* gram, const double* norm,
                        const double* lower, double widening, Workspace workspace)
      : team_(team),
        n_(n),
        widening_(widening),
        gram_(gram),
        norm_(norm),
        lower_(lower),
        y_(workspace.reals),
        slope_(y_ + n),
        direction_(y_ + 2 * n),
        cross_(y_ + 3 * n),
        raised_(y_ + 4 * n),
        member_(workspace.integers),
        inside_(workspace.integers + n),
        factor_(team, n, y_ + 8 * n, y_ + 5 * n, y_ + 6 * n, y_ + 7 * n) {}

  // y = 0, for G as it came.
  PAMA_HD void start() { start(0); }

  // Goes on from the y that is there. At the limit it is left where it is.
  PAMA_HD void solve(double level) {
    level_ = level;
    while (!descend()) start(widening_);
  }

  PAMA_HD const double* y() const { return y_; }
  PAMA_HD int support() const { return factor_.size(); }

  // Σ y_i ‖g_i‖ and Σ y.
  PAMA_HD double sum_of_norms() const {
    double total = 0;
    for (int i = team_.rank(); i < n_; i += team_.size()) total += y_[i] * norm_[i];
    return team_.sum(total);
  }
  PAMA_HD double sum() const {
    double total = 0;
    for (int i = team_.rank(); i < n_; i += team_.size()) total += y_[i];
    return team_.sum(total);
  }

  // Σ dy/dμ on the support as it is.
  PAMA_HD double response() {
    const int k = factor_.size();
    for (int c = team_.rank(); c < k; c += team_.size()) direction_[c] = 1;
    factor_.forward(direction_);
    double total = 0;  // 1ᵀ G_S⁻¹ 1 = |L⁻¹1|² in the metric of D⁻¹
    for (int c = team_.rank(); c < k; c += team_.size()) {
      total += direction_[c] * direction_[c] * factor_.inverses()[c];
    }
    total = team_.sum(total);
    team_.sync();
    return total;
  }

  // Changes the level on the support as it is, by dy/dμ.
  PAMA_HD void shift(double change) {
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) direction_[c] = change;
    divide_by_gram();
    move({1, -1});
  }

 private:
  static constexpr int kRejected = 2;
  // A multiple of the unit roundoff below which a violation is noise.
  static constexpr double kNoise = 8 * (DBL_EPSILON / 2);

  PAMA_HD void start(double widened) {
    widened_ = widened;
    altered_ = widened > 0;
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      y_[i] = 0;
      raised_[i] = 0;
      inside_[i] = 0;
    }
    factor_.clear();
    rejections_ = false;
    team_.sync();
  }

  // Of the matrix that is solved for.
  PAMA_HD double gram(int i, int j) const {
    const double raised = i == j ? raised_[i] : 0;
    return gram_[i * n_ + j] + (widened_ * (norm_[i] * norm_[j]) + raised);
  }

  // False if G is to be widened first, as it is once at most.
  PAMA_HD bool descend() {
    readmit();
    differentiate();
    if (factor_.size() > 0) minimise(false);
    for (int step = 0; step < limit(n_); ++step) {
      const Located entering = most_violating();
      if (entering.index < 0) break;
      if (!admit(entering.index)) return false;
      minimise(true);
    }
    return true;
  }

  // Settles, and once more if that leaves slopes on the support, as where y was much larger before,
  // and with it the rounding of its slopes.
  PAMA_HD void minimise(bool entered) {
    for (int round = 0; round < 2; ++round) {
      settle(entered && round == 0);
      differentiate();
      if (settled()) return;
    }
  }

  PAMA_HD bool settled() const {
    bool off = false;
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      const int i = member_[c];
      off = off || fabs(slope_[i]) > kNoise * (norm_[i] * norms_ + fabs(level_));
    }
    return !team_.any(off);
  }

  // slope = G v − μ.
  PAMA_HD void differentiate() {
    double norms = 0;
    double* __restrict__ slope = slope_;
    for (int r = team_.rank(); r < n_; r += team_.size()) slope[r] = -level_;
    for (int i = 0; i < n_; ++i) {
      const double vi = lower_[i] + y_[i];
      if (vi == 0) continue;
      const double* __restrict__ row = gram_ + i * n_;
      for (int r = team_.rank(); r < n_; r += team_.size()) slope[r] += row[r] * vi;
      norms += norm_[i] * vi;
    }
    norms_ = norms;
    if (altered_) {
      for (int r = team_.rank(); r < n_; r += team_.size()) {
        slope[r] += widened_ * norm_[r] * norms + raised_[r] * (lower_[r] + y_[r]);
      }
    }
    team_.sync();
  }

  // The row outside the support whose slope per length is lowest, if below 0 beyond rounding.
  PAMA_HD Located most_violating() const {
    Located found{0, -1};
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      if (inside_[i] || !(norm_[i] > 0)) continue;
      if (!(-slope_[i] > kNoise * (norm_[i] * norms_ + fabs(level_)))) continue;
      const Located here{slope_[i] / norm_[i], i};
      if (before(here, found)) found = here;
    }
    return team_.smallest(found);
  }

  // Adds row j to the support; false if it depends on it and G can yet be widened.
  PAMA_HD bool admit(int j) {
    const int k = factor_.size();
    for (int c = team_.rank(); c < k; c += team_.size()) cross_[c] = gram(member_[c], j);
    factor_.forward(cross_);
    double explained = 0;
    for (int c = team_.rank(); c < k; c += team_.size()) {
      explained += cross_[c] * (cross_[c] * factor_.inverses()[c]);
    }
    double pivot = gram(j, j) - team_.sum(explained);
    const double least = kNoise * gram(j, j);
    if (pivot < least) {
      if (widened_ < widening_) return false;
      const double positive = fmax(-pivot, least);
      team_.sync();
      if (team_.rank() == 0) raised_[j] += positive - pivot;
      altered_ = true;
      pivot = positive;
    }
    if (team_.rank() == 0) {
      member_[k] = j;
      inside_[j] = 1;
    }
    factor_.append(cross_, pivot);
    return true;
  }

  // To the minimiser over the support, dropping the rows whose y reaches 0 on the way. If a row
  // has just entered and would fall at once, its slope was the others' residual: it is rejected
  // until another row has entered.
  PAMA_HD void settle(bool entered) {
    bool fresh = entered;
    for (;;) {
      direct();
      const int k = factor_.size();
      if (fresh && !(direction_[k - 1] > 0)) {
        const int j = member_[k - 1];
        drop(k - 1);
        if (team_.rank() == 0) inside_[j] = kRejected;
        rejections_ = true;
        entered = fresh = false;
        team_.sync();
        continue;
      }
      fresh = false;
      const Located limit = longest_step();
      move(limit);
      if (limit.index < 0) break;
      for (int c = team_.rank(); c < k; c += team_.size()) slope_[member_[c]] *= 1 - limit.value;
      team_.sync();
      drop(limit.index);
    }
    if (entered) readmit();
  }

  PAMA_HD void readmit() {
    if (!rejections_) return;
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      if (inside_[i] == kRejected) inside_[i] = 0;
    }
    rejections_ = false;
    team_.sync();
  }

  // −G_S⁻¹ slope.
  PAMA_HD void direct() {
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      direction_[c] = -slope_[member_[c]];
    }
    divide_by_gram();
  }

  // direction <- G_S⁻¹ direction.
  PAMA_HD void divide_by_gram() {
    factor_.forward(direction_);
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      direction_[c] *= factor_.inverses()[c];
    }
    factor_.backward(direction_);
  }

  PAMA_HD Located longest_step() const {
    Located limit{1, -1};
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      if (!(direction_[c] < 0)) continue;
      const Located here{-y_[member_[c]] / direction_[c], c};
      if (here.value < limit.value) limit = here;
    }
    return team_.smallest(limit);
  }

  PAMA_HD void move(const Located& limit) {
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      const int i = member_[c];
      const double moved = y_[i] + limit.value * direction_[c];
      y_[i] = c == limit.index ? 0 : fmax(moved, 0.0);
    }
    team_.sync();
  }

  PAMA_HD void drop(int position) {
    const int k = factor_.size();
    team_.sync();
    if (team_.rank() == 0) {
      inside_[member_[position]] = 0;
      for (int c = position + 1; c < k; ++c) member_[c - 1] = member_[c];
    }
    team_.sync();
    factor_.remove(position);
    team_.sync();
  }

  Team team_;
  int n_;
  double widening_;
  double widened_ = 0;    // 0 until it is done
  bool altered_ = false;  // whether the matrix that is solved for is not G
  const double* gram_;
  const double* norm_;  // ‖g_i‖
  const double* lower_;
  double* y_;
  double* slope_;
  double* direction_;  // over the support
  double* cross_;
  double* raised_;  // what was added to the diagonal for positive pivots
  int* member_;     // the support in the order of the factor
  int* inside_;     // whether row i is in the support (1), or rejected for now
  Ldl<Team> factor_;
  bool rejections_ = false;
  double level_ = 0;
  double norms_ = 0;  // Σ v_i ‖g_i‖
};

}  // namespace pama
