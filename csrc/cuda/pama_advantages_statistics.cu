// What PAMA needs to know of a whole batch: partial statistics of each sequence, then their sums.
#include "cuda/pama_advantages.cuh"

namespace pama {
namespace {

constexpr int kStatisticsBlock = 128;

// Whether an objective has no part in a sequence.
__device__ __forceinline__ bool pama_dropped(const PamaInputs& args, int64_t n, int64_t b) {
  return args.by_sequence && !(preferred(args.preference, n, b) > 0);
}

// The statistics of one sequence, by a block. Chunks of I(A), [n][chunk], are staged in shared
// memory; then each warp sums the entries that it owns over the chunk, and adds them to its partial
// result.
__global__ void __launch_bounds__(kStatisticsBlock, 1)
    pama_partial_kernel(const __grid_constant__ PamaInputs args, int chunk, double* partial) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const int64_t n = s.objectives, b = blockIdx.x, size = s.size(b);
  const int64_t entries = gathered_size(n, args.reduction, args.by_sequence);
  const int64_t own = statistics_size(n, args.reduction);
  const bool gram = args.reduction == Reduction::kGram;
  const View &advantages = args.advantages, &ratios = args.log_ratio;
  double* parts = dynamic_shared();
  double* mine = partial + b * entries;
  for (int64_t k = threadIdx.x; k < entries; k += blockDim.x) mine[k] = 0;
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t length = size - start < chunk ? size - start : chunk;
    int unmasked_here = 0;
    __syncthreads();  // the last chunk has been read, and `mine` is 0
    for (int64_t j = threadIdx.x; j < length; j += blockDim.x) {
      const auto at = [&](const View& view, int64_t i) {
        return s.first(view, i, b) + (start + j) * view.token;
      };
      const bool here = unmasked(args.mask, at(args.mask, 0));
      unmasked_here += here;
      const double ratio = here && ratios.data ? load(ratios, at(ratios, 0)) : 0;
      for (int64_t i = 0; i < n; ++i) {
        const bool taken = here && !pama_dropped(args, i, b);
        const double a = taken ? noon(args.rule, load(advantages, at(advantages, i))) : 0;
        parts[i * chunk + j] = taken ? active_part(args.rule, a, ratio) : 0;
      }
    }
    const double count = block_reduce(static_cast<double>(unmasked_here), std::plus<>());
    for (int64_t k = threadIdx.x / kWarp; k < entries; k += warps_per_block()) {
      if (k >= own || (k == n && !gram)) {  // of tokens
        if (lane() == 0 && (k < own || !pama_dropped(args, k - own, b))) mine[k] += count;
        continue;
      }
      const int64_t i = k < n ? k : gram ? (k - n) / n : k - n - 1, other = (k - n) % n;
      if (k >= n && gram && other < i) continue;  // the finishing kernel mirrors it
      double sum = 0;
      for (int64_t j = lane(); j < length; j += kWarp) {
        const double x = parts[i * chunk + j];
        sum += k < n ? (x != 0 ? 1.0 : 0.0) : gram ? x * parts[other * chunk + j] : x;
      }
      sum = WarpTeam{}.sum(sum);
      if (lane() == 0) mine[k] += sum;
    }
  }
}

// Where a row of the upper triangle of an N x N matrix begins, less its first column.
template <int N>
PAMA_INLINE constexpr int pama_row_of(int i) {
  return i * N - i * (i + 1) / 2;
}

// The sums of a thread.
constexpr int pama_few_sums(int objectives, bool gram) {
  return gram ? objectives * (objectives + 1) / 2 : objectives;
}

// The same for up to N objectives, whose sums a thread holds in registers, and one reduction at the
// end.
template <int N, bool kGram, Layout kLayout>
__global__ void __launch_bounds__(kSequenceBlock, 1)
    pama_few_partial_kernel(const __grid_constant__ PamaInputs args, double* partial) {
  wait_for_inputs();
  constexpr int sums = pama_few_sums(N, kGram);
  const int n = static_cast<int>(args.sequences.objectives);
  const int64_t b = blockIdx.x;
  unsigned taken = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < n && !pama_dropped(args, i, b)) taken |= 1u << i;
  }
  double sum[sums] = {};
  unsigned nonzero = 0;
  int count = 0;
  const PackedSequence<kLayout> sequence(args.sequences, b);
  for_parts<N>(args, sequence, 0, taken, [&](const double (&part)[N]) {
    ++count;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (part[i] != 0) nonzero |= 1u << i;
      if constexpr (kGram) {
#pragma unroll
        for (int j = i; j < N; ++j) sum[pama_row_of<N>(i) + j] += part[i] * part[j];
      } else {
        sum[i] += part[i];
      }
    }
  });
  const BlockSums<kSequenceBlock> block{dynamic_shared(),
                                        sums + 2};  // those, the tokens, and the flags
  // `token` and `sequence` want the flags alone.
  if (args.reduction == Reduction::kGram || args.reduction == Reduction::kBatch) {
#pragma unroll
    for (int e = 0; e < sums; ++e) block.add(e, sum[e]);
    block.add(sums, count);
  }
  unsigned found = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (__any_sync(kFullWarp, nonzero >> i & 1)) found |= 1u << i;
  }
  if (lane() == 0) block.of_warp(threadIdx.x / kWarp, sums + 1) = found;
  __syncthreads();
  double* to = partial + b * gathered_size(n, args.reduction, args.by_sequence);
  const int e = static_cast<int>(threadIdx.x),
            own = static_cast<int>(statistics_size(n, args.reduction));
  if (e < n) {
    unsigned flags = 0;
    for (int w = 0; w < kSequenceBlock / kWarp; ++w) {
      flags |= static_cast<unsigned>(block.of_warp(w, sums + 1));
    }
    to[e] = flags >> e & 1;
    if (args.by_sequence && own > n) to[own + e] = taken >> e & 1 ? block.total(sums) : 0;
    if (args.reduction == Reduction::kBatch) to[n + 1 + e] = block.total(e);
  }
  if (e == 0 && args.reduction == Reduction::kBatch) to[n] = block.total(sums);
  if constexpr (kGram) {
    const int i = e / N, j = e % N;
    if (i <= j && j < n) to[n + i * n + j] = block.total(pama_row_of<N>(i) + j);
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
  const double sum = warp_sum(partial + k, args.sequences.count, entries);
  if (lane() != 0) return;
  args.statistics[k] = k < n ? (sum != 0 ? 1.0 : 0.0) : sum;
  if (gram) args.statistics[n + entry % n * n + entry / n] = sum;
}

// --- launching -----------------------------------------------------------------------------------

// choose(constant) with how many objectives the kernel of n is made for.
template <class Choose>
auto with_few(int64_t n, const Choose& choose) {
  if (n <= 2) return choose(std::integral_constant<int, 2>{});
  if (n <= 4) return choose(std::integral_constant<int, 4>{});
  return choose(std::integral_constant<int, kFewObjectives>{});
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
    const Layout layout = layout_of(s, {batch.advantages, batch.log_ratio}, batch.mask);
    with_layout(layout, [&](auto known) {
      with_few(n, [&](auto few) {
        constexpr Layout kLayout = decltype(known)::value;
        const auto kernel = gram ? pama_few_partial_kernel<few(), true, kLayout>
                                 : pama_few_partial_kernel<few(), false, kLayout>;
        const int64_t words = pama_few_sums(few(), gram) + 2;
        launch(kernel, rows, kSequenceBlock, kSequenceBlock / kWarp * words * 8, batch, partial);
      });
    });
  } else {
    const int64_t row_bytes = n * static_cast<int64_t>(sizeof(double));
    const int chunk =
        static_cast<int>(std::clamp<int64_t>(kSharedBytes / row_bytes, 1, kStatisticsBlock));
    launch(pama_partial_kernel, rows, kStatisticsBlock, chunk * row_bytes, batch, chunk, partial);
  }
  launch(pama_finish_kernel, ceil_div(entries, kStatisticsBlock / kWarp), kStatisticsBlock, 0,
         batch, partial);
}

PAMA_CUDA_LIBRARY(m) { m.impl("pama_statistics", TORCH_BOX(&pama_statistics<run>)); }

}  // namespace
}  // namespace pama
