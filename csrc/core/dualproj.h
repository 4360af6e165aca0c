// dualproj: argmin vᵀGv over v >= p.
#pragma once

#include "core/cone_weights.h"

namespace pama {

template <class Team>
class DualProj : public ConeWeights<Team> {
 public:
  PAMA_HD explicit DualProj(const GramProblem<Team>& problem) : ConeWeights<Team>(problem) {}

  PAMA_HD void solve() {
    if (!this->prepare()) return;
    PAMA_LANES(this->team_, i, 0, this->n_) {
      this->lower_[i] = this->preference_[i];
    }
    this->add_solution();
  }
};

}  // namespace pama
