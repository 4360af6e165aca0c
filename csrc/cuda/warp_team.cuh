// The first lanes of a warp, or all, as the team that solves one problem (core/team.h); the other
// lanes have left.
#pragma once

#include "core/team.h"
#include "cuda/device.cuh"

namespace pama {

// `OneEach`: of problems that have no more objectives than the team has lanes.
template <int Lanes, bool OneEach = false>
struct LanesTeam {
  static constexpr bool kOneEach = OneEach;
  static constexpr unsigned kMask = Lanes < kWarp ? (1u << Lanes) - 1 : kFullWarp;

  __device__ static int rank() { return lane(); }
  __device__ static constexpr int size() { return Lanes; }
  // What a lane has as x.
  __device__ double from(double x, int lane) const { return __shfl_sync(kMask, x, lane); }
  __device__ void sync() const { __syncwarp(kMask); }

  __device__ double sum(double x) const {
    return butterfly(x, [](double a, double b) { return a + b; });
  }
  __device__ double largest(double x) const {
    return butterfly(x, [](double a, double b) { return fmax(a, b); });
  }
  __device__ Located smallest(Located x) const {
    return butterfly(x, [](Located a, Located b) { return before(b, a) ? b : a; });
  }
  __device__ bool any(bool x) const { return __any_sync(kMask, x) != 0; }

 private:
  // Every lane joins the same pairs, so all get the same bits.
  template <class T, class Join>
  __device__ static T butterfly(T x, const Join& join) {
#pragma unroll
    for (int bits = 1; bits < Lanes; bits *= 2) x = join(x, across(x, bits));
    return x;
  }
  __device__ static double across(double x, int bits) { return __shfl_xor_sync(kMask, x, bits); }
  __device__ static Located across(Located x, int bits) {
    return {across(x.value, bits), __shfl_xor_sync(kMask, x.index, bits)};
  }
};

using WarpTeam = LanesTeam<kWarp>;

// Teams for up to as many objectives as they have lanes; the sums of eight take fewer steps.
inline constexpr int64_t kFewLanes = 8;
using FewTeam = LanesTeam<kFewLanes, true>;
using WideTeam = LanesTeam<kWarp, true>;

// choose(team) with the team that solves a problem of n objectives soonest.
template <class Choose>
auto with_team(int64_t n, const Choose& choose) {
  if (n <= kFewLanes) return choose(FewTeam{});
  if (n <= kWarp) return choose(WideTeam{});
  return choose(WarpTeam{});
}

}  // namespace pama
