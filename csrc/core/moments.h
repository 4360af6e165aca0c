// Count, mean and sum of squared deviations of a set of numbers, and of the union of two sets
// (Chan, Golub and LeVeque 1983). Equal numbers have squares of exactly 0.
#pragma once

#include <cmath>

#include "core/portable.h"

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

// (σ² + ε)^(−½) with the unbiased variance.
PAMA_INLINE double moments_scale(const Moments& m, double eps) {
  return 1 / sqrt(m.squares / (m.count > 1 ? m.count - 1 : 1) + eps);
}

}  // namespace pama
