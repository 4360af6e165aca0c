// Eigenvalues and eigenvectors of a positive semidefinite matrix: Cholesky with pivoting, then
// one-sided Jacobi rotations of the factor's columns until they are orthogonal (Veselić & Hari
// 1989).
//
// G = F Fᵀ = (F R)(F R)ᵀ for rotations R, so orthogonal columns are eigenvectors times roots of
// eigenvalues; nothing but F is rotated. The columns come in falling order from the pivoting, which
// is what makes few sweeps enough, and zero eigenvalues never enter.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/team.h"

namespace pama {

template <class Team>
class Jacobi {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return n * n + 2 * n; }
  // At the limit the columns are taken as they are.
  static constexpr int kSweeps = 30;

  // `gram`: n x n, entries of magnitude up to 4; it is overwritten.
  PAMA_HD Jacobi(Team team, int n, double* gram, double* workspace)
      : team_(team),
        n_(n),
        gram_(gram),
        column_(workspace),
        square_(workspace + n * n),
        diagonal_(square_ + n) {}

  // Columns of norm √λ in the direction of the eigenvectors, as many as rank() says. Eigenvalues
  // up to `cut` times the largest are left out.
  PAMA_HD void solve(double cut) {
    factorise();
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      measure();
      bool rotated = false;
      for (int p = 0; p < rank_; ++p) {
        for (int q = p + 1; q < rank_; ++q) rotated = rotate(p, q) || rotated;
      }
      if (!rotated) break;
    }
    measure();
    compress(cut);
  }

  PAMA_HD int rank() const { return rank_; }
  PAMA_HD const double* column(int k) const { return column_ + k * n_; }
  PAMA_HD double eigenvalue(int k) const { return square_[k]; }

 private:
  PAMA_HD double& at(int i, int k) { return column_[k * n_ + i]; }

  PAMA_HD void factorise() {
    for (int i = team_.rank(); i < n_; i += team_.size()) diagonal_[i] = gram_[i * n_ + i];
    team_.sync();
    double first = 0;
    for (rank_ = 0; rank_ < n_; ++rank_) {
      Located largest{0, n_};  // of the negatives, as teams find the smallest
      for (int i = team_.rank(); i < n_; i += team_.size()) {
        const Located here{-diagonal_[i], i};
        if (before(here, largest)) largest = here;
      }
      largest = team_.smallest(largest);
      const double pivot = -largest.value;
      if (rank_ == 0) first = pivot;
      if (!(pivot > n_ * DBL_EPSILON / 8 * first)) break;
      const int p = largest.index;
      const double scale = 1 / sqrt(pivot);
      double* __restrict__ column = column_ + rank_ * n_;
      const double* __restrict__ row = gram_ + p * n_;
      for (int i = team_.rank(); i < n_; i += team_.size()) column[i] = row[i];
      for (int k = 0; k < rank_; ++k) {
        const double* __restrict__ other = column_ + k * n_;
        const double factor = other[p];
        for (int i = team_.rank(); i < n_; i += team_.size()) column[i] -= other[i] * factor;
      }
      for (int i = team_.rank(); i < n_; i += team_.size()) {
        // Rows that have been pivots are explained wholly.
        column[i] = diagonal_[i] == -INFINITY ? 0 : column[i] * scale;
      }
      team_.sync();
      for (int i = team_.rank(); i < n_; i += team_.size()) {
        diagonal_[i] = i == p ? -INFINITY : diagonal_[i] - column[i] * column[i];
      }
      team_.sync();
    }
  }

  PAMA_HD void measure() {
    for (int k = 0; k < rank_; ++k) {
      double square = 0;
      for (int i = team_.rank(); i < n_; i += team_.size()) square += at(i, k) * at(i, k);
      square = team_.sum(square);
      if (team_.rank() == 0) square_[k] = square;
    }
    team_.sync();
  }

  // In four chains: with one, aligned_mtl of n = 32 took twice as long on a CPU.
  PAMA_HD double product(const double* __restrict__ a, const double* __restrict__ b) const {
    const int step = team_.size();
    double sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
    int i = team_.rank();
    for (; i + 3 * step < n_; i += 4 * step) {
      sum0 += a[i] * b[i];
      sum1 += a[i + step] * b[i + step];
      sum2 += a[i + 2 * step] * b[i + 2 * step];
      sum3 += a[i + 3 * step] * b[i + 3 * step];
    }
    for (; i < n_; i += step) sum0 += a[i] * b[i];
    return team_.sum((sum0 + sum1) + (sum2 + sum3));
  }

  // Makes columns p and q orthogonal; false if they were, to rounding.
  PAMA_HD bool rotate(int p, int q) {
    double* __restrict__ a = column_ + p * n_;
    double* __restrict__ b = column_ + q * n_;
    const double dot = product(a, b);
    const double alpha = square_[p], beta = square_[q];
    if (!(dot * dot > DBL_EPSILON * DBL_EPSILON * alpha * beta)) return false;
    const double zeta = (beta - alpha) / (2 * dot);
    const double tangent = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    const double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
    for (int i = team_.rank(); i < n_; i += team_.size()) {
      const double ai = a[i], bi = b[i];
      a[i] = cosine * ai - sine * bi;
      b[i] = sine * ai + cosine * bi;
    }
    team_.sync();
    if (team_.rank() == 0) {
      square_[p] = fmax(alpha - tangent * dot, 0.0);
      square_[q] = beta + tangent * dot;
    }
    team_.sync();
    return true;
  }

  PAMA_HD void compress(double cut) {
    double largest = 0;
    for (int k = 0; k < rank_; ++k) largest = fmax(largest, square_[k]);
    int kept = 0;
    for (int k = 0; k < rank_; ++k) {
      const double square = square_[k];
      if (!(square > cut * largest)) continue;
      team_.sync();
      if (kept < k) {
        for (int i = team_.rank(); i < n_; i += team_.size()) at(i, kept) = at(i, k);
        if (team_.rank() == 0) square_[kept] = square;
      }
      ++kept;
      team_.sync();
    }
    rank_ = kept;
  }

  Team team_;
  int n_;
  int rank_ = 0;
  double* gram_;
  double* column_;    // column by column
  double* square_;    // squares of the columns' norms
  double* diagonal_;  // what is left to factorise
};

}  // namespace pama
