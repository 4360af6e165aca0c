// nash_mtl: G α = 1/α.
#pragma once

#include "core/weightings/alpha_fair.h"

namespace pama {

template <class Team>
class NashMtl : public AlphaFair<Team> {
 public:
  PAMA_HD explicit NashMtl(const GramProblem<Team>& problem) : AlphaFair<Team>(problem, 1) {}
};

}  // namespace pama
