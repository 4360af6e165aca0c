// Whitening. Moments: each thread sums around the first token it meets, threads and then blocks are
// merged in a fixed order; the second launch has a block for each objective. That block takes its
// objective's moments again, alone, where squares left the range of numbers: a launch that as a
// rule finds nothing to do would cost every call. Then the affine map, one more pass.
#pragma once

#include "core/moments.h"
#include "kernels/raw_tokens.cuh"
#include "kernels/reduce.cuh"
#include "kernels/tokens.cuh"
#include "kernels/warp_team.cuh"

namespace pama {

struct WhitenArgs {
  Sequences sequences;
  int64_t chunks;
  View x, mask, out;  // `out` of the map
  Moments* partials;  // [objective][sequence][chunk]
  View moments;       // [rank, objective, 3], those to be merged
  int64_t ranks;
  double eps;
};

// The moments of all lanes' sets together, in every lane, at one division where merging two at a
// time takes five. The means are summed as differences from one of them: so the mean of equal
// numbers is that number.
__device__ __forceinline__ Moments warp_moments(const Moments& mine) {
  const WarpTeam team;
  const int any = team.smallest({mine.count > 0 ? 0.0 : 1.0, lane()}).index;
  const double shift = __shfl_sync(kFullWarp, mine.mean, any);
  const double count = team.sum(mine.count);
  const double apart = mine.count > 0 ? mine.mean - shift : 0;
  const double mean = shift + team.sum(mine.count * apart) / (count > 1 ? count : 1);
  const double distance = mine.count > 0 ? mine.mean - mean : 0;
  return {count, mean, team.sum(mine.squares + mine.count * distance * distance)};
}

// The same of all threads of a block. Between two calls there must be a barrier.
__device__ __forceinline__ Moments block_moments(Moments moments) {
  constexpr int words = sizeof(Moments) / sizeof(double);
  __shared__ SharedArray<double, kBlock / kWarp * words> parts;
  moments = warp_moments(moments);
  if (lane() == 0) memcpy(parts + threadIdx.x / kWarp * words, &moments, sizeof(Moments));
  __syncthreads();
  moments = {};
  if (lane() < kBlock / kWarp) memcpy(&moments, parts + lane() * words, sizeof(Moments));
  return warp_moments(moments);
}

// What a thread holds of x and the mask in one chunk.
template <Layout kLayout>
struct WhitenPack {
  int64_t first;
  int inside;
  RawMask<kLayout> mask;
  RawTokens<kLayout> x;
};

template <Layout kLayout>
__device__ __forceinline__ WhitenPack<kLayout> whiten_pack(const WhitenArgs& args, const Part& part,
                                                           int64_t start, int64_t size) {
  const Sequences s = sequences_in<kLayout>(args.sequences);
  WhitenPack<kLayout> pack;
  pack.first = start + threadIdx.x * kRawTokens;
  pack.inside = raw_inside(size - pack.first);
  const int64_t mask = s.first(args.mask, 0, part.sequence) +
                       pack.first * token_stride<kLayout>(args.mask),
                x = s.first(args.x, part.objective, part.sequence) +
                    pack.first * token_stride<kLayout>(args.x);
  pack.mask = load_mask<kLayout>(args.mask, mask, pack.inside);
  pack.x = load_raw<kLayout>(args.x, x, pack.inside);
  return pack;
}

// Those of this thread's tokens of a part, in units of `unit`.
template <Layout kLayout>
__device__ __forceinline__ Moments whiten_moments_of(const WhitenArgs& args, const Part& part,
                                                     int64_t chunks, double unit) {
  const int64_t size = sequences_in<kLayout>(args.sequences).size(part.sequence);
  double shift = 0, count = 0, sum = 0, squares = 0;
#pragma unroll 1
  for (int64_t start = part.chunk * kChunk; start < size; start += chunks * kChunk) {
    const auto pack = whiten_pack<kLayout>(args, part, start, size);
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) {
      if (!raw_unmasked(args.mask, pack.mask, k)) continue;
      const double x = raw_real(args.x, pack.x, k) * unit;
      if (count == 0) shift = x;
      count += 1;
      sum += x - shift;
      squares += (x - shift) * (x - shift);
    }
  }
  return moments_about(shift, count, sum, squares);
}

template <Layout kLayout>
__global__ void __launch_bounds__(kBlock)
    whiten_moments_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const Moments all = block_moments(whiten_moments_of<kLayout>(args, part, args.chunks, 1));
  if (threadIdx.x == 0) {
    args.partials[(part.objective * s.count + part.sequence) * args.chunks + part.chunk] = all;
  }
}

// A block for each objective; `out` is [objective, 3].
__global__ void __launch_bounds__(kBlock)
    whiten_merge_kernel(const __grid_constant__ WhitenArgs args, double* out) {
  const Sequences& s = args.sequences;
  const int64_t n = blockIdx.x, count = s.count * args.chunks;
  const Moments* mine = args.partials + n * count;
  Moments moments = threadIdx.x < count ? mine[threadIdx.x] : Moments{};
  double unit = 1;
#pragma unroll 1
  for (int64_t i = threadIdx.x + kBlock; i < count; i += kBlock) {
    moments = moments_merge(moments, mine[i]);
  }
  moments = block_moments(moments);
  if (!moments_in_range(moments)) {  // in all threads, or in none
    unit = kSmallUnit;
    moments = {};
#pragma unroll 1
    for (int64_t b = 0; b < s.count; ++b) {
      moments = moments_merge(moments, whiten_moments_of<Layout::kAny>(args, {n, 0, b}, 1, unit));
    }
    __syncthreads();  // the parts have been read
    moments = block_moments(moments);
  }
  if (threadIdx.x == 0) {
    const MomentsRow row = moments_row(moments, unit);
    out[3 * n] = row.count;
    out[3 * n + 1] = row.mean;
    out[3 * n + 2] = row.deviation;
  }
}

__device__ __forceinline__ MomentsRow whiten_row(const WhitenArgs& args, int64_t n, int64_t rank) {
  const View& of = args.moments;
  const int64_t at = rank * of.objective + n * of.sequence;
  return {load(of, at), load(of, at + of.token), load(of, at + 2 * of.token)};
}

// The map of one objective, by all threads of a block; each reads the row where there is but one.
__device__ __forceinline__ Whitening whiten_map(const WhitenArgs& args, int64_t n) {
  if (args.ranks == 1) {
    const MomentsRow row = whiten_row(args, n, 0);
    const double unit = moments_unit(moments_largest(row));
    return whitening(moments_of(row, unit), unit, args.eps);
  }
  double largest = 0;
#pragma unroll 1
  for (int64_t rank = threadIdx.x; rank < args.ranks; rank += kBlock) {
    largest = fmax(largest, moments_largest(whiten_row(args, n, rank)));
  }
  largest = block_reduce(largest, [](double a, double b) { return fmax(a, b); });
  const double unit = moments_unit(largest);
  Moments moments{};
#pragma unroll 1
  for (int64_t rank = threadIdx.x; rank < args.ranks; rank += kBlock) {
    moments = moments_merge(moments, moments_of(whiten_row(args, n, rank), unit));
  }
  return whitening(block_moments(moments), unit, args.eps);
}

// The first chunk is under way while the map is found.
template <Layout kLayout>
__global__ void __launch_bounds__(kBlock, kLayout == Layout::kAny ? 2 : 4)
    whiten_apply_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences s = sequences_in<kLayout>(args.sequences);
  const Part part = block_part(s, args.chunks);
  const int64_t size = s.size(part.sequence), to = s.first(args.out, part.objective, part.sequence);
  int64_t start = part.chunk * kChunk;
  auto pack = whiten_pack<kLayout>(args, part, start, size);
  const Whitening map = whiten_map(args, part.objective);
#pragma unroll 1
  while (start < size) {
    double x[kRawTokens];
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) {
      x[k] = raw_unmasked(args.mask, pack.mask, k) ? map(raw_real(args.x, pack.x, k)) : 0;
    }
    store_raw<kLayout>(args.out, to + pack.first, pack.inside, x);
    start += args.chunks * kChunk;
    pack = whiten_pack<kLayout>(args, part, start, size);
  }
}

}  // namespace pama
