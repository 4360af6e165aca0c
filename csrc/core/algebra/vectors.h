// Vectors over a Team: loops and reductions over the indices below n.
//
// `f` is called with each index by the lane that it is dealt to; `Team::kOneEach` holds as in
// PAMA_LANES. What f writes and another lane reads is separated by a sync of the caller's: none of
// these has one, but for `fill`, `divide_by_sum` and `orthogonalise`. Sums start at 0 and add in
// rising order on each lane.
//
// Flattened, so that f is inlined wherever they are: a solver spends its time in these loops.
#pragma once

#include <cmath>

#include "core/portable.h"
#include "core/team.h"

namespace pama {

template <class Team, class F>
PAMA_FLATTENED void each(const Team& team, int first, int end, const F& f) {
  PAMA_LANES(team, i, first, end) f(i);
}

template <class Team, class F>
PAMA_FLATTENED void each(const Team& team, int n, const F& f) {
  PAMA_LANES(team, i, 0, n) f(i);
}

// Of any number of entries, such as those of a matrix.
template <class Team, class F>
PAMA_FLATTENED void each_entry(const Team& team, int count, const F& f) {
  PAMA_ENTRIES(team, i, count) f(i);
}

template <class Team, class F>
PAMA_FLATTENED double sum_of(const Team& team, int n, const F& f) {
  double total = 0;
  PAMA_LANES(team, i, 0, n) total += f(i);
  return team.sum(total);
}

struct Two {
  double first, second;
};

// Of the two numbers that f returns, in one loop.
template <class Team, class F>
PAMA_FLATTENED Two sums_of(const Team& team, int n, const F& f) {
  Two total{0, 0};
  PAMA_LANES(team, i, 0, n) {
    const Two here = f(i);
    total.first += here.first;
    total.second += here.second;
  }
  return {team.sum(total.first), team.sum(total.second)};
}

// The largest, or `least`; NaN counts as nothing.
template <class Team, class F>
PAMA_FLATTENED double largest_of(const Team& team, int n, const F& f, double least = 0) {
  double largest = least;
  PAMA_LANES(team, i, 0, n) largest = fmax(largest, f(i));
  return team.largest(largest);
}

// The smallest that is below `start` and where it stands, or `start`. NaN counts as nothing.
template <class Team, class F>
PAMA_FLATTENED Located smallest_of(const Team& team, int n, const F& f, Located start) {
  PAMA_LANES(team, i, 0, n) {
    const double here = f(i);
    if (here < start.value) start = {here, i};
  }
  return team.smallest(start);
}

template <class Team, class F>
PAMA_FLATTENED bool any_of(const Team& team, int n, const F& f) {
  bool any = false;
  PAMA_LANES(team, i, 0, n) any = f(i) || any;
  return team.any(any);
}

template <class Team>
PAMA_INLINE double dot(const Team& team, int n, const double* x, const double* y) {
  return sum_of(team, n, [&](int i) { return x[i] * y[i]; });
}

template <class Team>
PAMA_INLINE void copy(const Team& team, int n, const double* x, double* y) {
  each(team, n, [&](int i) { y[i] = x[i]; });
}

// y <- y + a x.
template <class Team>
PAMA_INLINE void add_multiple(const Team& team, int first, int end, double a,
                              const double* __restrict__ x, double* __restrict__ y) {
  PAMA_LANES(team, i, first, end) y[i] += x[i] * a;
}

template <class Team>
PAMA_INLINE void add_multiple(const Team& team, int n, double a, const double* x, double* y) {
  add_multiple(team, 0, n, a, x, y);
}

// (x, y) <- (c x − s y, s x + c y).
template <class Team>
PAMA_INLINE void rotate(const Team& team, int n, double cosine, double sine, double* __restrict__ x,
                        double* __restrict__ y) {
  PAMA_LANES(team, i, 0, n) {
    const double xi = x[i], yi = y[i];
    x[i] = cosine * xi - sine * yi;
    y[i] = sine * xi + cosine * yi;
  }
}

template <class Team>
PAMA_HD void fill(const Team& team, int n, double value, double* x) {
  each(team, n, [&](int i) { x[i] = value; });
  team.sync();
}

// x <- x / Σ x.
template <class Team>
PAMA_HD void divide_by_sum(const Team& team, int n, double* x) {
  const double total = sum_of(team, n, [&](int i) { return x[i]; });
  each(team, n, [&](int i) { x[i] /= total; });
  team.sync();
}

// Removes from x its part along the `count` orthonormal vectors that lie one after another in
// `basis`, by Gram-Schmidt, twice, which is enough (Kahan).
template <class Team>
PAMA_HD void orthogonalise(const Team& team, int n, const double* basis, int count, double* x) {
  for (int round = 0; round < 2; ++round) {
    for (int k = 0; k < count; ++k) {
      const double* other = basis + k * n;
      add_multiple(team, n, -dot(team, n, x, other), other, x);
    }
  }
  team.sync();
}

}  // namespace pama
