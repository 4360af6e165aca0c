// pcgrad: where the current vector conflicts with g_j, its part along g_j is removed.
#pragma once

#include "core/weightings/gradient_surgery.h"

namespace pama {

template <class Team>
struct RemoveConflict {
  PAMA_HD RemoveConflict(const GramProblem<Team>&, int) {}

  PAMA_HD double meet(int, double slope, double norm) const {
    return slope < 0 ? -slope / (norm * norm) : 0;
  }
};

template <class Team>
class PcGrad : public GradientSurgery<Team, RemoveConflict> {
 public:
  using GradientSurgery<Team, RemoveConflict>::GradientSurgery;
  PAMA_HD static constexpr int64_t vector(int64_t) { return 1; }  // the seed
};

}  // namespace pama
