// What the two ops of `pama_advantages` share on a GPU.
//
// PAMA takes at most four launches: partial statistics of each sequence, their sums, weights for
// the whole batch (`gram` and `batch` only), and the combination, which for `token` and `sequence`
// finds its weights on the way.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/raw_tokens.cuh"
#include "cuda/reduce.cuh"
#include "tensors/pama_advantages.h"

namespace pama {

// Objectives that a thread holds in registers, at most.
inline constexpr int kFewObjectives = 8;
inline constexpr int64_t kSharedBytes = 48 * 1024;  // what every GPU grants

__device__ __forceinline__ double pama_log_ratio(const PamaInputs& args, int64_t b, int64_t t) {
  const View& ratio = args.log_ratio;
  return ratio.data ? load(ratio, args.sequences.first(ratio, 0, b) + t * ratio.token) : 0.0;
}

// Whether an objective has no part in a sequence.
__device__ __forceinline__ bool pama_dropped(const PamaInputs& args, int64_t n, int64_t b) {
  return args.by_sequence && !(preferred(args.preference, n, b) > 0);
}

// A of an unmasked token, after Noon.
__device__ __forceinline__ double pama_noon(const PamaInputs& args, int64_t n, int64_t b,
                                            int64_t t) {
  const View& a = args.advantages;
  return noon(args.rule, load(a, args.sequences.first(a, n, b) + t * a.token));
}

__device__ __forceinline__ bool pama_unmasked(const PamaInputs& args, int64_t b, int64_t t) {
  return unmasked(args.mask, args.sequences.first(args.mask, 0, b) + t * args.mask.token);
}

}  // namespace pama
