#include <vector>

#include "core/solvers.h"
#include "cuda/launch.h"
#include "kernels/weights.cuh"
#include "stack_of.h"

namespace pama {
namespace {

// Warps that share the scratch of problems too large for shared memory.
constexpr int64_t kScratchWarps = 1024;

using Kernel = void (*)(StackArgs);

// Launches a kernel on args.count problems whose workspaces have `size` doubles: `in_shared` where
// they fit in shared memory, or else `in_scratch`.
void launch_stack(const Tensor& like, Kernel in_shared, Kernel in_scratch, StackArgs args,
                  int64_t size) {
  if (args.count == 0) return;
  const Launcher launch(like);
  const int64_t bytes = size * static_cast<int64_t>(sizeof(double));
  if (args.n > kSharedRows) {
    const int64_t warps = std::min(args.count, kScratchWarps);
    Tensor scratch = allocate(like, {warps * size}, ScalarType::Double);
    args.scratch = static_cast<double*>(scratch.mutable_data_ptr());
    launch(in_scratch, warps, kWarp, 0, args);
    return;
  }
  // Several warps to a block while blocks stay small, so that many fit on a processor.
  const int64_t warps = std::clamp<int64_t>(16 * 1024 / bytes, 1, std::min<int64_t>(args.count, 4));
  launch(in_shared, ceil_div(args.count, warps), static_cast<int>(warps * kWarp), warps * bytes,
         args);
}

// Solvers that have kernels of their own for no more objectives than a warp has lanes.
template <template <class> class Solver>
constexpr bool kHasWide = false;
template <>
constexpr bool kHasWide<MinNorm> = true;

template <template <class> class Solver>
Kernel shared_kernel(int64_t n) {
  if constexpr (kHasWide<Solver>) {
    if (n <= kFewLanes) return gram_kernel<Solver, FewTeam, true>;
    if (n <= kWarp) return gram_kernel<Solver, WideTeam, true>;
  }
  return gram_kernel<Solver, WarpTeam, true>;
}

template <template <class> class Solver>
Tensor solve(const Tensor& gram, const std::optional<Tensor>& vector,
             const std::vector<double>& options, const std::optional<double>& rtol) {
  check_problem<Solver<WarpTeam>>(gram, vector, options, rtol);
  std::vector<int64_t> shape(gram.sizes().begin(), gram.sizes().end() - 2);
  const int64_t n = gram.size(gram.dim() - 1);
  if (!Solver<WarpTeam>::kScalar) shape.push_back(n);
  Tensor out = allocate(gram, shape, gram.scalar_type());
  StackArgs args{};
  args.input = stack_of(gram, 2, gram, 2);
  args.vector = stack_of(vector, 1, gram, 2);
  args.out.data = out.mutable_data_ptr();
  args.out.dtype = dtype_of(out);
  args.count = count_of(gram, 2);
  args.n = static_cast<int>(n);
  static_assert(Solver<WarpTeam>::kOptions <= kMaxOptions);
  std::copy(options.begin(), options.end(), args.options);
  args.rtol = rtol.value_or(2 * unit_roundoff(args.input.dtype));
  launch_stack(gram, shared_kernel<Solver>(n), gram_kernel<Solver, WarpTeam, false>, args,
               gram_workspace<Solver>(n));
  return out;
}

std::tuple<Tensor, Tensor> pama_weights(const Tensor& values,
                                        const std::optional<Tensor>& preference) {
  check_values(values, preference);
  std::vector<int64_t> shape(values.sizes().begin(), values.sizes().end());
  Tensor weights = allocate(values, shape, values.scalar_type());
  shape.pop_back();
  Tensor optimum = allocate(values, shape, values.scalar_type());
  StackArgs args{};
  args.input = stack_of(values, 1, values, 1);
  args.vector = stack_of(preference, 1, values, 1);
  args.out.data = weights.mutable_data_ptr();
  args.optimum.data = optimum.mutable_data_ptr();
  args.out.dtype = args.optimum.dtype = dtype_of(values);
  args.count = count_of(values, 1);
  args.n = static_cast<int>(values.size(values.dim() - 1));
  launch_stack(values, pama_weights_kernel<true>, pama_weights_kernel<false>, args,
               values_workspace(args.n));
  return {weights, optimum};
}

PAMA_CUDA_LIBRARY(m) {
#define PAMA_REGISTER(name, Solver) m.impl(#name, TORCH_BOX(&solve<Solver>));
  PAMA_SOLVERS(PAMA_REGISTER)
#undef PAMA_REGISTER
  m.impl("pama_weights", TORCH_BOX(&pama_weights));
}

}  // namespace
}  // namespace pama
