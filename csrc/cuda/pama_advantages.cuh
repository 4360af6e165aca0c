// What the two ops of `pama_advantages` share on a GPU.
//
// PAMA takes at most four launches: partial statistics of each sequence, their sums, weights for
// the whole batch (`gram` and `batch` only), and the combination, which for `token` and `sequence`
// finds its weights on the way.
#pragma once

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/token_packs.cuh"
#include "tensors/pama_advantages.h"

namespace pama {

// Objectives that a thread holds in registers, at most.
inline constexpr int kFewObjectives = 8;
inline constexpr int64_t kSharedBytes = 48 * 1024;  // what every GPU grants

inline constexpr int kSequenceBlock = 256;  // threads of a block that takes a sequence in packs

// Calls use(parts) with I(A) of N objectives, from the `first` on, at each unmasked token of this
// thread: 0 of those whose bit in `taken` is not set. All loads of a pack are in flight at once.
template <int N, Layout kLayout, class Use>
__device__ __forceinline__ void for_parts(const PamaInputs& args,
                                          const PackedSequence<kLayout>& sequence, int64_t first,
                                          unsigned taken, const Use& use) {
  const View &advantages = args.advantages, &ratios = args.log_ratio;
#pragma unroll 1
  for (int64_t t = threadIdx.x * kPackTokens; t < sequence.size;
       t += kSequenceBlock * kPackTokens) {
    const auto mask = sequence.load_mask(args.mask, t);
    TokenPack<kLayout> ratio{}, advantage[N];
    if (ratios.data) ratio = sequence.load(ratios, 0, t);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (taken >> i & 1) advantage[i] = sequence.load(advantages, first + i, t);
    }
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) {
      if (!unmasked_at(args.mask, mask, k)) continue;
      const double log_ratio = ratios.data ? real_of(ratios, ratio.at[k]) : 0;
      double parts[N] = {};
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (!(taken >> i & 1)) continue;
        const double a = noon(args.rule, real_of(advantages, advantage[i].at[k]));
        parts[i] = active_part(args.rule, a, log_ratio);
      }
      use(parts);
    }
  }
}

}  // namespace pama
