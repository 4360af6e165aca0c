// L D Lᵀ of a symmetric positive definite matrix that gains and loses rows, one at a time.
//
// L is unit lower triangular. It lies below the diagonal of a square array, column by column, and
// mirrored above it, so that both substitutions run along contiguous memory.
#pragma once

#include <cstdint>

#include "core/algebra/vectors.h"

namespace pama {

template <class Team>
class Ldl {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return n * n + 3 * n; }

  // Of up to n rows.
  PAMA_HD Ldl(Team team, int n, double* workspace) : team_(team), n_(n), square_(workspace) {}

  PAMA_HD int size() const { return size_; }
  PAMA_HD void clear() { size_ = 0; }
  // 1 / D.
  PAMA_HD const double* inverses() const { return inverses_; }

  // a <- L⁻¹ a, of several vectors at the latency of one. Reads what other lanes wrote, after a
  // sync; so do all below.
  template <class... Vector>
  PAMA_HD void forward(Vector*... a) const {
    substitute<true>(a...);
  }

  // a <- L⁻ᵀ a.
  PAMA_HD void backward(double* a) const { substitute<false>(a); }

  // a <- (L D Lᵀ)⁻¹ a.
  PAMA_HD void solve(double* a) const {
    forward(a);
    each(team_, size_, [&](int c) { a[c] *= inverses_[c]; });
    backward(a);
  }

  // aᵀ(L D Lᵀ)⁻¹a, and a <- L⁻¹ a.
  PAMA_HD double explain(double* a) const {
    forward(a);
    return sum_of(team_, size_, [&](int c) { return a[c] * (a[c] * inverses_[c]); });
  }

  // Factorises anew the k x k matrix of elements entry(r, c) with c <= r. `accept`(r, pivot)
  // says what is taken for a pivot; where that is 0 it ends, and false is returned.
  template <class Entry, class Accept>
  PAMA_INLINE bool factorise(int k, const Entry& entry, const Accept& accept) {
    clear();
    PAMA_ROLLED for (int r = 0; r < k; ++r) {
      each(team_, r, [&](int c) { scratch_[c] = entry(r, c); });
      const double explained = explain(scratch_);
      const double pivot = accept(r, entry(r, r) - explained);
      if (pivot == 0) return false;
      append(scratch_, pivot);
    }
    return true;
  }

  // Appends the row a with diagonal element d, given L⁻¹a and pivot = d − aᵀ(L D Lᵀ)⁻¹a > 0.
  PAMA_HD void append(const double* forward_a, double pivot) {
    each(team_, size_, [&](int c) { set(size_, c, forward_a[c] * inverses_[c]); });
    if (team_.rank() == 0) {
      pivots_[size_] = pivot;
      inverses_[size_] = 1 / pivot;
    }
    ++size_;
    team_.sync();
  }

  // Removes row and column p. What column p of L explained becomes a rank-one update of the
  // factor below it (Gill, Golub, Murray & Saunders 1974, method C1), which is stable as the
  // update is positive. Where it makes a small pivot large, that column of L was large and becomes
  // small: by the second form, as the first takes two large numbers from each other (Fletcher &
  // Powell 1974).
  PAMA_HD void remove(int p) {
    double* __restrict__ v = scratch_;
    double alpha = pivots_[p];
    each(team_, p + 1, size_, [&](int r) { v[r] = at(r, p); });
    team_.sync();
    each(team_, p,
         [&](int c) { PAMA_ROLLED for (int r = p + 1; r < size_; ++r) set(r - 1, c, at(r, c)); });
    PAMA_ROLLED for (int c = p + 1; c < size_; ++c) {
      const double vc = v[c], old = pivots_[c];
      const double pivot = old + alpha * vc * vc;
      const double beta = alpha * vc / pivot, kept = old / pivot;
      alpha *= kept;
      each(team_, c + 1, size_, [&](int r) {
        const double below = at(r, c), before = v[r];
        v[r] -= vc * below;
        set(r - 1, c - 1, kept < 0.25 ? kept * below + beta * before : below + beta * v[r]);
      });
      if (team_.rank() == 0) {
        pivots_[c - 1] = pivot;
        inverses_[c - 1] = 1 / pivot;
      }
      team_.sync();
    }
    --size_;
  }

 private:
  // With L from its first column on, or with Lᵀ from its last. Reads what other lanes wrote, after
  // a sync. The lanes of a team with one each keep their element, and hand it to each other without
  // memory.
  template <bool kForward, class... Vector>
  PAMA_HD void substitute(Vector*... a) const {
    constexpr int kCount = sizeof...(a);
    double* const vectors[kCount] = {a...};
    const auto column = [&](int k) { return kForward ? k : size_ - 1 - k; };
    const auto first = [&](int c) { return kForward ? c + 1 : 0; };  // of the rows that it changes
    const auto end = [&](int c) { return kForward ? size_ : c; };
    team_.sync();
    if constexpr (Team::kOneEach) {
      const int r = team_.rank();
      double mine[kCount], pivot[kCount];
      for (int v = 0; v < kCount; ++v) mine[v] = r < size_ ? vectors[v][r] : 0;
      PAMA_ROLLED for (int k = 0; k < size_ - 1; ++k) {
        const int c = column(k);
        for (int v = 0; v < kCount; ++v) pivot[v] = team_.from(mine[v], c);
        if (r < first(c) || r >= end(c)) continue;
        const double factor = at(r, c);
        for (int v = 0; v < kCount; ++v) mine[v] -= factor * pivot[v];
      }
      for (int v = 0; v < kCount; ++v) {
        if (r < size_) vectors[v][r] = mine[v];
      }
      team_.sync();
    } else {
      PAMA_ROLLED for (int k = 0; k < size_ - 1; ++k) {
        const int c = column(k);
        for (double* x : vectors) {
          add_multiple(team_, first(c), end(c), -x[c], square_ + c * n_, x);
        }
        team_.sync();
      }
    }
  }

  PAMA_HD double at(int r, int c) const { return square_[r + c * n_]; }
  PAMA_HD void set(int r, int c, double value) {
    square_[r + c * n_] = value;
    square_[c + r * n_] = value;
  }

  Team team_;
  int n_;
  int size_ = 0;
  double* square_;
  double* pivots_ = square_ + n_ * n_;
  double* inverses_ = pivots_ + n_;
  double* scratch_ = inverses_ + n_;
};

}  // namespace pama
