// Who solves a problem: one thread of a CPU (here), or lanes of a warp (csrc/cuda/warp_team.cuh).
//
// A solver is written once against this policy. Every lane of a team runs the same code and takes
// the same branches, since each branch depends on values that a reduction made equal on all lanes;
// loops over elements deal them to the lanes (PAMA_LANES). What one lane writes and another reads
// is separated by sync(). Reductions return the same bits on every lane.
#pragma once

#include "core/portable.h"

namespace pama {

// The indices from `first` to below `end`, dealt to the lanes of a team: `PAMA_LANES(team, i, 0,
// n)` stands for a `for`. They are of objectives, of which a team that is kOneEach has no more than
// lanes: it need not go round, and its lanes can hand each other their element (`from`).
// PAMA_ENTRIES deals any number. Neither is unrolled for a warp, which seldom goes round twice: the
// code would be twice as long, and a solver waits for its instructions as it is.
#if defined(__CUDA_ARCH__)
#define PAMA_ROLLED _Pragma("unroll 1")
#else
#define PAMA_ROLLED
#endif
#define PAMA_LANES(team, i, first, end)                                                  \
  PAMA_ROLLED for (int i = (first) + (team).rank(), i##_more = 1; i##_more && i < (end); \
                   i##_more = !(team).kOneEach, i += (team).size())
#define PAMA_ENTRIES(team, i, end) \
  PAMA_ROLLED for (int i = (team).rank(); i < (end); i += (team).size())

// A value and where it stands. Of equal values the lowest index wins, whatever the team's size.
struct Located {
  double value;
  int index;
};

PAMA_HD inline bool before(const Located& a, const Located& b) {
  return a.value < b.value || (a.value == b.value && a.index < b.index);
}

struct SerialTeam {
  static constexpr bool kOneEach = false;
  PAMA_HD static constexpr int rank() { return 0; }
  PAMA_HD static constexpr int size() { return 1; }
  PAMA_HD void sync() const {}
  PAMA_HD double sum(double x) const { return x; }
  PAMA_HD double largest(double x) const { return x; }
  PAMA_HD Located smallest(Located x) const { return x; }
  PAMA_HD bool any(bool x) const { return x; }
};

// What a solver may scribble on; the solver's own header says how much it needs.
struct Workspace {
  double* reals;
  int* integers;
};

}  // namespace pama
