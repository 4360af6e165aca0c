// What weightings do to a Gram matrix first: refuse what is not finite, and bring it to a scale at
// which no product of two entries overflows.
#pragma once

#include <cfloat>
#include <cmath>

#include "core/preference.h"
#include "core/team.h"

namespace pama {

// Divides `gram` by 4^half, which is exact, so that its largest entry is about 1, and sets norm[i]
// to the root of entry i of its diagonal. False if an entry is not finite.
template <class Team>
PAMA_HD bool normalize_gram(Team team, int n, double* gram, double* norm, int* half) {
  double found = 0;
  bool finite = true;
  for (int i = team.rank(); i < n * n; i += team.size()) {
    const double magnitude = fabs(gram[i]);
    finite = finite && magnitude <= DBL_MAX;
    found = magnitude > found ? magnitude : found;
  }
  found = team.largest(found);
  if (team.any(!finite)) return false;
  *half = found > 0 ? static_cast<int>(floor(ilogb(found) / 2.0)) : 0;
  if (*half != 0) {
    const double factor = ldexp(1.0, -*half);  // twice, as its square may be out of range
    for (int i = team.rank(); i < n * n; i += team.size()) gram[i] = gram[i] * factor * factor;
  }
  team.sync();
  for (int i = team.rank(); i < n; i += team.size()) norm[i] = sqrt(fmax(gram[i * n + i], 0.0));
  team.sync();
  return true;
}

// The preference with sum 1.
template <class Team>
PAMA_HD void normalize_preference(Team team, int n, const double* wanted, double* preference) {
  relative_preference(team, n, wanted, DBL_MIN, preference);
  double total = 0;
  for (int i = team.rank(); i < n; i += team.size()) total += preference[i];
  total = team.sum(total);
  for (int i = team.rank(); i < n; i += team.size()) preference[i] /= total;
  team.sync();
}

template <class Team>
PAMA_HD void fill(Team team, int n, double value, double* to) {
  for (int i = team.rank(); i < n; i += team.size()) to[i] = value;
  team.sync();
}

}  // namespace pama
