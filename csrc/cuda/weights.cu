// Small problems, a warp for each: the lanes load a matrix into the warp's workspace as float64,
// and the solver's source is that of the CPU. The workspace lies in shared memory up to n = 64,
// where few warps are a block; beyond that in a scratch tensor that the warps of a bounded grid
// reuse. A kernel for either: a pointer to one or the other would make each access a generic one.
#include "core/weightings/list.h"
#include "core/weightings/pama_weights.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/warp_team.cuh"
#include "tensors/weights.h"

namespace pama {
namespace {

constexpr int64_t kSharedRows = 64;  // the largest n that is solved in shared memory

// In doubles: the values, the preference, the weights, and what the solver asks for.
constexpr int64_t values_workspace(int64_t n) { return 3 * n + PamaWeights<WarpTeam>::reals(n); }

template <bool kShared>
__device__ __forceinline__ double* warp_workspace(double* scratch, int64_t size) {
  if constexpr (kShared) return dynamic_shared() + threadIdx.x / kWarp * size;
  return scratch + warp() * size;
}

// `Team`: as many of a warp's lanes as take part.
template <template <class> class Solver, class Team, bool kShared>
__global__ void __launch_bounds__(128, 1)
    gram_kernel(const __grid_constant__ ProblemStack args, double* scratch) {
  wait_for_inputs();
  using Method = Solver<Team>;
  const Team team;
  if (lane() >= team.size()) return;
  const int n = args.n, outputs = Method::kScalar ? 1 : n;
  double* gram = warp_workspace<kShared>(scratch, memory_of<Method>(n));
  const GramProblem<Team> problem = problem_in<Method, Team>(gram, args);
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    const int64_t start = args.input.offset(b);
    PAMA_ENTRIES(team, k, n * n) gram[k] = load_symmetric(args.input, start, k / n, k % n);
    load_vector(team, args.vector, b, Method::vector(n), gram + n * n);
    team.sync();
    Method(problem).solve();
    // Before the next problem is loaded, too; its results come a barrier after these are stored.
    team.sync();  // not shown on the host, whose shuffles order memory as well
    PAMA_LANES(team, i, 0, outputs) store(args.out, b * outputs + i, problem.out[i]);
  }
}

template <bool kShared>
__global__ void __launch_bounds__(128, 1)
    pama_weights_kernel(const __grid_constant__ ProblemStack args, double* scratch) {
  wait_for_inputs();
  const WarpTeam team;
  const int n = args.n;
  double* values = warp_workspace<kShared>(scratch, values_workspace(n));
  double *preference = values + n, *weights = preference + n, *reals = weights + n;
  load_vector(team, args.vector, 0, n, preference);
  PamaWeights<WarpTeam> solver(team, n, {reals, nullptr});
  solver.prefer(args.vector.data ? preference : nullptr);
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    load_vector(team, args.input, b, n, values);
    team.sync();  // not shown on the host, as above
    const double optimum = solver.solve(values, weights);
    team.sync();  // not shown on the host, as above
    PAMA_LANES(team, i, 0, n) store(args.out, b * n + i, weights[i]);
    if (lane() == 0) store(args.optimum, b, optimum);
  }
}

// --- launching ----------------------------------------------------------------------------------

// Warps that share the scratch of problems too large for shared memory.
constexpr int64_t kScratchWarps = 1024;

using Kernel = void (*)(ProblemStack, double* scratch);

// Launches a kernel on problems whose workspaces have `size` doubles: `in_shared` where they fit in
// shared memory, or else `in_scratch`.
void launch_stack(const Tensor& on, Kernel in_shared, Kernel in_scratch,
                  const ProblemStack& problems, int64_t size) {
  const int64_t count = problems.count;
  if (count == 0) return;
  const Launcher launch(on);
  const int64_t bytes = size * static_cast<int64_t>(sizeof(double));
  if (problems.n > kSharedRows) {
    const int64_t warps = std::min(count, kScratchWarps);
    Tensor scratch = allocate(on, {warps * size}, ScalarType::Double);
    launch(in_scratch, warps, kWarp, 0, problems, data_of<double>(scratch));
    return;
  }
  // Several warps to a block while blocks stay small, so that many fit on a processor.
  const int64_t warps = std::clamp<int64_t>(16 * 1024 / bytes, 1, std::min<int64_t>(count, 4));
  launch(in_shared, ceil_div(count, warps), static_cast<int>(warps * kWarp), warps * bytes,
         problems, static_cast<double*>(nullptr));
}

// Solvers that have kernels of their own for no more objectives than a warp has lanes.
template <template <class> class Solver>
constexpr bool kHasSmallTeams = false;
template <>
constexpr bool kHasSmallTeams<MinNorm> = true;

template <template <class> class Solver>
Kernel shared_kernel(int64_t n) {
  const auto kernel = [](auto team) -> Kernel { return gram_kernel<Solver, decltype(team), true>; };
  if constexpr (kHasSmallTeams<Solver>) {
    return with_team(n, kernel);
  } else {  // the other kernels are not even compiled
    return kernel(WarpTeam{});
  }
}

template <template <class> class Solver>
void run(const Tensor& on, const ProblemStack& problems) {
  launch_stack(on, shared_kernel<Solver>(problems.n), gram_kernel<Solver, WarpTeam, false>,
               problems, memory_of<Solver<WarpTeam>>(problems.n));
}

void run_pama_weights(const Tensor& on, const ProblemStack& problems) {
  launch_stack(on, pama_weights_kernel<true>, pama_weights_kernel<false>, problems,
               values_workspace(problems.n));
}

template <template <class> class Solver>
constexpr auto op = &solve<Solver<WarpTeam>, run<Solver>>;

PAMA_CUDA_LIBRARY(m) {
  PAMA_SOLVERS(PAMA_REGISTER_SOLVER)
  m.impl("pama_weights", TORCH_BOX(&pama_weights<run_pama_weights>));
}

}  // namespace
}  // namespace pama
