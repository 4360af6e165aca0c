// gradvac: where the current vector's cosine with g_j is below the target, it is raised to it.
#pragma once

#include "core/weightings/gradient_surgery.h"

namespace pama {

template <class Team>
class RaiseCosine {
 public:
  PAMA_HD RaiseCosine(const GramProblem<Team>& problem, int i)
      : targets_(problem.vector + 1 + i * problem.n), square_(problem.gram[i * problem.n + i]) {}

  PAMA_HD double meet(int j, double slope, double norm) {
    const double target = targets_[j], length = sqrt(fmax(square_, 0.0));
    if (!(length > 0)) return 0;
    const double cosine = fmin(fmax(slope / (length * norm), -1.0), 1.0);
    if (!(cosine < target)) return 0;
    const double rest = sqrt((1 - target) * (1 + target));
    const double sine = sqrt((1 - cosine) * (1 + cosine));
    const double change = length * (target * sine - cosine * rest) / (norm * rest);
    square_ += change * (2 * slope + change * norm * norm);
    return change;
  }

 private:
  const double* targets_;  // of row i
  double square_;          // ‖cur‖²
};

template <class Team>
class GradVac : public GradientSurgery<Team, RaiseCosine> {
 public:
  using GradientSurgery<Team, RaiseCosine>::GradientSurgery;
  PAMA_HD static constexpr int64_t vector(int64_t n) { return 1 + n * n; }  // seed, target cosines
};

}  // namespace pama
