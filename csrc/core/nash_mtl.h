// nash_mtl: G α = 1/α.
#pragma once

#include <cstdint>

#include "core/fair_weights.h"
#include "core/gram_problem.h"

namespace pama {

template <class Team>
class NashMtl {
 public:
  static constexpr bool kScalar = false;
  static constexpr bool kTakesPreference = false;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return n; }
  PAMA_HD static constexpr int64_t reals(int64_t n) { return FairWeights<Team>::reals(n); }
  PAMA_HD static constexpr int64_t integers(int64_t n) { return FairWeights<Team>::integers(n); }

  PAMA_HD explicit NashMtl(const GramProblem<Team>& problem) : method_(problem, 1) {}

  PAMA_HD void solve() { method_.solve(); }

 private:
  FairWeights<Team> method_;
};

}  // namespace pama
