// Generalised advantage estimation, a block for each (objective, sequence), right to left in tiles
// of eight tokens a thread: at T = 1024 one tile of 128 threads. Each thread joins its eight tokens
// into one map; the lanes of a warp scan their maps in five shuffle steps; each warp takes the
// state through the maps of the warps on its right, from shared memory; and each thread replays its
// tokens from the state that this hands it. All loads of a tile are in flight at once.
#pragma once

#include "core/gae.h"
#include "core/view.h"
#include "kernels/device.cuh"
#include "kernels/raw_tokens.cuh"

namespace pama {

struct GaeArgs {
  Sequences sequences;
  View rewards, values, mask, last_values, advantages, returns;
  double gamma, lambda;
};

inline constexpr int kGaeBlock = 128;  // at most
inline constexpr int kGaePacks = 2;
inline constexpr int kGaeTokens = kGaePacks * kRawTokens;  // of each thread and tile

struct GaeTokens {
  double reward[kGaeTokens], value[kGaeTokens];
  bool unmasked[kGaeTokens];
};

// Of the `inside` tokens from t on; a masked token's reward and value take no part.
__device__ __forceinline__ GaeTokens gae_load(const GaeArgs& args, int64_t n, int64_t b, int64_t t,
                                              int inside) {
  const Sequences& s = args.sequences;
  RawTokens mask[kGaePacks], reward[kGaePacks], value[kGaePacks];
  const auto raw = [&](const View& view, int64_t first, int pack) {
    const int skipped = pack * kRawTokens;
    return load_raw(view, first + (t + skipped) * view.token, raw_inside(inside - skipped));
  };
#pragma unroll
  for (int p = 0; p < kGaePacks; ++p) {
    mask[p] = raw(args.mask, s.first(args.mask, 0, b), p);
    reward[p] = raw(args.rewards, s.first(args.rewards, n, b), p);
    value[p] = raw(args.values, s.first(args.values, n, b), p);
  }
  GaeTokens tokens;
#pragma unroll
  for (int k = 0; k < kGaeTokens; ++k) {
    const int p = k / kRawTokens, at = k % kRawTokens;
    const bool here = k < inside && raw_unmasked(args.mask, mask[p], at);
    tokens.unmasked[k] = here;
    tokens.reward[k] = here ? raw_real(args.rewards, reward[p], at) : 0;
    tokens.value[k] = here ? raw_real(args.values, value[p], at) : 0;
  }
  return tokens;
}

__device__ __forceinline__ GaeRun gae_shuffle_down(const GaeRun& run, int distance) {
  GaeRun other;
  other.a = __shfl_down_sync(kFullWarp, run.a, distance);
  other.c = __shfl_down_sync(kFullWarp, run.c, distance);
  other.b = __shfl_down_sync(kFullWarp, run.b, distance);
  other.v = __shfl_down_sync(kFullWarp, run.v, distance);
  other.seen = __shfl_down_sync(kFullWarp, static_cast<int>(run.seen), distance) != 0;
  return other;
}

__global__ void __launch_bounds__(kGaeBlock, 4) gae_kernel(const __grid_constant__ GaeArgs args) {
  const Sequences& s = args.sequences;
  // Neighbouring blocks share a sequence: in a [B, T, N] layout they then share cache lines.
  const int64_t n = blockIdx.x % s.objectives, b = blockIdx.x / s.objectives;
  const int64_t size = s.size(b);
  const View& last = args.last_values;
  GaeState carry{0.0, last.data ? load(last, n * last.objective + b * last.token) : 0.0};
  const int64_t advantages = s.first(args.advantages, n, b);
  const int64_t returns = s.first(args.returns, n, b);
  constexpr int words = sizeof(GaeRun) / sizeof(double);
  // Of each warp, two sets by turns: so a tile's reads need no barrier before the next one's
  // writes.
  double* shared = dynamic_shared();
  const int warps = static_cast<int>(blockDim.x) / kWarp,
            mine = static_cast<int>(threadIdx.x) / kWarp;

  const int64_t tile = static_cast<int64_t>(blockDim.x) * kGaeTokens;
  int set = 0;
  // Tiles begin at multiples of their size, so that packs of tokens are aligned where rows are.
  for (int64_t start = size > 0 ? (size - 1) / tile * tile : -1; start >= 0;
       start -= tile, set ^= 1) {
    const int64_t t = start + static_cast<int64_t>(threadIdx.x) * kGaeTokens;
    const int inside = static_cast<int>(size - t < 0            ? 0
                                        : size - t < kGaeTokens ? size - t
                                                                : kGaeTokens);
    const GaeTokens tokens = gae_load(args, n, b, t, inside);
    GaeRun run;
#pragma unroll
    for (int k = kGaeTokens - 1; k >= 0; --k) {
      if (tokens.unmasked[k]) {
        run = gae_join(gae_token(tokens.reward[k], tokens.value[k], args.gamma, args.lambda), run);
      }
    }
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const GaeRun right = gae_shuffle_down(run, distance);
      if (lane() + distance < kWarp) run = gae_join(run, right);
    }
    // `run` now spans from this lane to the end of the warp; what lies right of the lane:
    const GaeRun after = gae_shuffle_down(run, 1);
    double* runs = shared + set * warps * words;
    if (lane() == 0) memcpy(runs + mine * words, &run, sizeof(run));
    __syncthreads();
    GaeState state = carry;
#pragma unroll 1
    for (int w = warps - 1; w >= 0; --w) {
      if (w == mine) state = carry;
      GaeRun whole;
      memcpy(static_cast<void*>(&whole), runs + w * words, sizeof(whole));
      carry = gae_apply(whole, carry);
    }
    if (lane() < kWarp - 1) state = gae_apply(after, state);
    double advantage[kGaeTokens], sum[kGaeTokens];
#pragma unroll
    for (int k = kGaeTokens - 1; k >= 0; --k) {
      const bool here = tokens.unmasked[k];
      if (here) {
        state =
            gae_apply(gae_token(tokens.reward[k], tokens.value[k], args.gamma, args.lambda), state);
      }
      advantage[k] = here ? state.advantage : 0;
      sum[k] = here ? state.advantage + state.value : 0;
    }
#pragma unroll
    for (int p = 0; p < kGaePacks; ++p) {
      const int skipped = p * kRawTokens, here = raw_inside(inside - skipped);
      store_raw(args.advantages, advantages + t + skipped, here, advantage + skipped);
      store_raw(args.returns, returns + t + skipped, here, sum + skipped);
    }
  }
}

}  // namespace pama
