// Generalised advantage estimation, a warp for each (objective, sequence), right to left in tiles
// of 128 tokens. Each lane joins its four tokens into one map, the lanes scan their maps in five
// shuffle steps, and each lane replays its tokens from the state that the scan hands it. The
// loads of the next tile are in flight while this one is scanned: at T = 1024 the walk is eight
// tiles of shuffle latency, not 1024 dependent steps.
#pragma once

#include "core/gae.h"
#include "core/view.h"
#include "kernels/device.cuh"

namespace pama {

struct GaeArgs {
  Sequences sequences;
  View rewards, values, mask, last_values, advantages, returns;
  double gamma, lambda;
};

inline constexpr int kGaeTokens = 4;  // of each lane and tile

struct GaeTokens {
  double reward[kGaeTokens], value[kGaeTokens];
  bool inside[kGaeTokens], unmasked[kGaeTokens];
};

// A masked token's reward and value are not read.
__device__ __forceinline__ GaeTokens gae_load(const GaeArgs& args, int64_t n, int64_t b, int64_t t,
                                              int64_t size) {
  const Sequences& s = args.sequences;
  const int64_t rewards = s.first(args.rewards, n, b), values = s.first(args.values, n, b);
  const int64_t mask = s.first(args.mask, 0, b);
  GaeTokens tokens;
#pragma unroll
  for (int k = 0; k < kGaeTokens; ++k) {
    const int64_t i = t + k;
    tokens.inside[k] = i >= 0 && i < size;
    tokens.unmasked[k] = tokens.inside[k] && unmasked(args.mask, mask + i * args.mask.token);
    tokens.reward[k] =
        tokens.unmasked[k] ? load(args.rewards, rewards + i * args.rewards.token) : 0;
    tokens.value[k] = tokens.unmasked[k] ? load(args.values, values + i * args.values.token) : 0;
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

__global__ void __launch_bounds__(128, 4) gae_kernel(const __grid_constant__ GaeArgs args) {
  const Sequences& s = args.sequences;
  // Neighbouring warps share a sequence: in a [B, T, N] layout they then share cache lines.
  const int64_t n = warp() % s.objectives, b = warp() / s.objectives;
  if (b >= s.count) return;
  const int64_t size = s.size(b);
  const View& last = args.last_values;
  GaeState carry{0.0, last.data ? load(last, n * last.objective + b * last.token) : 0.0};
  const int64_t advantages = s.first(args.advantages, n, b);
  const int64_t returns = s.first(args.returns, n, b);

  constexpr int64_t tile = kWarp * kGaeTokens;
  int64_t t = size - tile + lane() * kGaeTokens;  // this lane's first token
  GaeTokens next = gae_load(args, n, b, t, size);
  for (int64_t end = size; end > 0; end -= tile, t -= tile) {
    const GaeTokens tokens = next;
    if (end > tile) next = gae_load(args, n, b, t - tile, size);
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
    // `run` now spans from this lane to the end of the tile; what lies right of the lane:
    const GaeRun after = gae_shuffle_down(run, 1);
    GaeState state = lane() == kWarp - 1 ? carry : gae_apply(after, carry);
    const GaeState whole = gae_apply(run, carry);
    carry.advantage = __shfl_sync(kFullWarp, whole.advantage, 0);
    carry.value = __shfl_sync(kFullWarp, whole.value, 0);
#pragma unroll
    for (int k = kGaeTokens - 1; k >= 0; --k) {
      if (!tokens.inside[k]) continue;
      const bool here = tokens.unmasked[k];
      if (here) {
        state =
            gae_apply(gae_token(tokens.reward[k], tokens.value[k], args.gamma, args.lambda), state);
      }
      store(args.advantages, advantages + t + k, here ? state.advantage : 0);
      store(args.returns, returns + t + k, here ? state.advantage + state.value : 0);
    }
  }
}

}  // namespace pama
