// dualproj: argmin vᵀGv over v >= p.
#pragma once

#include "core/weightings/cone_projections.h"

namespace pama {

template <class Team>
class DualProj : public ConeProjections<Team> {
 public:
  using ConeProjections<Team>::ConeProjections;

  PAMA_HD void solve() {
    if (!this->prepare()) return;
    copy(this->team_, this->n_, this->preference_, this->lower_);
    this->add_solution();
  }
};

}  // namespace pama
