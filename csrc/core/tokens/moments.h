// Count, mean and sum of squared deviations of a set of numbers, and of the union of two sets
// (Chan, Golub and LeVeque 1983). Equal numbers have squares of exactly 0.
//
// Squares of numbers beyond 1e154 leave the range of float64. Moments of such numbers are taken of
// the numbers times kSmallUnit, a power of two; squares that are too small need none, as ε is added
// to them. Between ops, and between ranks, moments travel with the root of the mean square in place
// of the sum of squares: no finite numbers have one out of range.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/view.h"

namespace pama {

// Those of an empty set are all 0, which merges as the identity.
struct Moments {
  double count, mean, squares;
};

// From sums of (x − shift) and (x − shift)². With `shift` one of the numbers the squares lose at
// most a factor `count` of precision, with one near their mean nothing.
PAMA_INLINE Moments moments_about(double shift, double count, double sum, double squares) {
  const double offset = sum / (count > 1 ? count : 1);
  return {count, shift + offset, squares - sum * offset};
}

// Without a branch, and exact where one set is empty.
PAMA_INLINE Moments moments_merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, distance = b.mean - a.mean;
  const double share = b.count / (count > 1 ? count : 1);
  return {count, a.mean + distance * share,
          a.squares + b.squares + a.count * share * distance * distance};
}

constexpr double kSmallUnit = 0x1p-600;

// Whether the squares, or the sums on the way to them, were in range. False where a number is not
// finite, too: what is then taken again comes out as NaN again.
PAMA_INLINE bool moments_in_range(const Moments& m) { return m.squares <= DBL_MAX; }

// The unit for numbers whose mean or deviations are as large as this. Below it the squares of 2^60
// of them add up within the range.
PAMA_INLINE double moments_unit(double largest) { return largest > 0x1p480 ? kSmallUnit : 1; }

// Moments that travel: count, mean and root mean square of the deviations.
struct MomentsRow {
  double count, mean, deviation;
};

// Those of an objective and a rank in an array [rank, objective, 3].
PAMA_INLINE MomentsRow moments_row_at(const View& moments, int64_t rank, int64_t objective) {
  const int64_t at = rank * moments.objective + objective * moments.sequence;
  return {load(moments, at), load(moments, at + moments.token),
          load(moments, at + 2 * moments.token)};
}

PAMA_INLINE void store_moments(const View& moments, int64_t objective, const MomentsRow& row) {
  const int64_t at = objective * moments.sequence;
  store(moments, at, row.count);
  store(moments, at + 1, row.mean);
  store(moments, at + 2, row.deviation);
}

// Finite numbers have a mean and a deviation up to the largest of them, which rounding may pass by
// a last place. NaN stays NaN.
PAMA_INLINE double moments_clamp(double x) {
  return x > DBL_MAX ? DBL_MAX : x < -DBL_MAX ? -DBL_MAX : x;
}

PAMA_INLINE MomentsRow moments_row(const Moments& m, double unit) {
  const double squares = m.squares < 0 ? 0 : m.squares;  // rounding again
  const double deviation = sqrt(squares / (m.count > 1 ? m.count : 1));
  return {m.count, moments_clamp(m.mean / unit), moments_clamp(deviation / unit)};
}

PAMA_INLINE double moments_largest(const MomentsRow& row) {
  const double mean = fabs(row.mean);
  return mean > row.deviation ? mean : row.deviation;
}

PAMA_INLINE Moments moments_of(const MomentsRow& row, double unit) {
  const double deviation = row.deviation * unit;
  return {row.count, row.mean * unit, row.count * deviation * deviation};
}

// x ↦ (x · unit − mean) · scale, which is (x − μ) (σ² + ε)^(−½) with the unbiased variance.
struct Whitening {
  double unit, mean, scale;

  PAMA_INLINE double operator()(double x) const { return (x * unit - mean) * scale; }
};

// In small units ε may come to 0. There a variance that is not 0 is far above DBL_MIN, since the
// numbers lie at least a last place of the largest apart; one of 0 is of equal numbers, all of
// which give 0.
PAMA_INLINE Whitening whitening(const Moments& m, double unit, double eps) {
  const double variance = m.squares / (m.count > 1 ? m.count - 1 : 1);
  return {unit, m.mean, 1 / sqrt(variance + fmax(eps * unit * unit, DBL_MIN))};
}

}  // namespace pama
