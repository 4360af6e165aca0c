// One problem as a solver in the list of list.h gets it.
#pragma once

#include <cstdint>

#include "core/team.h"

namespace pama {

// What an op takes beside the matrix: nothing, a preference or none, or a vector it cannot do
// without.
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

// What most weightings are; one that differs says so itself.
template <class Team>
class Weighting {
 public:
  static constexpr bool kScalar = false;  // whether one number comes out, not one a row
  static constexpr Takes kTakes = Takes::kNothing;
  static constexpr int kOptions = 0;  // how many scalars the op takes
  // How many numbers the preference or vector has; a 64-bit seed travels as a double.
  PAMA_HD static constexpr int64_t vector(int64_t) { return 0; }
  // Of workspace, beside the reals(n) that each says itself.
  PAMA_HD static constexpr int64_t integers(int64_t) { return 0; }

  PAMA_HD explicit Weighting(const GramProblem<Team>& problem) : problem_(problem) {}

 protected:
  GramProblem<Team> problem_;
  Team team_ = problem_.team;
  int n_ = problem_.n;
  double* out_ = problem_.out;
};

}  // namespace pama
