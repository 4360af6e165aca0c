// dualproj: argmin vᵀGv over v >= p.
#pragma once

#include "core/weightings/cone_projections.h"

namespace pama {

template <class Team>
class DualProj : public ConeProjections<Team> {
 public:
  PAMA_HD explicit DualProj(const GramProblem<Team>& problem) : ConeProjections<Team>(problem) {}

  PAMA_HD void solve() {
    if (!this->prepare()) return;
    PAMA_LANES(this->team_, i, 0, this->n_) {
      this->lower_[i] = this->preference_[i];
    }
    this->add_solution();
  }
};

}  // namespace pama
