// upgrad: Σ_i argmin vᵀGv over v >= p_i e_i, one problem for each objective.
#pragma once

#include "core/weightings/cone_projections.h"

namespace pama {

template <class Team>
class UpGrad : public ConeProjections<Team> {
 public:
  using ConeProjections<Team>::ConeProjections;

  PAMA_HD void solve() {
    if (!this->prepare()) return;
    for (int i = 0; i < this->n_; ++i) {
      if (this->preference_[i] == 0) continue;
      if (this->team_.rank() == 0) this->lower_[i] = this->preference_[i];
      this->add_solution();
      if (this->team_.rank() == 0) this->lower_[i] = 0;
    }
  }
};

}  // namespace pama
