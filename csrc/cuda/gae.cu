// Generalised advantage estimation, a block for each (objective, sequence), right to left in chunks
// of two packs of four tokens a thread: at T = 1024 one chunk of 128 threads. A thread's packs are
// a half of the chunk apart, so that a warp's accesses are whole lines: eight tokens in a row would
// write every sector of memory in two goes (seen on an H200, where that cost 5 of 12 µs). Each
// thread joins a pack into one map; the lanes of a warp scan their maps in five shuffle steps; what
// comes from the right is taken through the maps of the warps there, from shared memory; and each
// thread goes through its tokens from what this hands it.
#include "core/tokens/gae.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/token_packs.cuh"
#include "tensors/gae.h"

namespace pama {
namespace {

constexpr int kGaeBlock = 128;  // at most
constexpr int kGaePacks = 2;
constexpr int kGaeTokens = kGaePacks * kPackTokens;  // of each thread and chunk

// At T = 1024 eight blocks a multiprocessor are one wave of 1,024 sequences.
template <Layout kLayout>
__global__ void __launch_bounds__(kGaeBlock, kLayout == Layout::kAny      ? 4
                                             : kLayout == Layout::kFloats ? 5
                                                                          : 8)
    gae_kernel(const __grid_constant__ Gae args) {
  wait_for_inputs();
  // Neighbouring blocks share a sequence: in a [B, T, N] layout they then share cache lines.
  const unsigned objectives = static_cast<unsigned>(args.sequences.objectives);
  const int64_t n = blockIdx.x % objectives, b = blockIdx.x / objectives;
  const PackedSequence<kLayout> sequence(args.sequences, b);
  const View& last = args.last_values;
  double carry = last.data ? load(last, n * last.objective + b * last.sequence) : 0;
  // Of each warp, two sets by turns: so a chunk's reads need no barrier before the next one's
  // writes.
  GaeRun* shared = reinterpret_cast<GaeRun*>(dynamic_shared());
  const int warps = static_cast<int>(blockDim.x) / kWarp,
            mine = static_cast<int>(threadIdx.x) / kWarp;

  const int64_t size = sequence.size, chunk = static_cast<int64_t>(blockDim.x) * kGaeTokens;
  int set = 0;
  // Chunks begin at multiples of their size, so that packs of tokens are aligned where rows are.
#pragma unroll 1
  for (int64_t start = size > 0 ? (size - 1) / chunk * chunk : -1; start >= 0;
       start -= chunk, set ^= 1) {
    const auto first_of = [&](int p) {
      return start + (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * kPackTokens;
    };
    MaskPack<kLayout> mask[kGaePacks];
    TokenPack<kLayout> reward[kGaePacks], value[kGaePacks];
#pragma unroll
    for (int p = 0; p < kGaePacks; ++p) {
      mask[p] = sequence.load_mask(args.mask, first_of(p));
      reward[p] = sequence.load(args.rewards, n, first_of(p));
      value[p] = sequence.load(args.values, n, first_of(p));
    }
    GaeRun run[kGaePacks];
#pragma unroll
    for (int p = 0; p < kGaePacks; ++p) {
#pragma unroll
      for (int k = kPackTokens - 1; k >= 0; --k) {
        if (!unmasked_at(args.mask, mask[p], k)) continue;
        run[p] = gae_join(gae_token(real_of(args.rewards, reward[p].at[k]),
                                    real_of(args.values, value[p].at[k]), args.gamma, args.lambda),
                          run[p]);
      }
    }
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
#pragma unroll
      for (int p = 0; p < kGaePacks; ++p) {
        const GaeRun right = shuffle_down(run[p], distance);
        if (lane() + distance < kWarp) run[p] = gae_join(run[p], right);
      }
    }
    // A run now spans from this lane to the end of the warp; what lies right of the lane:
    GaeRun after[kGaePacks];
    GaeRun* runs = shared + set * kGaePacks * warps;
#pragma unroll
    for (int p = 0; p < kGaePacks; ++p) {
      after[p] = shuffle_down(run[p], 1);
      if (lane() == 0) runs[p * warps + mine] = run[p];
    }
    __syncthreads();
#pragma unroll
    for (int p = kGaePacks - 1; p >= 0; --p) {
      double x = carry;
#pragma unroll 1
      for (int w = warps - 1; w >= 0; --w) {
        if (w == mine) x = carry;
        carry = runs[p * warps + w](carry);
      }
      if (lane() < kWarp - 1) x = after[p](x);
      double advantage[kPackTokens] = {}, sum[kPackTokens] = {};
#pragma unroll
      for (int k = kPackTokens - 1; k >= 0; --k) {
        if (!unmasked_at(args.mask, mask[p], k)) continue;
        const double v = real_of(args.values, value[p].at[k]);
        advantage[k] = real_of(args.rewards, reward[p].at[k]) - v + args.gamma * x;
        sum[k] = advantage[k] + v;
        x = v + args.lambda * advantage[k];
      }
      sequence.store(args.advantages, n, first_of(p), advantage);
      sequence.store(args.returns, n, first_of(p), sum);
    }
  }
}

// --- launching ----------------------------------------------------------------------------------

void run(const Tensor& on, const Gae& gae) {
  const Sequences& s = gae.sequences;
  if (s.total == 0) return;  // of any number of objectives
  const Launcher launch(on);
  // As many threads as a sequence needs for one chunk, of which there are more where it is longer.
  const int64_t mean = s.offsets ? ceil_div(s.total, std::max<int64_t>(s.count, 1)) : s.length;
  const int64_t warps =
      std::clamp<int64_t>(ceil_div(mean, kWarp * kGaeTokens), 1, kGaeBlock / kWarp);
  const Layout layout =
      layout_of(s, {gae.rewards, gae.values, gae.advantages, gae.returns}, gae.mask);
  with_layout(layout, [&](auto constant) {
    launch(gae_kernel<constant()>, s.objectives * s.count, static_cast<int>(warps * kWarp),
           2 * kGaePacks * warps * static_cast<int64_t>(sizeof(GaeRun)), gae);
  });
}

PAMA_CUDA_LIBRARY(m) { m.impl("gae", TORCH_BOX(&gae<run>)); }

}  // namespace
}  // namespace pama
