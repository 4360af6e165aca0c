// What PAMA needs to know of a whole batch: partial statistics of each sequence, then their sums.
#include "cuda/pama_advantages.cuh"

namespace pama {
namespace {

constexpr int kStatisticsBlock = 128;

__device__ __forceinline__ double pama_log_ratio(const PamaInputs& args, int64_t b, int64_t t) {
  const View& ratio = args.log_ratio;
  return ratio.data ? load(ratio, args.sequences.first(ratio, 0, b) + t * ratio.token) : 0.0;
}

// Whether an objective has no part in a sequence.
__device__ __forceinline__ bool pama_dropped(const PamaInputs& args, int64_t n, int64_t b) {
  return args.by_sequence && !(preferred(args.preference, n, b) > 0);
}

// A of an unmasked token, after Noon.
__device__ __forceinline__ double pama_noon(const PamaInputs& args, int64_t n, int64_t b,
                                            int64_t t) {
  const View& a = args.advantages;
  return noon(args.rule, load(a, args.sequences.first(a, n, b) + t * a.token));
}

__device__ __forceinline__ bool pama_unmasked(const PamaInputs& args, int64_t b, int64_t t) {
  return unmasked(args.mask, args.sequences.first(args.mask, 0, b) + t * args.mask.token);
}

// The statistics of one sequence, by a block. Tiles of I(A), [n][tile], are staged in shared
// memory; then each warp sums the entries that it owns over the tile, and adds them to its partial
// result.
__global__ void __launch_bounds__(128, 1)
    pama_partial_kernel(const __grid_constant__ PamaInputs args, int tile, double* partial) {
  wait_for_inputs();
  const int64_t n = args.sequences.objectives, b = blockIdx.x, size = args.sequences.size(b);
  const int64_t entries = gathered_size(n, args.reduction, args.by_sequence);
  const int64_t own = statistics_size(n, args.reduction);
  double* parts = dynamic_shared();
  double* mine = partial + b * entries;
  for (int64_t k = threadIdx.x; k < entries; k += blockDim.x) mine[k] = 0;
  for (int64_t start = 0; start < size; start += tile) {
    const int64_t length = size - start < tile ? size - start : tile;
    int unmasked_here = 0;
    __syncthreads();  // the last tile has been read, and `mine` is 0
    for (int64_t j = threadIdx.x; j < length; j += blockDim.x) {
      const bool here = pama_unmasked(args, b, start + j);
      unmasked_here += here;
      const double ratio = here ? pama_log_ratio(args, b, start + j) : 0;
      for (int64_t i = 0; i < n; ++i) {
        parts[i * tile + j] = here && !pama_dropped(args, i, b)
                                  ? active_part(args.rule, pama_noon(args, i, b, start + j), ratio)
                                  : 0;
      }
    }
    const double count =
        block_reduce(static_cast<double>(unmasked_here), [](double x, double y) { return x + y; });
    for (int64_t k = threadIdx.x / kWarp; k < entries; k += warps_per_block()) {
      const int64_t entry = k - n, i = k < n                                ? k
                                       : args.reduction == Reduction::kGram ? entry / n
                                                                            : entry - 1;
      const int64_t other = entry % n;
      const bool gram = k >= n && args.reduction == Reduction::kGram;
      if (k >= own) {
        if (lane() == 0 && !pama_dropped(args, k - own, b)) mine[k] += count;
        continue;
      }
      if (gram && other < i) continue;  // the finishing kernel mirrors it
      if (k == n && !gram) {
        if (lane() == 0) mine[k] += count;
        continue;
      }
      double sum = 0;
      for (int64_t j = lane(); j < length; j += kWarp) {
        const double x = parts[i * tile + j];
        sum += k < n ? (x != 0 ? 1.0 : 0.0) : gram ? x * parts[other * tile + j] : x;
      }
      sum = warp_reduce(sum, [](double x, double y) { return x + y; });
      if (lane() == 0) mine[k] += sum;
    }
  }
}

// Where a row of the upper triangle of an N x N matrix begins, less its first column.
template <int N>
PAMA_INLINE constexpr int pama_row_of(int i) {
  return i * N - i * (i + 1) / 2;
}

constexpr int kFewBlock = 256;

// For how many objectives the kernel of n is made, and the sums of a thread.
constexpr int pama_few(int64_t n) { return n <= 2 ? 2 : n <= 4 ? 4 : kFewObjectives; }
PAMA_HD constexpr int pama_few_sums(int objectives, bool gram) {
  return gram ? objectives * (objectives + 1) / 2 : objectives;
}

// The same for up to N objectives, whose sums a thread holds in registers: four tokens a thread,
// all loads of a tile in flight at once, and one reduction at the end.
template <int N, bool kGram, Layout kLayout>
__global__ void __launch_bounds__(kFewBlock, 1)
    pama_few_partial_kernel(const __grid_constant__ PamaInputs args, double* partial) {
  wait_for_inputs();
  constexpr int sums = pama_few_sums(N, kGram);
  const Sequences s = sequences_in<kLayout>(args.sequences);
  const int n = static_cast<int>(s.objectives);
  const int64_t b = blockIdx.x, size = s.size(b);
  unsigned taken = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < n && !pama_dropped(args, i, b)) taken |= 1u << i;
  }
  const auto raw = [&](const View& view, int64_t first, int64_t t, int inside) {
    return load_pack_of<kLayout>(view, first + t * token_stride<kLayout>(view), inside);
  };
  const View& ratios = args.log_ratio;
  const int64_t mask_first = s.first(args.mask, 0, b), ratio_first = s.first(ratios, 0, b);
  double sum[sums] = {};
  unsigned nonzero = 0;
  int count = 0;
#pragma unroll 1
  for (int64_t t = static_cast<int64_t>(threadIdx.x) * kPackTokens; t < size;
       t += kFewBlock * kPackTokens) {
    const int inside = inside_pack(size - t);
    const auto mask = load_mask_pack<kLayout>(
        args.mask, mask_first + t * token_stride<kLayout>(args.mask), inside);
    const auto ratio =
        load_if_given<kLayout>(ratios, ratio_first + t * token_stride<kLayout>(ratios), inside);
    TokenPack<kLayout> advantage[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (taken >> i & 1) {
        advantage[i] = raw(args.advantages, s.first(args.advantages, i, b), t, inside);
      }
    }
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) {
      if (!unmasked_at(args.mask, mask, k)) continue;
      const double log_ratio = ratios.data ? real_at(ratios, ratio, k) : 0;
      double part[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        part[i] = 0;
        if (!(taken >> i & 1)) continue;
        const double a = noon(args.rule, real_at(args.advantages, advantage[i], k));
        part[i] = active_part(args.rule, a, log_ratio);
        if (part[i] != 0) nonzero |= 1u << i;
      }
      ++count;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if constexpr (kGram) {
#pragma unroll
          for (int j = i; j < N; ++j) sum[pama_row_of<N>(i) + j] += part[i] * part[j];
        } else {
          sum[i] += part[i];
        }
      }
    }
  }
  // [warp][entry]: of integers, then the sums.
  double* shared = dynamic_shared();
  constexpr int entries = sums + 2, warps = kFewBlock / kWarp;
  double* mine = shared + threadIdx.x / kWarp * entries;
  const auto add = [](double x, double y) { return x + y; };
  // `token` and `sequence` want the flags alone.
  if (args.reduction == Reduction::kGram || args.reduction == Reduction::kBatch) {
#pragma unroll
    for (int e = 0; e < sums; ++e) {
      const double total = warp_reduce(sum[e], add);
      if (lane() == 0) mine[e] = total;
    }
    const double tokens = warp_reduce(static_cast<double>(count), add);
    if (lane() == 0) mine[sums] = tokens;
  }
  unsigned found = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (__any_sync(kFullWarp, nonzero >> i & 1)) found |= 1u << i;
  }
  if (lane() == 0) mine[sums + 1] = found;
  __syncthreads();
  double* to = partial + b * gathered_size(n, args.reduction, args.by_sequence);
  const auto total = [&](int e) {
    double all = 0;
    for (int w = 0; w < warps; ++w) all += shared[w * entries + e];
    return all;
  };
  const int e = static_cast<int>(threadIdx.x),
            own = static_cast<int>(statistics_size(n, args.reduction));
  const bool gathers_own = args.by_sequence && own > n;
  if (e < n) {
    unsigned flags = 0;
    for (int w = 0; w < warps; ++w) flags |= static_cast<unsigned>(shared[w * entries + sums + 1]);
    to[e] = flags >> e & 1;
    if (gathers_own) to[own + e] = taken >> e & 1 ? total(sums) : 0;
    if (args.reduction == Reduction::kBatch) to[n + 1 + e] = total(e);
  }
  if (e == 0 && args.reduction == Reduction::kBatch) to[n] = total(sums);
  if constexpr (kGram) {
    const int i = e / N, j = e % N;
    if (i <= j && j < n) to[n + i * n + j] = total(pama_row_of<N>(i) + j);
  }
}

// Sums the partial results, a warp for each entry.
__global__ void __launch_bounds__(128, 1)
    pama_finish_kernel(const __grid_constant__ PamaInputs args, const double* partial) {
  wait_for_inputs();
  const int64_t n = args.sequences.objectives;
  const int64_t entries = gathered_size(n, args.reduction, args.by_sequence);
  const int64_t k = warp(), entry = k - n;
  if (k >= entries) return;
  const bool gram = entry >= 0 && entry < n * n && args.reduction == Reduction::kGram;
  if (gram && entry % n < entry / n) return;
  double sum = lane_sum(partial + k, args.sequences.count, entries);
  sum = warp_reduce(sum, [](double x, double y) { return x + y; });
  if (lane() != 0) return;
  args.statistics[k] = k < n ? (sum != 0 ? 1.0 : 0.0) : sum;
  if (gram) args.statistics[n + entry % n * n + entry / n] = sum;
}

// --- launching -----------------------------------------------------------------------------------

using PartialKernel = void (*)(PamaInputs, double*);

template <int N, Layout kLayout>
PartialKernel few_kernel(bool gram) {
  return gram ? pama_few_partial_kernel<N, true, kLayout>
              : pama_few_partial_kernel<N, false, kLayout>;
}

template <Layout kLayout>
PartialKernel few_kernel(int64_t n, bool gram) {
  switch (pama_few(n)) {
    case 2:
      return few_kernel<2, kLayout>(gram);
    case 4:
      return few_kernel<4, kLayout>(gram);
    default:
      return few_kernel<kFewObjectives, kLayout>(gram);
  }
}

void run(const Tensor& on, const PamaInputs& batch) {
  const Launcher launch(on);
  const Sequences& s = batch.sequences;
  const int64_t n = s.objectives, rows = s.count;
  const int64_t entries = gathered_size(n, batch.reduction, batch.by_sequence);
  Tensor memory = allocate(on, {rows * entries}, ScalarType::Double);
  double* partial = data_of<double>(memory);
  if (n <= kFewObjectives) {
    const bool gram = batch.reduction == Reduction::kGram;
    const int64_t words = pama_few_sums(pama_few(n), gram) + 2;
    const Layout layout = layout_of(s, {batch.advantages, batch.log_ratio}, batch.mask);
    with_layout(layout, [&](auto constant) {
      launch(few_kernel<constant()>(n, gram), rows, kFewBlock, kFewBlock / kWarp * words * 8, batch,
             partial);
    });
  } else {
    const int64_t row_bytes = n * static_cast<int64_t>(sizeof(double));
    const int tile =
        static_cast<int>(std::clamp<int64_t>(kSharedBytes / row_bytes, 1, kStatisticsBlock));
    launch(pama_partial_kernel, rows, kStatisticsBlock, tile * row_bytes, batch, tile, partial);
  }
  launch(pama_finish_kernel, ceil_div(entries, kStatisticsBlock / kWarp), kStatisticsBlock, 0,
         batch, partial);
}

PAMA_CUDA_LIBRARY(m) { m.impl("pama_statistics", TORCH_BOX(&pama_statistics<run>)); }

}  // namespace
}  // namespace pama
