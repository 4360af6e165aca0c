#include <vector>

#include "cuda/launch.h"
#include "kernels/pama_advantages.cuh"

namespace pama {
namespace {

constexpr int kBlock = 128;
constexpr int64_t kSharedBytes = 48 * 1024;     // what every GPU grants
constexpr int64_t kScratchThreads = 32 * 1024;  // of the token kernel, beyond shared memory
constexpr int64_t kSolveBlocks = 64 * 1024;     // of the solving kernel; more take turns
constexpr int64_t kScratchBlocks = 64;          // of it, beyond shared memory

PamaArgs pama_args(const Tensor& advantages, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& log_ratio, const std::optional<Tensor>& preference,
                   const std::optional<Tensor>& cu_seqlens, int64_t reduction, double low,
                   double high, bool noon, bool ratio_weighted, void* statistics) {
  const bool ragged = cu_seqlens.has_value();
  return {pama_sequences(advantages, preference, cu_seqlens),
          view_of(advantages, ragged),
          view_of(mask, ragged),
          view_of(log_ratio, ragged),
          preference_view(preference),
          active_part_rule(low, high, noon, ratio_weighted),
          static_cast<Reduction>(reduction),
          by_sequence(preference),
          static_cast<double*>(statistics)};
}

using PartialKernel = void (*)(PamaArgs, double*);

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

auto solve_kernel(bool gram, int64_t n, bool shared) {
  if (!shared) {
    return gram ? pama_solve_kernel<true, WarpTeam, false>
                : pama_solve_kernel<false, WarpTeam, false>;
  }
  if (n <= kFewLanes) {
    return gram ? pama_solve_kernel<true, FewTeam, true> : pama_solve_kernel<false, FewTeam, true>;
  }
  if (n <= kWarp) {
    return gram ? pama_solve_kernel<true, WideTeam, true>
                : pama_solve_kernel<false, WideTeam, true>;
  }
  return gram ? pama_solve_kernel<true, WarpTeam, true> : pama_solve_kernel<false, WarpTeam, true>;
}

Tensor pama_statistics(const Tensor& advantages, const std::optional<Tensor>& mask,
                       const std::optional<Tensor>& log_ratio,
                       const std::optional<Tensor>& preference,
                       const std::optional<Tensor>& cu_seqlens, int64_t reduction, double low,
                       double high, bool noon, bool ratio_weighted) {
  check_pama(advantages, mask, log_ratio, preference, cu_seqlens, reduction);
  const Launcher launch(advantages);
  const int64_t n = advantages.size(0);
  const int64_t entries =
      gathered_size(n, static_cast<Reduction>(reduction), by_sequence(preference));
  Tensor statistics = allocate(advantages, {entries}, ScalarType::Double);
  const PamaArgs args = pama_args(advantages, mask, log_ratio, preference, cu_seqlens, reduction,
                                  low, high, noon, ratio_weighted, statistics.mutable_data_ptr());
  const int64_t rows = args.sequences.count;
  Tensor partial = allocate(advantages, {rows * entries}, ScalarType::Double);
  double* partial_data = static_cast<double*>(partial.mutable_data_ptr());
  if (n <= kFewObjectives) {
    const bool gram = static_cast<Reduction>(reduction) == Reduction::kGram;
    const int64_t words = pama_few_sums(pama_few(n), gram) + 2;
    const Layout layout = layout_of(args.sequences, {args.advantages, args.log_ratio}, args.mask);
    with_layout(layout, [&](auto constant) {
      launch(few_kernel<constant()>(n, gram), rows, kFewBlock, kFewBlock / kWarp * words * 8, args,
             partial_data);
    });
  } else {
    const int64_t row_bytes = n * static_cast<int64_t>(sizeof(double));
    const int tile = static_cast<int>(std::clamp<int64_t>(kSharedBytes / row_bytes, 1, kBlock));
    launch(pama_partial_kernel, rows, kBlock, tile * row_bytes, args, tile, partial_data);
  }
  launch(pama_finish_kernel, ceil_div(entries, kBlock / kWarp), kBlock, 0, args,
         static_cast<const double*>(partial_data));
  return statistics;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pama_combine(
    const Tensor& advantages, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& log_ratio, const std::optional<Tensor>& preference,
    const std::optional<Tensor>& cu_seqlens, const Tensor& statistics, int64_t reduction_code,
    double low, double high, bool noon, bool ratio_weighted) {
  check_pama(advantages, mask, log_ratio, preference, cu_seqlens, reduction_code);
  check_pama_combine(advantages, statistics, reduction_code);
  const Launcher launch(advantages);
  const bool ragged = cu_seqlens.has_value();
  const auto reduction = static_cast<Reduction>(reduction_code);
  const PamaArgs batch =
      pama_args(advantages, mask, log_ratio, preference, cu_seqlens, reduction_code, low, high,
                noon, ratio_weighted, const_cast<void*>(statistics.const_data_ptr()));
  const Sequences& s = batch.sequences;
  const int64_t n = s.objectives;
  const ScalarType dtype = result_dtype(&advantages, log_ratio);
  const std::vector<int64_t> tokens(advantages.sizes().begin() + 1, advantages.sizes().end());
  std::vector<int64_t> shape = pama_problem_shape(advantages, s, reduction, preference);
  Tensor optimum =
      allocate(advantages, reduction == Reduction::kGram ? std::vector<int64_t>{0} : shape, dtype);
  shape.insert(shape.begin(), n);
  Tensor weights = allocate(advantages, shape, dtype);
  Tensor combined = allocate(advantages, tokens, dtype);
  Tensor active = allocate(advantages, {n}, ScalarType::Bool);
  PamaCombineArgs args{batch,
                       view_of(combined, ragged),
                       view_of(weights, ragged),
                       view_of(optimum, ragged),
                       static_cast<bool*>(active.mutable_data_ptr()),
                       nullptr,
                       nullptr};
  constexpr int64_t word = sizeof(double);
  const Layout layout =
      layout_of(s, {batch.advantages, batch.log_ratio, args.advantages}, batch.mask);
  if (reduction == Reduction::kToken) {
    const int64_t bytes = pama_token_workspace(n) * word;
    const int64_t count = s.offsets ? s.total : s.count * s.length;
    const int block = bytes * kBlock <= kSharedBytes ? kBlock : kWarp;
    const int64_t blocks = std::max<int64_t>(ceil_div(count, block), 1);
    if (bytes * block <= kSharedBytes) {
      const auto kernel = layout == Layout::kAny ? pama_token_kernel<true, Layout::kAny>
                                                 : pama_token_kernel<true, Layout::kFloats>;
      launch(kernel, blocks, block, bytes * block, args);
    } else {
      const int64_t grid = std::min(blocks, kScratchThreads / block);
      Tensor scratch = allocate(advantages, {grid * block * bytes / word}, ScalarType::Double);
      args.scratch = static_cast<double*>(scratch.mutable_data_ptr());
      launch(pama_token_kernel<false, Layout::kAny>, grid, block, 0, args);
    }
    return {combined, weights, optimum, active};
  }
  const int64_t problems = batch.by_sequence ? s.count : 1;
  const int64_t bytes = pama_solve_workspace(n) * word;
  const bool shared = bytes <= kSharedBytes;
  const int64_t blocks = std::clamp<int64_t>(problems, 1, shared ? kSolveBlocks : kScratchBlocks);
  Tensor scratch = allocate(advantages, {problems * n + (shared ? 0 : blocks * bytes / word)},
                            ScalarType::Double);
  if (reduction != Reduction::kSequence) {
    args.solution = static_cast<double*>(scratch.mutable_data_ptr());
    if (!shared) args.scratch = args.solution + problems * n;
    const bool gram = reduction == Reduction::kGram;
    launch(solve_kernel(gram, n, shared), blocks, kWarp, shared ? bytes : 0, args);
  }
  if (reduction == Reduction::kSequence && s.count == 0) {  // there may be rows without tokens
    for (Tensor* x : {&weights, &optimum}) torch::stable::zero_(*x);
  }
  const bool own = reduction == Reduction::kSequence;
  const int64_t doubles = own ? 3 * n + PamaWeights<WarpTeam>::reals(n) : n;
  with_layout(layout, [&](auto constant) {
    const auto kernel =
        own ? pama_sequence_kernel<true, constant()> : pama_sequence_kernel<false, constant()>;
    launch(kernel, std::max<int64_t>(s.count, 1), kSequenceBlock, doubles * word, args);
  });
  return {combined, weights, optimum, active};
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("pama_statistics", TORCH_BOX(&pama_statistics));
  m.impl("pama_combine", TORCH_BOX(&pama_combine));
}

}  // namespace
}  // namespace pama
