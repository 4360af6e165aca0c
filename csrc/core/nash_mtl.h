// nash_mtl: G α = 1/α.
#pragma once

#include "core/fair_weights.h"

namespace pama {

template <class Team>
class NashMtl : public FairWeights<Team> {
 public:
  PAMA_HD explicit NashMtl(const GramProblem<Team>& problem) : FairWeights<Team>(problem, 1) {}
};

}  // namespace pama
