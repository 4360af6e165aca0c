// The list of solvers: an op's name and the class that solves one problem. Each line gives the op a
// CPU kernel and a CUDA kernel.
//
// A solver is a class template over the Team, in a header of its own, with
//   static constexpr bool kScalar: whether one number comes out, not one a row,
//   static constexpr Takes kTakes: nothing, a preference or none, or a vector it cannot do without,
//   static constexpr int64_t vector(int64_t n): how many numbers that has (a bit pattern such as a
//   64-bit seed travels as a double),
//   static constexpr int kOptions: how many scalars the op takes,
//   static constexpr int64_t reals(int64_t n) and integers(int64_t n) of workspace,
//   a constructor from GramProblem<Team>, and void solve().
// `Weighting` (gram_problem.h) answers as most of them do.
#pragma once

#include "core/weightings/aligned_mtl.h"
#include "core/weightings/cagrad.h"
#include "core/weightings/config.h"
#include "core/weightings/duality_gap.h"
#include "core/weightings/dualproj.h"
#include "core/weightings/fairgrad.h"
#include "core/weightings/gapo.h"
#include "core/weightings/gradvac.h"
#include "core/weightings/imtl_g.h"
#include "core/weightings/min_norm.h"
#include "core/weightings/nash_mtl.h"
#include "core/weightings/pcgrad.h"
#include "core/weightings/upgrad.h"

#define PAMA_SOLVERS(X)      \
  X(aligned_mtl, AlignedMtl) \
  X(config, Config)          \
  X(imtl_g, ImtlG)           \
  X(cagrad, CaGrad)          \
  X(dualproj, DualProj)      \
  X(duality_gap, DualityGap) \
  X(fairgrad, FairGrad)      \
  X(gapo, Gapo)              \
  X(gradvac, GradVac)        \
  X(pcgrad, PcGrad)          \
  X(min_norm, MinNorm)       \
  X(nash_mtl, NashMtl)       \
  X(upgrad, UpGrad)
