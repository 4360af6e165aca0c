// min ½ vᵀGv − μ Σ y over v = lower + y, y >= 0, by an active-set method (Lawson & Hanson 1974, ch.
// 23, on the Gram matrix): for μ = 0, the point of lower's gradient plus the cone of all gradients
// that is nearest to 0, which conflicts with none of them.
//
// The support S = {y > 0} is factorised, G_S = L D Lᵀ. A row that depends on S has slope 0 where S
// has, so only rows that keep G_S regular enter. Where rounding would let another one enter, G is
// widened and the method starts anew: each gradient gets one more coordinate, of the same small
// part of its length, which makes vᵀGv > 0 for v >= 0 whatever rounding took from G. If a pivot is
// not positive even then, it is made as positive as it was negative, at least rounding, and G_jj
// with it. So what is solved exactly is a problem of a matrix within rounding of G. Should v then
// be so large that the factor cannot resolve its slopes, G is widened once more, n times as much.
// What is added to G is kept beside it, and forgotten at start(): a problem never sees what another
// one needed.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/compensated.h"
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

  // `gram`: entries of magnitude up to 4, in error by `rtol` of the norms' products; `norm`: roots
  // of its diagonal; `lower` >= 0; `widens`: false where G must stay as it is, but for its
  // diagonal.
  PAMA_HD ConeActiveSet(Team team, int n, const double* gram, const double* norm,
                        const double* lower, double rtol, bool widens, Workspace workspace)
      : team_(team),
        n_(n),
        rtol_(rtol),
        widens_(widens),
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

  // y = 0, and G as it came.
  PAMA_HD void start() {
    widen(0);
    for (int i = team_.rank(); i < n_; i += team_.size()) raised_[i] = 0;
    restart();
  }

  // Where gradients nearly cancel, v is large along what is left of them: slopes that are 0 to the
  // rounding of their terms leave the combined gradient unknown. Its square is then found by exact
  // sums, as it is where rounding could exceed `square`.
  PAMA_HD void resolve(double square) { square_ = square; }

  // Goes on from the y that is there. At the limit it is left where it is.
  PAMA_HD void solve(double level) {
    level_ = level;
    while (!descend()) {
      widen(stage_ + 1);
      restart();
    }
  }

  PAMA_HD const double* y() const { return y_; }
  PAMA_HD int support() const { return factor_.size(); }
  PAMA_HD bool large() const { return large_; }

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

  // yᵀGy, from (Gy)_i = μ − (G lower)_i on the support. Where y is large, yᵀGy itself would be what
  // rounding leaves of it.
  PAMA_HD double square_of_move() const {
    double total = 0;
    for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
      const int i = member_[c];
      double along = 0;
      for (int j = 0; j < n_; ++j) along += gram(i, j) * lower_[j];
      total += y_[i] * (level_ - along);
    }
    return team_.sum(total);
  }

  // The error of square_of_move().
  PAMA_HD double doubt() const {
    if (!large_) return n_ * DBL_EPSILON * norms_ * norms_;
    return change_ + 2 * sqrt(change_ * fmax(square_of_move(), 0.0));
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

  // Of corrections to a large v. The factor's own error leaves some of each.
  static constexpr int kCorrections = 5;
  // For each row, the least pivot of the factor that resolves a large v: rounding of pivots is n
  // roundoffs at most.
  static constexpr double kPivot = 32 * (DBL_EPSILON / 2);

  // G with what was added to it.
  PAMA_HD double gram(int i, int j) const {
    const double entry = gram_[i * n_ + j] + widened_ * (norm_[i] * norm_[j]);
    return i == j ? entry + raised_[i] : entry;
  }

  // Σ v_i v_j ‖g_i‖ ‖g_j‖ times the square of the added coordinate is what errors of G may have
  // taken from vᵀGv: of its entries, and in the second stage of the factor's pivots, too.
  PAMA_HD void widen(int stage) {
    const double rounding = stage == 2 ? kPivot * n_ : kNoise;
    stage_ = stage;
    widened_ = stage == 0 ? 0 : rounding + rtol_;
    pivot_ = fmax(rounding, rtol_);
  }

  PAMA_HD void restart() {
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      y_[i] = 0;
      inside_[i] = 0;
    }
    factor_.clear();
    rejections_ = false;
    team_.sync();
  }

  // False if G is to be widened first.
  PAMA_HD bool descend() {
    readmit();
    differentiate();
    if (factor_.size() > 0 && !minimise(false)) return false;
    for (int step = 0; step < limit(n_); ++step) {
      const Located entering = most_violating();
      if (entering.index < 0) break;
      if (!admit(entering.index) || !minimise(true)) return false;
    }
    return true;
  }

  // Settles, and once more if that leaves slopes on the support, as where y was much larger before,
  // and with it the rounding of its slopes. False if G is to be widened first.
  PAMA_HD bool minimise(bool entered) {
    for (int round = 0; round < 2; ++round) {
      settle(entered && round == 0);
      differentiate();
      if (settled()) break;
    }
    return !large_ || correct();
  }

  // Of a large v, slopes that are 0 to the rounding of their terms leave the combined gradient
  // unknown. So it is corrected by slopes that are exact, as long as each correction moves it by
  // less than half of what the last one did. False if they do not, and G can be widened once more.
  PAMA_HD bool correct() {
    change_ = INFINITY;
    for (int round = 0; round < kCorrections && change_ > 0; ++round) {
      direct();
      double change = 0;
      for (int c = team_.rank(); c < factor_.size(); c += team_.size()) {
        change -= slope_[member_[c]] * direction_[c];
      }
      change = team_.sum(change);
      if (!(change < change_ / 4)) break;
      change_ = fmax(change, 0.0);
      if (longest_step().index >= 0) {  // rows leave, and what is left is corrected from the start
        settle(false);
        differentiate();
        change_ = INFINITY;
        round = -1;
        continue;
      }
      double* before = cross_;
      for (int i = team_.rank(); i < n_; i += team_.size()) before[i] = y_[i];
      move({1, -1});
      differentiate();
      if (settled()) continue;
      for (int i = team_.rank(); i < n_; i += team_.size()) y_[i] = before[i];
      differentiate();
      break;
    }
    return change_ <= matter_ || !widens_ || stage_ == 2;
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
    double norms = 0, least = 0;
    for (int i = 0; i < n_; ++i) {
      norms += norm_[i] * (lower_[i] + y_[i]);
      least += norm_[i] * lower_[i];
    }
    norms_ = norms;
    matter_ = fmin(square_, 0x1p-30 * least * least);
    large_ = kNoise * norms * norms > matter_;
    double* __restrict__ slope = slope_;
    double* __restrict__ rest = direction_;  // of a large v: what rounding took from the slope
    for (int r = team_.rank(); r < n_; r += team_.size()) {
      slope[r] = -level_;
      rest[r] = widened_ * norm_[r] * norms + raised_[r] * (lower_[r] + y_[r]);
    }
    for (int i = 0; i < n_; ++i) {
      const double vi = lower_[i] + y_[i];
      if (vi == 0) continue;
      const double* __restrict__ row = gram_ + i * n_;
      if (large_) {
        for (int r = team_.rank(); r < n_; r += team_.size()) {
          add_product(row[r], vi, &slope[r], &rest[r]);
        }
      } else {
        for (int r = team_.rank(); r < n_; r += team_.size()) slope[r] += row[r] * vi;
      }
    }
    for (int r = team_.rank(); r < n_; r += team_.size()) slope[r] += rest[r];
    team_.sync();
  }

  // The row outside the support whose slope per length is lowest, if below 0 beyond rounding.
  PAMA_HD Located most_violating() const {
    Located found{0, -1};
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      if (inside_[i] || !(norm_[i] > 0)) continue;
      // Slopes of a large v are exact, but for the rounding of v.
      const double noise = large_ ? kNoise / 8 : kNoise;
      if (!(-slope_[i] > noise * (norm_[i] * norms_ + fabs(level_)))) continue;
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
    double explained = 0, rounding = 0;
    for (int c = team_.rank(); c < k; c += team_.size()) {
      const double inverse = factor_.inverses()[c], part = cross_[c] * (cross_[c] * inverse);
      explained += part;
      // A small pivot's own rounding, relative to it.
      rounding += part * (gram(member_[c], member_[c]) * inverse);
    }
    double pivot = gram(j, j) - team_.sum(explained);
    rounding = team_.sum(rounding) * n_ * (DBL_EPSILON / 2);
    const double least = fmax(pivot_ * gram(j, j), widens_ ? rounding : 0);
    if (pivot < least) {
      if (widens_ && (stage_ == 0 || (stage_ == 1 && pivot < rounding))) return false;
      const double raised = fmax(-pivot, least);
      team_.sync();
      if (team_.rank() == 0) raised_[j] += raised - pivot;
      pivot = raised;
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
  double rtol_;
  bool widens_;
  const double* gram_;
  const double* norm_;  // ‖g_i‖
  const double* lower_;
  double* y_;
  double* slope_;
  double* direction_;  // over the support
  double* cross_;
  double* raised_;  // what was added to the diagonal
  int* member_;     // the support in the order of the factor
  int* inside_;     // whether row i is in the support (1), or rejected for now
  Ldl<Team> factor_;
  bool rejections_ = false;
  double level_ = 0;
  double widened_ = 0;  // the square of the coordinate that was added
  double pivot_ = 0;    // the least that counts, relative to the diagonal
  int stage_ = 0;
  double norms_ = 0;  // Σ v_i ‖g_i‖
  bool large_ = false;
  double square_ = INFINITY;
  double matter_ = 0;  // what of the combined gradient's square is to be resolved
  double change_ = 0;  // the square of the last correction's combined gradient
};

}  // namespace pama
