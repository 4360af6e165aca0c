// One problem as a solver in the list of list.h gets it.
#pragma once

#include "core/team.h"

namespace pama {

// What an op takes beside the matrix.
enum class Takes { kNothing, kPreference, kVector };

template <class Team>
struct GramProblem {
  Team team;
  int n;
  double* gram;           // n x n, symmetric to the bit; the solver may overwrite it
  const double* vector;   // null unless the solver takes one; a preference: null if uniform
  double rtol;            // of gram's entries: their error is at most rtol ‖g_i‖ ‖g_j‖
  const double* options;  // the op's scalar arguments
  double* out;            // n, or 1 if the solver is kScalar
  Workspace workspace;    // as large as its reals(n) and integers(n)
};

}  // namespace pama
