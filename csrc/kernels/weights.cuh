// Small problems, a warp for each: the lanes load a matrix into the warp's workspace as float64,
// and the solver's source is that of the CPU. The workspace lies in shared memory up to n = 64,
// where a warp is a block; beyond that in a scratch tensor that the warps of a bounded grid reuse.
// A kernel for either: a pointer to one or the other would make each access a generic one.
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
  double* scratch;
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

template <bool kShared>
__device__ __forceinline__ double* warp_workspace(const StackArgs& args, int64_t size) {
  if constexpr (kShared) return dynamic_shared() + threadIdx.x / kWarp * size;
  return args.scratch + warp() * size;
}

template <class Team>
__device__ __forceinline__ void load_vector(Team team, const Stack& vector, int64_t b, int n,
                                            double* to) {
  if (!vector.data) return;
  const int64_t start = vector.offset(b);
  PAMA_LANES(team, i, 0, n) to[i] = load(vector, start + i * vector.column);
}

// `Team`: as many of a warp's lanes as take part.
template <template <class> class Solver, class Team, bool kShared>
__global__ void __launch_bounds__(128, 1) gram_kernel(const __grid_constant__ StackArgs args) {
  wait_for_inputs();
  const Team team;
  if (lane() >= team.size()) return;
  const int n = args.n;
  double* gram = warp_workspace<kShared>(args, gram_workspace<Solver>(n));
  double *vector = gram + n * n, *out = vector + Solver<Team>::vector(n), *reals = out + n;
  int* integers = reinterpret_cast<int*>(reals + Solver<Team>::reals(n));
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    const int64_t start = args.input.offset(b);
    PAMA_ENTRIES(team, k, n * n) gram[k] = load_symmetric(args.input, start, k / n, k % n);
    load_vector(team, args.vector, b, static_cast<int>(Solver<Team>::vector(n)), vector);
    team.sync();
    GramProblem<Team> problem;
    problem.n = n;
    problem.gram = gram;
    problem.vector = args.vector.data ? vector : nullptr;
    problem.rtol = args.rtol;
    problem.options = args.options;
    problem.out = out;
    problem.workspace = {reals, integers};
    Solver<Team>(problem).solve();
    // Before the next problem is loaded, too; its results come a barrier after these are stored.
    team.sync();  // not shown on the host, whose shuffles order memory as well
    const int outputs = Solver<Team>::kScalar ? 1 : n;
    PAMA_LANES(team, i, 0, outputs) store(args.out, b * outputs + i, out[i]);
  }
}

template <bool kShared>
__global__ void __launch_bounds__(128, 1)
    pama_weights_kernel(const __grid_constant__ StackArgs args) {
  wait_for_inputs();
  const WarpTeam team;
  const int n = args.n;
  double* values = warp_workspace<kShared>(args, values_workspace(n));
  double *preference = values + n, *weights = preference + n, *reals = weights + n;
  for (int64_t b = warp(); b < args.count; b += gridDim.x * warps_per_block()) {
    load_vector(team, args.input, b, n, values);
    load_vector(team, args.vector, b, n, preference);
    team.sync();  // not shown on the host, as above
    PamaWeights<WarpTeam> solver(team, n, {reals, nullptr});
    solver.prefer(args.vector.data ? preference : nullptr);
    const double optimum = solver.solve(values, weights);
    team.sync();  // not shown on the host, as above
    PAMA_LANES(team, i, 0, n) store(args.out, b * n + i, weights[i]);
    if (lane() == 0) store(args.optimum, b, optimum);
  }
}

}  // namespace pama
