// Eigenvalues and eigenvectors of a positive semidefinite matrix: Cholesky with pivoting, then
// one-sided Jacobi rotations of the factor's columns until they are orthogonal (Veselić & Hari
// 1989).
//
// G = F Fᵀ = (F R)(F R)ᵀ for rotations R, so orthogonal columns are eigenvectors times roots of
// eigenvalues; nothing but F is rotated. The columns come in falling order from the pivoting, which
// is what makes few sweeps enough, and zero eigenvalues never enter. A sweep pairs the columns as a
// tournament does its players, so that the rotations of a round are independent: their divisions
// and roots overlap on a CPU and have a lane each on a GPU.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/algebra/pivoted_cholesky.h"
#include "core/algebra/vectors.h"

namespace pama {

template <class Team>
class Jacobi {
 public:
  PAMA_HD static constexpr int64_t reals(int64_t n) { return n * n + 6 * n; }
  // At the limit the columns are taken as they are.
  static constexpr int kSweeps = 30;

  // `gram`: n x n, entries of magnitude up to 4.
  PAMA_HD Jacobi(Team team, int n, const double* gram, double* workspace)
      : team_(team), n_(n), gram_(gram), column_(workspace) {}

  // Columns of norm √λ in the direction of the eigenvectors, as many as rank() says. Eigenvalues
  // up to `cut` times the largest are left out.
  PAMA_HD void solve(double cut) {
    each(team_, n_, [&](int i) { diagonal_[i] = gram_[i * n_ + i]; });
    team_.sync();
    rank_ = pivoted_cholesky(team_, n_, gram_, n_ * DBL_EPSILON / 8, diagonal_, column_);
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      measure();
      bool rotated = false;
      for (int round = 0; round < rounds(); ++round) rotated = rotate(round) || rotated;
      if (!rotated) break;
    }
    measure();
    compress(cut);
  }

  PAMA_HD int rank() const { return rank_; }
  PAMA_HD const double* column(int k) const { return column_ + k * n_; }
  PAMA_HD double eigenvalue(int k) const { return square_[k]; }

 private:
  PAMA_HD void measure() {
    for (int k = 0; k < rank_; ++k) {
      const double square = dot(team_, n_, column(k), column(k));
      if (team_.rank() == 0) square_[k] = square;
    }
    team_.sync();
  }

  // In four chains: with one, aligned_mtl of n = 32 took twice as long on a CPU.
  PAMA_HD double product(const double* __restrict__ a, const double* __restrict__ b) const {
    const int step = team_.size();
    double sum[4] = {0, 0, 0, 0};
    int i = team_.rank();
    for (; i + 3 * step < n_; i += 4 * step) {
      for (int c = 0; c < 4; ++c) sum[c] += a[i + c * step] * b[i + c * step];
    }
    for (; i < n_; i += step) sum[0] += a[i] * b[i];
    return team_.sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }

  struct Pair {
    int p, q;
  };

  // Each pair of columns meets in one round: the last column stays, the others move around it. With
  // an odd number of columns the one paired with the last, which is none, sits out.
  PAMA_HD int rounds() const { return rank_ + rank_ % 2 - 1; }
  PAMA_HD Pair pair(int round, int k) const {
    const int circle = rounds();
    if (k == 0) return {round, circle};
    const int p = round + k, q = round - k;
    return {p < circle ? p : p - circle, q < 0 ? q + circle : q};
  }

  // Makes the columns of each pair orthogonal; false if all were, to rounding.
  PAMA_HD bool rotate(int round) {
    const int pairs = (rank_ + 1) / 2, first = rank_ % 2;
    for (int k = first; k < pairs; ++k) {
      const Pair at = pair(round, k);
      const double dot = product(column_ + at.p * n_, column_ + at.q * n_);
      if (team_.rank() == 0) {
        tangent_[k] = dot;
        alpha_[k] = square_[at.p];
        beta_[k] = square_[at.q];
      }
    }
    team_.sync();
    find_angles(first, pairs);
    bool rotated = false;
    each(team_, first, pairs, [&](int k) {
      const Pair at = pair(round, k);
      square_[at.p] = alpha_[k];
      square_[at.q] = beta_[k];
      rotated = rotated || tangent_[k] != 0;
    });
    rotated = team_.any(rotated);
    team_.sync();
    if (!rotated) return false;
    for (int k = first; k < pairs; ++k) {
      if (tangent_[k] == 0) continue;
      const Pair at = pair(round, k);
      pama::rotate(team_, n_, cosine_[k], cosine_[k] * tangent_[k], column_ + at.p * n_,
                   column_ + at.q * n_);
    }
    team_.sync();
    return true;
  }

  // From the products of columns of squared norms alpha and beta, in tangent, to the rotations that
  // make them 0; tangent 0 where they are what rounding leaves of n terms. Without branches, and
  // a loop whose pointers the compiler knows to be apart, so that a CPU takes several at a time.
  PAMA_HD void find_angles(int first, int pairs) {
    double* __restrict__ tangents = tangent_, * __restrict__ cosines = cosine_;
    double* __restrict__ alphas = alpha_, * __restrict__ betas = beta_;
    const double noise = n_ * DBL_EPSILON * DBL_EPSILON;
    PAMA_LANES(team_, k, first, pairs) {
      const double dot = tangents[k], alpha = alphas[k], beta = betas[k];
      const double apart = beta - alpha, wide = fabs(apart);
      const double hypotenuse = sqrt(4 * dot * dot + apart * apart);
      const bool turned = dot * dot > noise * alpha * beta;
      const double tangent = 2 * dot / (wide + hypotenuse) * (apart < 0 ? -1.0 : 1.0);
      const double cosine = sqrt(0.5 + 0.5 * (wide / hypotenuse));
      tangents[k] = turned ? tangent : 0.0;
      cosines[k] = cosine;
      const double moved = turned ? tangent * dot : 0.0;
      alphas[k] = alpha > moved ? alpha - moved : 0.0;
      betas[k] = beta + moved;
    }
    team_.sync();
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
        copy(team_, n_, column(k), column_ + kept * n_);
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
  const double* gram_;
  double* column_;                      // column by column
  double* square_ = column_ + n_ * n_;  // squares of the columns' norms
  double* diagonal_ = square_ + n_;     // what is left to factorise
  // Of the pairs of a round.
  double* tangent_ = diagonal_ + n_;  // before, the product of the columns
  double* cosine_ = tangent_ + n_;
  double* alpha_ = cosine_ + n_;
  double* beta_ = alpha_ + n_;
};

}  // namespace pama
