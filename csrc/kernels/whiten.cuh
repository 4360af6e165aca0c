// Whitening. Moments: each thread sums around the first token it meets, threads and then blocks are
// merged in a fixed order; the second launch has a block for each objective. Then the affine map,
// one more pass.
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

__global__ void __launch_bounds__(kBlock)
    whiten_moments_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const int64_t first = s.first(args.x, part.objective, part.sequence);
  double shift = 0, count = 0, sum = 0, squares = 0;
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    double x[kTokens];
    load_tokens(args.x, first + tokens.first * args.x.token, tokens.unmasked, x);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      const bool here = tokens.unmasked[k];
      if (here && count == 0) shift = x[k];
      const double deviation = here ? x[k] - shift : 0;
      count += here ? 1 : 0;
      sum += deviation;
      squares += deviation * deviation;
    }
  });
  const Moments all = block_reduce(moments_about(shift, count, sum, squares), MergeMoments{});
  if (threadIdx.x == 0) {
    args.partials[(part.objective * s.count + part.sequence) * args.chunks + part.chunk] = all;
  }
}

// A block for each objective; `out` is [objective, 3].
__global__ void __launch_bounds__(kBlock)
    whiten_merge_kernel(const Moments* partials, int64_t count, double* out) {
  const int64_t n = blockIdx.x;
  Moments moments{};
  const Moments* mine = partials + n * count;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < count; i += kBlock) moments = moments_merge(moments, mine[i]);
  moments = block_reduce(moments, MergeMoments{});
  if (threadIdx.x == 0) {
    out[3 * n] = moments.count;
    out[3 * n + 1] = moments.mean;
    out[3 * n + 2] = moments.squares;
  }
}

// Two blocks are all that is asked of a multiprocessor, else ptxas spills for sm_100.
__global__ void __launch_bounds__(kBlock, 2)
    whiten_apply_kernel(const __grid_constant__ WhitenArgs args) {
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const View& of = args.moments;
  Moments moments{};
#pragma unroll 1
  for (int64_t rank = threadIdx.x; rank < args.ranks; rank += kBlock) {
    const int64_t at = rank * of.objective + part.objective * of.sequence;
    const Moments one{load(of, at), load(of, at + of.token), load(of, at + 2 * of.token)};
    moments = moments_merge(moments, one);
  }
  moments = block_reduce(moments, MergeMoments{});
  const double mean = moments.mean, scale = moments_scale(moments, args.eps);
  const int64_t from = s.first(args.x, part.objective, part.sequence);
  const int64_t to = s.first(args.out, part.objective, part.sequence);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    double x[kTokens];
    load_tokens(args.x, from + tokens.first * args.x.token, tokens.unmasked, x);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) x[k] = (x[k] - mean) * scale;
    store_tokens(args.out, to + tokens.first, tokens, x);
  });
}

}  // namespace pama
