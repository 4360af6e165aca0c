// What pcgrad and gradvac share: each gradient, changed against every other in a random order of
// its own.
//
// Orders come from a counter-based generator: a key for each (seed, row, position), so that they
// depend on neither device nor team size nor on how often anything was drawn before.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/weightings/gram_problem.h"
#include "core/weightings/normalize_gram.h"

namespace pama {

// splitmix64's finaliser (Steele, Lea & Flood 2014), a bijection whose output bits all depend on
// all input bits.
PAMA_HD inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// order[0 .. n−2] <- a random permutation of all objectives but i (Fisher & Yates). The modulus is
// biased by n / 2^64.
PAMA_HD inline void random_order(uint64_t seed, int n, int i, int* order) {
  const uint64_t row = mix(mix(seed) + static_cast<uint64_t>(i));
  for (int k = 0; k < n - 1; ++k) order[k] = k < i ? k : k + 1;
  for (int k = n - 2; k > 0; --k) {
    const int other =
        static_cast<int>(mix(row + static_cast<uint64_t>(k)) % static_cast<uint64_t>(k + 1));
    const int swapped = order[k];
    order[k] = order[other];
    order[other] = swapped;
  }
}

// `Rule` says what an encounter of the current vector with gradient j adds to its coefficient of
// g_j.
template <class Team, template <class> class Rule>
class GradientSurgery : public Weighting<Team> {
  using Base = Weighting<Team>;
  using Base::Base, Base::problem_, Base::team_, Base::n_, Base::out_;

 public:
  static constexpr Takes kTakes = Takes::kVector;
  PAMA_HD static constexpr int64_t reals(int64_t n) { return 2 * n; }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return n * n; }

  PAMA_HD void solve() {
    double *norm = problem_.workspace.reals, *slope = norm + n_;
    int* orders = problem_.workspace.integers;
    if (!normalize_gram(problem_, norm)) return;
    const auto seed = bit_cast<uint64_t>(problem_.vector[0]);
    each(team_, n_, [&](int i) { random_order(seed, n_, i, orders + i * n_); });
    fill(team_, n_, 1, out_);
    for (int i = 0; i < n_; ++i) {
      Rule<Team> rule(problem_, i);
      copy(team_, n_, problem_.gram + i * n_, slope);  // <cur, g_r>
      team_.sync();
      for (int k = 0; k < n_ - 1; ++k) {
        const int j = orders[i * n_ + k];
        if (!(norm[j] > 0)) continue;
        const double change = rule.meet(j, slope[j], norm[j]);
        if (change == 0) continue;
        team_.sync();
        add_multiple(team_, n_, change, problem_.gram + j * n_, slope);
        if (team_.rank() == 0) out_[j] += change;
        team_.sync();
      }
      team_.sync();
    }
  }
};

}  // namespace pama
