// The list of solvers: an op's name and the class that solves one problem. Each line gives the op a
// CPU kernel and a CUDA kernel.
//
// A solver is a class template over the Team, in a header of its own: a Weighting (gram_problem.h)
// with the reals(n) of its workspace and void solve().
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
