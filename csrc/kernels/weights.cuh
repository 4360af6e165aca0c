// Small problems, a warp for each: the lanes load a matrix into the warp's workspace as float64,
// and the solver's source is that of the CPU. The workspace lies in shared memory up to n = 64,
// where a warp is a block; beyond that in a scratch tensor that the warps of a bounded grid reuse.
#pragma once

#include "core/gram_problem.h"
#include "core/pama_weights.h"
#include "core/stack.h"
#include "kernels/device.cuh"
#include "kernels/warp_team.cuh"

namespace pama {

inline constexpr int64_t kSharedRows = 64;  // the largest n that is solved in shared memory
inline constexpr int kMaxOptions = 4;

struct StackArgs {
  Stack input, vector, out, optimum;
  int64_t count;
  int n;
  double* scratch;  // null: shared memory
  double rtol;
  double options[kMaxOptions];
};

// In doubles: the matrix, the vector, the result, and what the solver asks for.
template <template <class> class Solver>
constexpr int64_t gram_workspace(int64_t n) {
  return n * n + Solver<WarpTeam>::vector(n) + n + Solver<WarpTeam>::reals(n) +
         (Solver<WarpTeam>::integers(n) + 1) / 2;
}

constexpr int64_t values_workspace(int64_t n) { return 3 * n + PamaWeights<WarpTeam>::reals(n); }

__device__ __forceinline__ double* warp_workspace(const StackArgs& args, int64_t size) {
  return args.scratch ? args.scratch + warp() * size
                      : dynamic_shared() + threadIdx.x / kWarp * size;
}

__device__ __forceinline__ void load_vector(const Stack& vector, int64_t b, int n, double* to) {
  if (!vector.data) return;
  const int64_t start = vector.offset(b);
  for (int i = lane(); i < n; i += kWarp) to[i] = load(vector, start + i * vector.column);
}

template <template <class> class Solver>
__global__ void __launch_bounds__(128, 1) gram_kernel(const __grid_constant__ StackArgs args) {
  const int n = args.n;
  double* gram = warp_workspace(args, gram_workspace<Solver>(n));
  double *vector = gram + n * n, *out = vector + Solver<WarpTeam>::vector(n), *reals = out + n;
  int* integers = reinterpret_cast<int*>(reals + Solver<WarpTeam>::reals(n));
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    const int64_t start = args.input.offset(b);
    for (int k = lane(); k < n * n; k += kWarp) {
      gram[k] = load_symmetric(args.input, start, k / n, k % n);
    }
    load_vector(args.vector, b, static_cast<int>(Solver<WarpTeam>::vector(n)), vector);
    __syncwarp();
    GramProblem<WarpTeam> problem;
    problem.n = n;
    problem.gram = gram;
    problem.vector = args.vector.data ? vector : nullptr;
    problem.rtol = args.rtol;
    problem.options = args.options;
    problem.out = out;
    problem.workspace = {reals, integers};
    Solver<WarpTeam>(problem).solve();
    // Before the next problem is loaded, too; its results come a barrier after these are stored.
    __syncwarp();  // not shown on the host, whose shuffles order memory as well
    constexpr bool scalar = Solver<WarpTeam>::kScalar;
    const int outputs = scalar ? 1 : n;
    for (int i = lane(); i < outputs; i += kWarp) store(args.out, b * outputs + i, out[i]);
  }
}

__global__ void __launch_bounds__(128, 1)
    pama_weights_kernel(const __grid_constant__ StackArgs args) {
  const int n = args.n;
  double* values = warp_workspace(args, values_workspace(n));
  double *preference = values + n, *weights = preference + n, *reals = weights + n;
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    load_vector(args.input, b, n, values);
    load_vector(args.vector, b, n, preference);
    __syncwarp();  // not shown on the host, as above
    PamaWeights<WarpTeam> solver({}, n, {reals, nullptr});
    solver.prefer(args.vector.data ? preference : nullptr);
    const double optimum = solver.solve(values, weights);
    __syncwarp();  // not shown on the host, as above
    for (int i = lane(); i < n; i += kWarp) store(args.out, b * n + i, weights[i]);
    if (lane() == 0) store(args.optimum, b, optimum);
  }
}

}  // namespace pama
