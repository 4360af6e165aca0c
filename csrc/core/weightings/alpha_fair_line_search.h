// How far to go along v(1 + tq) when minimising a quadratic less Σ φ(v), φ' ∝ v^(−β): for the
// Newton steps of alpha_fair.h and for the ascent of alpha_fair_stationary.h.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/algebra/vectors.h"

namespace pama {

PAMA_HD inline double power(double x, double exponent) {
  return exponent == 0 ? 1 : exponent == -1 ? 1 / x : pow(x, exponent);
}

// share = (w / w_k)^(1−β), 0 where w is, with w_k, which is returned, that of the largest power, so
// that none leaves the range of float64; where no w is positive, an infinity, which no share is of.
// `share` may be `w`.
template <class Team>
PAMA_HD double relative_powers(const Team& team, int n, const double* w, double beta,
                               double* share) {
  if (beta == 1) {
    each(team, n, [&](int i) { share[i] = w[i] > 0 ? 1 : 0; });
    return 1;
  }
  const double sign = beta > 1 ? -1 : 1;
  const auto signed_weight = [&](int i) { return w[i] > 0 ? sign * w[i] : -INFINITY; };
  const double found = sign * largest_of(team, n, signed_weight, -INFINITY);
  each(team, n, [&](int i) { share[i] = w[i] > 0 ? power(w[i] / found, 1 - beta) : 0; });
  return found;
}

// Along the line the function's derivative is −descent + t · curvature + Σ share q (1 −
// (1 + tq)^(−β)), which rises with t: Newton's method within a bracket brings it to a quarter of
// its magnitude at 0, or to rounding, which near the minimum t = 1 does at once. At the far end,
// where a weight nears 0, a step of Newton's would bring 1 + tq up by a factor of 1 + 1/(1 + β)
// only: from there each step halves the bracket at least. No weight falls by more than kFall, as
// none that is 0 ever rises again.
template <class Team>
PAMA_HD double fair_step(const Team& team, int n, const double* share, const double* q, double beta,
                         double descent, double curvature) {
  constexpr int kEvaluations = 40;
  constexpr double kFall = 0x1p-20;
  const double steepest = largest_of(team, n, [&](int i) { return -q[i]; });
  const double size = sum_of(team, n, [&](int i) { return share[i] * fabs(q[i]); });
  const double enough = fmax(0.25 * descent, DBL_EPSILON * size);
  double low = 0, high = steepest > 0 ? (1 - kFall) / steepest : INFINITY;
  double t = high > 1 ? 1 : 0.99 * high;
  for (int evaluation = 0; evaluation < kEvaluations; ++evaluation) {
    const auto [change, bend] = sums_of(team, n, [&](int i) {
      const double along = 1 + t * q[i], left = share[i] * power(along, -beta);
      return Two{q[i] * (share[i] - left), q[i] * q[i] * left / along};
    });
    const double slope = change + t * curvature - descent;
    if (fabs(slope) <= enough) return t;
    (slope > 0 ? high : low) = t;
    const double middle = 0.5 * (low + fmin(high, 2 * t));
    const double next = t - slope / (beta * bend + curvature);
    t = next > low && next < (slope > 0 ? middle : high) ? next : middle;
  }
  return low;
}

}  // namespace pama
