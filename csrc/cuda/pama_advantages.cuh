// What the two ops of `pama_advantages` share on a GPU.
//
// PAMA takes at most four launches: partial statistics of each sequence, their sums, weights for
// the whole batch (`gram` and `batch` only), and the combination, which for `token` and `sequence`
// finds its weights on the way.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/token_packs.cuh"
#include "tensors/pama_advantages.h"

namespace pama {

// Objectives that a thread holds in registers, at most.
inline constexpr int kFewObjectives = 8;
inline constexpr int64_t kSharedBytes = 48 * 1024;  // what every GPU grants

}  // namespace pama
