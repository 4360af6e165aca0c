// Generalised advantage estimation, a block for each (objective, sequence), right to left in tiles
// of eight tokens a thread: at T = 1024 one tile of 128 threads. Each thread joins its eight tokens
// into one map; the lanes of a warp scan their maps in five shuffle steps; each warp takes what
// comes from the right through the maps of the warps there, from shared memory; and each thread
// goes through its tokens from what this hands it.
#pragma once

#include "core/gae.h"
#include "core/view.h"
#include "kernels/device.cuh"
#include "kernels/raw_tokens.cuh"
#include "kernels/reduce.cuh"

namespace pama {

struct GaeArgs {
  Sequences sequences;
  View rewards, values, mask, last_values, advantages, returns;
  double gamma, lambda;
};

inline constexpr int kGaeBlock = 128;  // at most
inline constexpr int kGaePacks = 2;
inline constexpr int kGaeTokens = kGaePacks * kRawTokens;  // of each thread and tile

// At T = 1024 eight blocks a multiprocessor are one wave of 1,024 sequences.
template <Layout kLayout>
__global__ void __launch_bounds__(kGaeBlock, kLayout == Layout::kAny      ? 4
                                             : kLayout == Layout::kFloats ? 6
                                                                          : 8)
    gae_kernel(const __grid_constant__ GaeArgs args) {
  const Sequences s = sequences_in<kLayout>(args.sequences);
  // Neighbouring blocks share a sequence: in a [B, T, N] layout they then share cache lines.
  const unsigned objectives = static_cast<unsigned>(s.objectives);
  const int64_t n = blockIdx.x % objectives, b = blockIdx.x / objectives;
  const int64_t size = s.size(b);
  const View& last = args.last_values;
  double carry = last.data ? load(last, n * last.objective + b * last.token) : 0;
  const int64_t masks = s.first(args.mask, 0, b), rewards = s.first(args.rewards, n, b),
                values = s.first(args.values, n, b), advantages = s.first(args.advantages, n, b),
                returns = s.first(args.returns, n, b);
  constexpr int words = sizeof(GaeRun) / sizeof(double);
  // Of each warp, two sets by turns: so a tile's reads need no barrier before the next one's
  // writes.
  double* shared = dynamic_shared();
  const int warps = static_cast<int>(blockDim.x) / kWarp,
            mine = static_cast<int>(threadIdx.x) / kWarp;

  const int64_t tile = static_cast<int64_t>(blockDim.x) * kGaeTokens;
  int set = 0;
  // Tiles begin at multiples of their size, so that packs of tokens are aligned where rows are.
#pragma unroll 1
  for (int64_t start = size > 0 ? (size - 1) / tile * tile : -1; start >= 0;
       start -= tile, set ^= 1) {
    const int64_t t = start + static_cast<int64_t>(threadIdx.x) * kGaeTokens;
    RawMask<kLayout> mask[kGaePacks];
    RawTokens<kLayout> reward[kGaePacks], value[kGaePacks];
    int inside[kGaePacks];
#pragma unroll
    for (int p = 0; p < kGaePacks; ++p) {
      const int64_t first = t + p * kRawTokens;
      inside[p] = raw_inside(size - first);
      mask[p] = load_mask<kLayout>(args.mask, masks + first * token_stride<kLayout>(args.mask),
                                   inside[p]);
      reward[p] = load_raw<kLayout>(
          args.rewards, rewards + first * token_stride<kLayout>(args.rewards), inside[p]);
      value[p] = load_raw<kLayout>(args.values, values + first * token_stride<kLayout>(args.values),
                                   inside[p]);
    }
    const auto unmasked_at = [&](int k) {
      return raw_unmasked(args.mask, mask[k / kRawTokens], k % kRawTokens);
    };
    const auto reward_at = [&](int k) {
      return raw_real(args.rewards, reward[k / kRawTokens], k % kRawTokens);
    };
    const auto value_at = [&](int k) {
      return raw_real(args.values, value[k / kRawTokens], k % kRawTokens);
    };
    GaeRun run;
#pragma unroll
    for (int k = kGaeTokens - 1; k >= 0; --k) {
      if (!unmasked_at(k)) continue;
      run = gae_join(gae_token(reward_at(k), value_at(k), args.gamma, args.lambda), run);
    }
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const GaeRun right = shuffle_down(run, distance);
      if (lane() + distance < kWarp) run = gae_join(run, right);
    }
    // `run` now spans from this lane to the end of the warp; what lies right of the lane:
    const GaeRun after = shuffle_down(run, 1);
    double* runs = shared + set * warps * words;
    if (lane() == 0) memcpy(runs + mine * words, &run, sizeof(run));
    __syncthreads();
    double x = carry;
#pragma unroll 1
    for (int w = warps - 1; w >= 0; --w) {
      if (w == mine) x = carry;
      GaeRun whole;
      memcpy(static_cast<void*>(&whole), runs + w * words, sizeof(whole));
      carry = whole(carry);
    }
    if (lane() < kWarp - 1) x = after(x);
#pragma unroll
    for (int p = kGaePacks - 1; p >= 0; --p) {
      double advantage[kRawTokens] = {}, sum[kRawTokens] = {};
#pragma unroll
      for (int j = kRawTokens - 1; j >= 0; --j) {
        const int k = p * kRawTokens + j;
        if (!unmasked_at(k)) continue;
        const double v = value_at(k);
        advantage[j] = reward_at(k) - v + args.gamma * x;
        sum[j] = advantage[j] + v;
        x = v + args.lambda * advantage[j];
      }
      const int64_t first = t + p * kRawTokens;
      store_raw<kLayout>(args.advantages, advantages + first, inside[p], advantage);
      store_raw<kLayout>(args.returns, returns + first, inside[p], sum);
    }
  }
}

}  // namespace pama
