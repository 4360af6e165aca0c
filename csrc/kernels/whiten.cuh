// Whitening. Moments: each thread sums around the first token it meets, threads and then blocks are
// merged in a fixed order; the second launch has a block for each objective. That block takes its
// objective's moments again, alone, where squares left the range of numbers: a launch that as a
// rule finds nothing to do would cost every call. Then the affine map, one more pass.
#pragma once

#include "core/moments.h"
#include "kernels/reduce.cuh"
#include "kernels/tokens.cuh"

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

struct MergeMoments {
  __device__ Moments operator()(const Moments& a, const Moments& b) const {
    return moments_merge(a, b);
  }
};

// Those of this thread's tokens of a part, in units of `unit`.
__device__ __forceinline__ Moments whiten_moments_of(const WhitenArgs& args, const Part& part,
                                                     int64_t chunks, double unit) {
  const Sequences& s = args.sequences;
  const int64_t first = s.first(args.x, part.objective, part.sequence);
  double shift = 0, count = 0, sum = 0, squares = 0;
  for_tokens(s, args.mask, part, chunks, [&](const Tokens& tokens) {
    double x[kTokens];
    load_tokens(args.x, first + tokens.first * args.x.token, tokens.unmasked, x);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      const bool here = tokens.unmasked[k];
      if (here && count == 0) shift = x[k] * unit;
      const double deviation = here ? x[k] * unit - shift : 0;
      count += here ? 1 : 0;
      sum += deviation;
      squares += deviation * deviation;
    }
  });
  return moments_about(shift, count, sum, squares);
}

__global__ void __launch_bounds__(kBlock)
    whiten_moments_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const Moments all = block_reduce(whiten_moments_of(args, part, args.chunks, 1), MergeMoments{});
  if (threadIdx.x == 0) {
    args.partials[(part.objective * s.count + part.sequence) * args.chunks + part.chunk] = all;
  }
}

// A block for each objective; `out` is [objective, 3].
__global__ void __launch_bounds__(kBlock)
    whiten_merge_kernel(const __grid_constant__ WhitenArgs args, double* out) {
  const Sequences& s = args.sequences;
  const int64_t n = blockIdx.x, count = s.count * args.chunks;
  Moments moments{};
  const Moments* mine = args.partials + n * count;
  double unit = 1;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < count; i += kBlock) moments = moments_merge(moments, mine[i]);
  moments = block_reduce(moments, MergeMoments{});
  if (!moments_in_range(moments)) {  // in all threads, or in none
    unit = kSmallUnit;
    moments = {};
#pragma unroll 1
    for (int64_t b = 0; b < s.count; ++b) {
      moments = moments_merge(moments, whiten_moments_of(args, {n, 0, b}, 1, unit));
    }
    moments = block_reduce(moments, MergeMoments{});
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
  return whitening(block_reduce(moments, MergeMoments{}), unit, args.eps);
}

// Two blocks are all that is asked of a multiprocessor, else ptxas spills for sm_100.
__global__ void __launch_bounds__(kBlock, 2)
    whiten_apply_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const Whitening map = whiten_map(args, part.objective);
  const int64_t from = s.first(args.x, part.objective, part.sequence);
  const int64_t to = s.first(args.out, part.objective, part.sequence);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    double x[kTokens];
    load_tokens(args.x, from + tokens.first * args.x.token, tokens.unmasked, x);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) x[k] = map(x[k]);
    store_tokens(args.out, to + tokens.first, tokens, x);
  });
}

}  // namespace pama
