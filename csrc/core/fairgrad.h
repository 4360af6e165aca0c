// fairgrad: G w = w^(−1/α).
#pragma once

#include "core/fair_weights.h"

namespace pama {

template <class Team>
class FairGrad : public FairWeights<Team> {
 public:
  static constexpr int kOptions = 1;
  // Options: α.
  PAMA_HD explicit FairGrad(const GramProblem<Team>& problem)
      : FairWeights<Team>(problem, 1 / problem.options[0]) {}
};

}  // namespace pama
