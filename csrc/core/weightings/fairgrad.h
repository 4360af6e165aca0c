// fairgrad: G w = w^(−1/α).
#pragma once

#include "core/weightings/alpha_fair.h"

namespace pama {

template <class Team>
class FairGrad : public AlphaFair<Team> {
 public:
  static constexpr int kOptions = 1;
  // Options: α.
  PAMA_HD explicit FairGrad(const GramProblem<Team>& problem)
      : AlphaFair<Team>(problem, 1 / problem.options[0]) {}
};

}  // namespace pama
