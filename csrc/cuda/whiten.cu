// Whitening. Moments: each thread sums around the first token it meets, threads and then blocks are
// merged in a fixed order; the second launch has a block for each objective. That block takes its
// objective's moments again, alone, where squares left the range of numbers: a launch that as a
// rule finds nothing to do would cost every call. Then the affine map, one more pass.
#include "core/tokens/moments.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/token_chunks.cuh"
#include "cuda/token_packs.cuh"
#include "cuda/warp_team.cuh"
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
  constexpr int words = sizeof(Moments) / sizeof(double), warps = kWhitenBlock / kWarp;
  __shared__ SharedArray<double, warps * words> parts;
  moments = warp_moments(moments);
  if (lane() == 0) memcpy(parts + threadIdx.x / kWarp * words, &moments, sizeof(Moments));
  __syncthreads();
  if (!for_all && threadIdx.x >= kWarp) return {};
  moments = {};
  if (lane() < warps) memcpy(&moments, parts + lane() * words, sizeof(Moments));
  return warp_moments(moments);
}

// What a thread holds of x and the mask in one chunk.
template <Layout kLayout>
struct WhitenTokens {
  int64_t first[kWhitenPacks];
  int inside[kWhitenPacks];
  MaskPack<kLayout> mask[kWhitenPacks];
  TokenPack<kLayout> x[kWhitenPacks];
};

template <Layout kLayout>
__device__ __forceinline__ WhitenTokens<kLayout> whiten_tokens(const Whiten& args, const Part& part,
                                                               int64_t start, int64_t size) {
  const Sequences s = sequences_in<kLayout>(args.sequences);
  const int64_t mask = s.first(args.mask, 0, part.sequence),
                x = s.first(args.x, part.objective, part.sequence);
  WhitenTokens<kLayout> tokens;
#pragma unroll
  for (int p = 0; p < kWhitenPacks; ++p) {
    const int64_t first = start + (p * kWhitenBlock + threadIdx.x) * kPackTokens;
    const int inside = inside_pack(size - first);
    tokens.first[p] = first;
    tokens.inside[p] = inside;
    tokens.mask[p] =
        load_mask_pack<kLayout>(args.mask, mask + first * token_stride<kLayout>(args.mask), inside);
    tokens.x[p] = load_pack_of<kLayout>(args.x, x + first * token_stride<kLayout>(args.x), inside);
  }
  return tokens;
}

// Those of this thread's tokens of a part, in units of `unit`.
template <Layout kLayout>
__device__ __forceinline__ Moments whiten_moments_of(const Whiten& args, const Part& part,
                                                     int64_t chunks, double unit) {
  const int64_t size = sequences_in<kLayout>(args.sequences).size(part.sequence);
  double shift = 0, count = 0, sum = 0, squares = 0;
#pragma unroll 1
  for (int64_t start = part.chunk * kChunk; start < size; start += chunks * kChunk) {
    const auto tokens = whiten_tokens<kLayout>(args, part, start, size);
#pragma unroll
    for (int j = 0; j < kWhitenPacks * kPackTokens; ++j) {
      const int p = j / kPackTokens, k = j % kPackTokens;
      if (!unmasked_at(args.mask, tokens.mask[p], k)) continue;
      const double x = real_at(args.x, tokens.x[p], k) * unit;
      if (count == 0) shift = x;
      count += 1;
      sum += x - shift;
      squares += (x - shift) * (x - shift);
    }
  }
  return moments_about(shift, count, sum, squares);
}

// `partials`: [objective][sequence][chunk].
template <Layout kLayout>
__global__ void __launch_bounds__(kWhitenBlock)
    whiten_moments_kernel(const __grid_constant__ Whiten args, int64_t chunks, Moments* partials) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, chunks);
  const Moments all = block_moments(whiten_moments_of<kLayout>(args, part, chunks, 1), false);
  if (threadIdx.x == 0) {
    partials[(part.objective * s.count + part.sequence) * chunks + part.chunk] = all;
  }
}

// A block for each objective, of which each has `count` partial moments.
__global__ void __launch_bounds__(kWhitenBlock)
    whiten_merge_kernel(const __grid_constant__ Whiten args, int64_t count,
                        const Moments* partials) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const int64_t n = blockIdx.x;
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
      moments = moments_merge(moments, whiten_moments_of<Layout::kAny>(args, {n, 0, b}, 1, unit));
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
  const Sequences s = sequences_in<kLayout>(args.sequences);
  const Part part = block_part(s, chunks);
  const int64_t size = s.size(part.sequence), to = s.first(args.out, part.objective, part.sequence);
  int64_t start = part.chunk * kChunk;
  auto tokens = whiten_tokens<kLayout>(args, part, start, size);
  const Whitening map = whiten_map(args, part.objective);
#pragma unroll 1
  while (start < size) {
#pragma unroll
    for (int p = 0; p < kWhitenPacks; ++p) {
      double x[kPackTokens];
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        const bool here = unmasked_at(args.mask, tokens.mask[p], k);
        x[k] = here ? map(real_at(args.x, tokens.x[p], k)) : 0;
      }
      store_pack_of<kLayout>(args.out, to + tokens.first[p], tokens.inside[p], x);
    }
    start += chunks * kChunk;
    if (start < size) tokens = whiten_tokens<kLayout>(args, part, start, size);
  }
}

// --- launching ----------------------------------------------------------------------------------

void find_moments(const Tensor& on, const Whiten& whiten) {
  const Launcher launch(on);
  const Sequences& s = whiten.sequences;
  const int64_t chunks = chunks_of(s), blocks = s.count * chunks;
  Tensor partials = allocate(on, {s.objectives, blocks, 3}, ScalarType::Double);
  Moments* moments = data_of<Moments>(partials);
  with_layout(layout_of(s, {whiten.x}, whiten.mask), [&](auto layout) {
    launch(whiten_moments_kernel<layout()>, s.objectives * blocks, kWhitenBlock, 0, whiten, chunks,
           moments);
  });
  launch(whiten_merge_kernel, s.objectives, kWhitenBlock, 0, whiten, blocks, moments);
}

void apply(const Tensor& on, const Whiten& whiten) {
  const Launcher launch(on);
  const Sequences& s = whiten.sequences;
  const int64_t chunks = chunks_of(s);
  with_layout(layout_of(s, {whiten.x, whiten.out}, whiten.mask), [&](auto layout) {
    launch(whiten_apply_kernel<layout()>, s.objectives * s.count * chunks, kWhitenBlock, 0, whiten,
           chunks);
  });
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("whiten_moments", TORCH_BOX(&whiten_moments<find_moments>));
  m.impl("whiten_apply", TORCH_BOX(&whiten_apply<apply>));
}

}  // namespace
}  // namespace pama
