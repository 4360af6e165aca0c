// The list of solvers: an op's name and the class that solves one problem. Each line gives the op a
// CPU kernel and a CUDA kernel.
//
// A solver is a class template over the Team, in a header of its own, with
//   static constexpr bool kScalar (one number comes out, not one a row) and kTakesPreference,
//   static constexpr int64_t reals(int64_t n) and integers(int64_t n),
//   a constructor from GramProblem<Team>, and void solve().
#pragma once

#include "core/duality_gap.h"
#include "core/min_norm.h"

#define PAMA_SOLVERS(X)      \
  X(duality_gap, DualityGap) \
  X(min_norm, MinNorm)
