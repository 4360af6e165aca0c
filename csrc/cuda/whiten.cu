// Whitening. Moments: each thread sums around the first token it meets, threads and then blocks are
// merged in a fixed order; the second launch has a block for each objective. That block takes its
// objective's moments again, alone, where squares left the range of numbers: a launch that as a
// rule finds nothing to do would cost every call. Then the affine map, one more pass.
#include "core/tokens/moments.h"
#include "cuda/reduce.cuh"
#include "cuda/token_chunks.cuh"
#include "cuda/token_packs.cuh"
#include "tensors/whiten.h"

namespace pama {
namespace {

// The moments of all lanes' sets together, in every lane, at one division where merging two at a
// time takes five. The means are summed as differences from one of them: so the mean of equal
// numbers is that number.
__device__ __forceinline__ Moments warp_moments(const Moments& mine) {
  const WarpTeam team;
  const unsigned some = __ballot_sync(kFullWarp, mine.count > 0);
  const double shift = team.from(mine.mean, some ? __ffs(some) - 1 : 0);
  const double count = team.sum(mine.count);
  const double apart = mine.count > 0 ? mine.mean - shift : 0;
  const double mean = shift + team.sum(mine.count * apart) / (count > 1 ? count : 1);
  const double distance = mine.count > 0 ? mine.mean - mean : 0;
  return {count, mean, team.sum(mine.squares + mine.count * distance * distance)};
}

constexpr int kWhitenBlock = 128;
constexpr int kWhitenPacks = 2;  // of a thread in a chunk
static_assert(kWhitenBlock * kWhitenPacks * kPackTokens == kChunk);

// The same of all threads of a block, for its first warp alone if that is enough. Between two calls
// there must be a barrier.
__device__ __forceinline__ Moments block_moments(Moments moments, bool for_all) {
  constexpr int warps = kWhitenBlock / kWarp;
  __shared__ SharedArray<Moments, warps> parts;
  moments = warp_moments(moments);
  if (lane() == 0) parts[threadIdx.x / kWarp] = moments;
  __syncthreads();
  if (!for_all && threadIdx.x >= kWarp) return {};
  return warp_moments(lane() < warps ? parts[lane()] : Moments{});
}

// What a thread holds of x and the mask in the chunk that begins with token `start`.
template <Layout kLayout>
struct WhitenTokens {
  int64_t start;
  MaskPack<kLayout> mask[kWhitenPacks];
  TokenPack<kLayout> x[kWhitenPacks];

  __device__ __forceinline__ WhitenTokens(const Whiten& args,
                                          const PackedSequence<kLayout>& sequence,
                                          int64_t objective, int64_t start)
      : start(start) {
#pragma unroll
    for (int p = 0; p < kWhitenPacks; ++p) {
      mask[p] = sequence.load_mask(args.mask, first(p));
      x[p] = sequence.load(args.x, objective, first(p));
    }
  }

  __device__ __forceinline__ int64_t first(int p) const {
    return start + (p * kWhitenBlock + threadIdx.x) * kPackTokens;
  }
};

// Those of this thread's tokens of a part, in units of `unit`.
template <Layout kLayout>
__device__ __forceinline__ Moments whiten_moments_of(const Whiten& args, const Part& part,
                                                     double unit) {
  const PackedSequence<kLayout> sequence(part.sequences, part.sequence);
  double shift = 0, count = 0, sum = 0, squares = 0;
#pragma unroll 1
  for (int64_t start = part.chunk * kChunk; start < sequence.size; start += part.chunks * kChunk) {
    const WhitenTokens<kLayout> tokens(args, sequence, part.objective, start);
#pragma unroll
    for (int j = 0; j < kWhitenPacks * kPackTokens; ++j) {
      const int p = j / kPackTokens, k = j % kPackTokens;
      if (!unmasked_at(args.mask, tokens.mask[p], k)) continue;
      const double x = real_of(args.x, tokens.x[p].at[k]) * unit;
      if (count == 0) shift = x;
      count += 1;
      sum += x - shift;
      squares += (x - shift) * (x - shift);
    }
  }
  return moments_about(shift, count, sum, squares);
}

template <Layout kLayout>
__global__ void __launch_bounds__(kWhitenBlock)
    whiten_moments_kernel(const __grid_constant__ Whiten args, int64_t chunks, Moments* partials) {
  wait_for_inputs();
  const Part part = block_part(args.sequences, chunks);
  const Moments all = block_moments(whiten_moments_of<kLayout>(args, part, 1), false);
  if (threadIdx.x == 0) partials[part.index()] = all;
}

// A block for each objective.
__global__ void __launch_bounds__(kWhitenBlock)
    whiten_merge_kernel(const __grid_constant__ Whiten args, int64_t chunks,
                        const Moments* partials) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const int64_t n = blockIdx.x, count = s.count * chunks;
  const Moments* mine = partials + n * count;
  Moments moments = threadIdx.x < count ? mine[threadIdx.x] : Moments{};
  double unit = 1;
#pragma unroll 1
  for (int64_t i = threadIdx.x + kWhitenBlock; i < count; i += kWhitenBlock) {
    moments = moments_merge(moments, mine[i]);
  }
  moments = block_moments(moments, true);
  if (!moments_in_range(moments)) {  // in all threads, or in none
    unit = kSmallUnit;
    moments = {};
#pragma unroll 1
    for (int64_t b = 0; b < s.count; ++b) {
      moments =
          moments_merge(moments, whiten_moments_of<Layout::kAny>(args, {s, 1, n, 0, b}, unit));
    }
    __syncthreads();  // the parts have been read
    moments = block_moments(moments, true);
  }
  if (threadIdx.x == 0) store_moments(args.moments, n, moments_row(moments, unit));
}

// The map of one objective, by all threads of a block; each reads the row where there is but one.
__device__ __forceinline__ Whitening whiten_map(const Whiten& args, int64_t n) {
  if (args.ranks == 1) {
    const MomentsRow row = moments_row_at(args.moments, 0, n);
    const double unit = moments_unit(moments_largest(row));
    return whitening(moments_of(row, unit), unit, args.eps);
  }
  double largest = 0;
#pragma unroll 1
  for (int64_t rank = threadIdx.x; rank < args.ranks; rank += kWhitenBlock) {
    largest = fmax(largest, moments_largest(moments_row_at(args.moments, rank, n)));
  }
  largest = block_reduce(largest, [](double a, double b) { return fmax(a, b); });
  const double unit = moments_unit(largest);
  Moments moments{};
#pragma unroll 1
  for (int64_t rank = threadIdx.x; rank < args.ranks; rank += kWhitenBlock) {
    moments = moments_merge(moments, moments_of(moments_row_at(args.moments, rank, n), unit));
  }
  return whitening(block_moments(moments, true), unit, args.eps);
}

// The first chunk is under way while the map is found.
template <Layout kLayout>
__global__ void __launch_bounds__(kWhitenBlock, kLayout == Layout::kAny ? 4 : 8)
    whiten_apply_kernel(const __grid_constant__ Whiten args, int64_t chunks) {
  wait_for_inputs();
  const Part part = block_part(args.sequences, chunks);
  const PackedSequence<kLayout> sequence(args.sequences, part.sequence);
  int64_t start = part.chunk * kChunk;
  WhitenTokens<kLayout> tokens(args, sequence, part.objective, start);
  const Whitening map = whiten_map(args, part.objective);
#pragma unroll 1
  while (start < sequence.size) {
#pragma unroll
    for (int p = 0; p < kWhitenPacks; ++p) {
      double x[kPackTokens];
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        const bool here = unmasked_at(args.mask, tokens.mask[p], k);
        x[k] = here ? map(real_of(args.x, tokens.x[p].at[k])) : 0;
      }
      sequence.store(args.out, part.objective, tokens.first(p), x);
    }
    start += chunks * kChunk;
    if (start < sequence.size) tokens = {args, sequence, part.objective, start};
  }
}

// --- launching ----------------------------------------------------------------------------------

void find_moments(const Tensor& on, const Whiten& whiten) {
  const Sequences& s = whiten.sequences;
  with_layout(layout_of(s, {whiten.x}, whiten.mask), [&](auto layout) {
    launch_sums(on, kWhitenBlock, s, whiten_moments_kernel<layout()>, whiten, whiten_merge_kernel,
                whiten);
  });
}

void apply(const Tensor& on, const Whiten& whiten) {
  const Sequences& s = whiten.sequences;
  with_layout(layout_of(s, {whiten.x, whiten.out}, whiten.mask), [&](auto layout) {
    launch_parts(on, kWhitenBlock, s, whiten_apply_kernel<layout()>, whiten);
  });
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("whiten_moments", TORCH_BOX(&whiten_moments<find_moments>));
  m.impl("whiten_apply", TORCH_BOX(&whiten_apply<apply>));
}

}  // namespace
}  // namespace pama
