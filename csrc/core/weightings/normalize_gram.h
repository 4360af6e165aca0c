// What weightings do to a Gram matrix first: refuse what is not finite, and bring it to a scale at
// which no product of two entries overflows.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/algebra/vectors.h"
#include "core/weightings/gram_problem.h"

namespace pama {

// The largest magnitude among the n² entries; NaN if one is not finite. In four chains, as one
// would wait for its latency.
template <class Team>
PAMA_HD double largest_entry(const Team& team, int n, const double* gram) {
  double found[4] = {0, 0, 0, 0}, zero[4] = {0, 0, 0, 0};
  const auto take = [&](int c, double x) {
    found[c] = fabs(x) > found[c] ? fabs(x) : found[c];
    zero[c] += 0 * x;  // NaN if x is infinite or none
  };
  const int count = n * n, step = team.size();
  int i = team.rank();
  for (; i + 3 * step < count; i += 4 * step) {
    for (int c = 0; c < 4; ++c) take(c, gram[i + c * step]);
  }
  for (; i < count; i += step) take(0, gram[i]);
  const double zeros = (zero[0] + zero[1]) + (zero[2] + zero[3]);
  const double largest = team.largest(fmax(fmax(found[0], found[1]), fmax(found[2], found[3])));
  return team.any(zeros != 0) ? NAN : largest;
}

// Divides the matrix by 4^half, which is exact, so that its largest entry is about 1, and sets
// norm[i] to the root of entry i of its diagonal. False, and the result NaN, if an entry is not
// finite. A gradient of length 0 has products of 0, whatever is left of them where its square was
// below the range of G's dtype.
template <class Team>
PAMA_HD bool normalize_gram(const GramProblem<Team>& problem, double* norm, int* half = nullptr) {
  const Team& team = problem.team;
  const int n = problem.n;
  double* gram = problem.gram;
  const double found = largest_entry(team, n, gram);
  if (!(found <= DBL_MAX)) {
    fill(team, n, NAN, problem.out);
    return false;
  }
  const int power = found > 0 ? static_cast<int>(floor(ilogb(found) / 2.0)) : 0;
  if (half) *half = power;
  if (power != 0) {
    const double factor = ldexp(1.0, -power);  // twice, as its square may be out of range
    each_entry(team, n * n, [&](int i) { gram[i] = gram[i] * factor * factor; });
  }
  team.sync();
  const bool none = any_of(team, n, [&](int i) {
    norm[i] = sqrt(fmax(gram[i * n + i], 0.0));
    return norm[i] == 0;
  });
  team.sync();
  if (none) {
    each_entry(team, n * n, [&](int i) {
      if (norm[i / n] == 0 || norm[i % n] == 0) gram[i] = 0;
    });
    team.sync();
  }
  return true;
}

}  // namespace pama
