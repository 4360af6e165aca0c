// The combined advantages, by the weights that each reduction chooses.
#include "core/weightings/min_norm.h"
#include "core/weightings/pama_weights.h"
#include "cuda/pama_advantages.cuh"
#include "cuda/warp_team.cuh"

namespace pama {
namespace {

constexpr int kTokenBlock = 128;
constexpr int64_t kScratchThreads = 32 * 1024;  // of the token kernel, beyond shared memory
constexpr int64_t kSolveBlocks = 64 * 1024;     // of the solving kernel; more take turns
constexpr int64_t kScratchBlocks = 64;          // of it, beyond shared memory

struct CombineArgs : PamaCombination {
  double* solution;  // weights of the whole batch, or of each sequence, by the solving kernel
  double* scratch;   // of each thread of the token kernel
};

// The preference among active objectives, in sequence b. False if nothing is both active and
// preferred.
template <class Team>
__device__ bool pama_preference(const CombineArgs& args, int64_t b, Team team, double* preference) {
  bool live = false;
  for (int64_t i = team.rank(); i < args.inputs.sequences.objectives; i += team.size()) {
    preference[i] = args.inputs.statistics[i] != 0 ? preferred(args.inputs.preference, i, b) : 0;
    live = live || preference[i] > 0;
  }
  team.sync();
  return team.any(live);
}

__device__ __forceinline__ void pama_report_active(const CombineArgs& args) {
  if (blockIdx.x != 0) return;
  for (int64_t i = threadIdx.x; i < args.inputs.sequences.objectives; i += blockDim.x) {
    args.active[i] = args.inputs.statistics[i] != 0;
  }
}

// In doubles, for n objectives.
constexpr int64_t pama_solve_workspace(int64_t n) {
  return n * n + 3 * n + MinNorm<WarpTeam>::reals(n) + (MinNorm<WarpTeam>::integers(n) + 1) / 2;
}

// One weight vector for the whole batch, or for each preference of a sequence, by one warp: for
// `gram`, or else for `batch`. A kernel each, as one that holds both solvers spills registers.
// `Team`: as many of the warp's lanes as take part.
template <bool kGram, class Team, bool kShared>
__global__ void __launch_bounds__(32, 1)
    pama_solve_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_inputs();
  const int64_t n = args.inputs.sequences.objectives;
  const int64_t problems = args.inputs.by_sequence ? args.inputs.sequences.count : 1;
  const double* statistics = args.inputs.statistics + n;
  double* problem = dynamic_shared();
  if constexpr (!kShared) problem = args.scratch + blockIdx.x * pama_solve_workspace(n);
  double *preference = problem + n * n, *weights = preference + n, *reals = weights + 2 * n;
  const Team team;
  if (lane() >= team.size()) return;
  for (int64_t b = blockIdx.x; b < problems; b += gridDim.x) {
    double optimum = 0;
    if (!pama_preference(args, b, team, preference)) {
      for (int64_t i = lane(); i < n; i += team.size()) weights[i] = 0;
    } else if constexpr (kGram) {
      for (int64_t k = lane(); k < n * n; k += team.size()) problem[k] = statistics[k];
      team.sync();
      GramProblem<Team> gram;
      gram.n = static_cast<int>(n);
      gram.gram = problem;
      gram.vector = preference;
      gram.rtol = 0x1p-52;
      gram.options = nullptr;
      gram.out = weights;
      gram.workspace = {reals, reinterpret_cast<int*>(reals + MinNorm<Team>::reals(n))};
      MinNorm<Team>(gram).solve();
    } else {
      const double count = statistics[0] > 1 ? statistics[0] : 1;
      for (int64_t i = lane(); i < n; i += team.size()) problem[i] = statistics[1 + i] / count;
      team.sync();
      PamaWeights<Team> solver(team, static_cast<int>(n), {reals, nullptr});
      solver.prefer(preference);
      optimum = solver.solve(problem, weights);
    }
    team.sync();
    for (int64_t i = lane(); i < n; i += team.size()) {
      args.solution[b * n + i] = weights[i];
      store(args.weights, i * problems + b, weights[i]);
    }
    if (!kGram && lane() == 0) store(args.optimum, b, optimum);
    team.sync();  // before the next problem takes the place of this one
  }
}

// Blocks that share a multiprocessor, at least: five leave a thread 48 registers, too few where
// tokens may lie in any way.
template <bool kOwn, Layout kLayout>
constexpr int kSequenceBlocks = kOwn                      ? 1
                                : kLayout == Layout::kAny ? 2
                                                          : 5;

// One weight vector a sequence, a block each: its own (`kOwn`: for `sequence`) from its means, by
// the first warp, or those that the solving kernel left.
template <bool kOwn, Layout kLayout>
__global__ void __launch_bounds__(kSequenceBlock, kSequenceBlocks<kOwn, kLayout>)
    pama_sequence_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_inputs();
  const PamaInputs& inputs = args.inputs;
  const int64_t n = inputs.sequences.objectives, count = inputs.sequences.count, b = blockIdx.x;
  pama_report_active(args);
  if (b >= count) return;
  const PackedSequence<kLayout> sequence(inputs.sequences, b);
  double *weights = dynamic_shared(), *means = weights + n, *preference = means + n;
  if constexpr (kOwn) {
    // A few objectives at a time: their sums, and the tokens.
    constexpr int few = 7;
    __shared__ SharedArray<double, (few + 1) * kSequenceBlock / kWarp> parts;
    const BlockSums<kSequenceBlock> block{parts, few + 1};
    double tokens = 0;
#pragma unroll 1
    for (int64_t i = 0; i < n; i += few) {
      double sum[few + 1] = {};
      const unsigned taken = n - i < few ? (1u << (n - i)) - 1 : (1u << few) - 1;
      for_parts<few>(inputs, sequence, i, taken, [&](const double (&part)[few]) {
        sum[few] += 1;
#pragma unroll
        for (int h = 0; h < few; ++h) {
          if (i + h < n) sum[h] += part[h];
        }
      });
      __syncthreads();  // the last ones have been read
#pragma unroll
      for (int h = 0; h <= few; ++h) block.add(h, sum[h]);
      __syncthreads();
      tokens = block.total(few);
      const int h = static_cast<int>(threadIdx.x);
      if (h < few && i + h < n) means[i + h] = tokens > 0 ? block.total(h) / tokens : 0;
    }
    if (threadIdx.x < kWarp) {  // thread 0's own warp, which pama_preference synchronises
      const WarpTeam team;
      double optimum = 0;
      if (pama_preference(args, b, team, preference) && tokens > 0) {
        PamaWeights<WarpTeam> solver(team, static_cast<int>(n), {preference + n, nullptr});
        solver.prefer(preference);
        optimum = solver.solve(means, weights);
      } else {
        for (int64_t i = lane(); i < n; i += kWarp) weights[i] = 0;
      }
      team.sync();
      for (int64_t i = lane(); i < n; i += kWarp) store(args.weights, i * count + b, weights[i]);
      if (lane() == 0) store(args.optimum, b, optimum);
    }
  } else {
    const double* solution = args.solution + (inputs.by_sequence ? b * n : 0);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) weights[i] = solution[i];
  }
  __syncthreads();
#pragma unroll 1
  for (int64_t t = threadIdx.x * kPackTokens; t < sequence.size;
       t += kSequenceBlock * kPackTokens) {
    const auto mask = sequence.load_mask(inputs.mask, t);
    double sum[kPackTokens] = {};
#pragma unroll 4
    for (int64_t i = 0; i < n; ++i) {
      const auto advantage = sequence.load(inputs.advantages, i, t);
      const double weight = weights[i];
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        const double a = noon(inputs.rule, real_of(inputs.advantages, advantage.at[k]));
        if (weight != 0) sum[k] += weight * a;  // else dropped, whatever its advantage
      }
    }
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) {
      if (!unmasked_at(inputs.mask, mask, k)) sum[k] = 0;
    }
    sequence.store(args.advantages, 0, t, sum);
  }
}

// In doubles, of each thread: parts, weights, preference and the solver's own; odd, so that
// neighbouring threads' columns start in different banks.
constexpr int64_t pama_token_workspace(int64_t n) {
  return (3 * n + PamaWeights<SerialTeam>::reals(n)) | 1;
}

// The sequence that a token of ragged arrays is in: the last one that begins no later.
__device__ __forceinline__ int64_t sequence_of(const Sequences& s, int64_t token) {
  int64_t low = 0, high = s.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (s.offset(middle) <= token ? low : high) = middle;
  }
  return low;
}

// Theorem 1 at every token, a thread each. Ragged tokens are one long row, of which only a
// preference by sequence asks where its sequences lie. For float32 tokens registers are held to
// what five blocks of a multiprocessor leave, without spills.
template <bool kShared, Layout kLayout>
__global__ void __launch_bounds__(128, kLayout == Layout::kFloats ? 5 : 1)
    pama_token_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_inputs();
  const Sequences& s = args.inputs.sequences;
  const int64_t n = s.objectives, length = s.offsets ? s.total : s.length;
  const int64_t tokens = s.offsets ? length : s.count * length;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  double* part = dynamic_shared() + threadIdx.x * pama_token_workspace(n);
  if constexpr (!kShared) part = args.scratch + thread * pama_token_workspace(n);
  double *weights = part + n, *preference = weights + n;
  pama_report_active(args);
  bool live = false;
  PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {preference + n, nullptr});
  int64_t prepared = -1;  // the sequence whose preference the solver has
  for (int64_t k = thread; k < tokens; k += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = k / length, t = k % length;
    const int64_t owner = !args.inputs.by_sequence ? 0 : s.offsets ? sequence_of(s, k) : row;
    if (owner != prepared) {
      live = pama_preference(args, owner, SerialTeam{}, preference);
      solver.prefer(preference);
      prepared = owner;
    }
    double combined = 0, optimum = 0, few[kFewObjectives];
    // Those of the first objectives are loaded together, with the mask and the ratio.
    const View &advantages = args.inputs.advantages, &ratios = args.inputs.log_ratio,
               &mask = args.inputs.mask;
    const PackedSequence<kLayout, 1> tokens_of(row, length);
    const auto noon_of = [&](const TokenPack<kLayout, 1>& token) {
      return noon(args.inputs.rule, real_of(advantages, token.at[0]));
    };
    TokenPack<kLayout, 1> loaded[kFewObjectives];
#pragma unroll
    for (int i = 0; i < kFewObjectives; ++i) {
      if (i < n) loaded[i] = tokens_of.load(advantages, i, t);
    }
    const double ratio = ratios.data ? real_of(ratios, tokens_of.load(ratios, 0, t).at[0]) : 0;
    const bool here = live && unmasked_at(mask, tokens_of.load_mask(mask, t), 0);
    if (here) {
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i >= n) continue;
        few[i] = noon_of(loaded[i]);
        part[i] = active_part(args.inputs.rule, few[i], ratio);
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        const double a = noon_of(tokens_of.load(advantages, i, t));
        part[i] = active_part(args.inputs.rule, a, ratio);
      }
      optimum = solver.solve(part, weights);
      // A weight of 0 drops the objective, whatever its advantage.
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i < n && weights[i] != 0) combined += weights[i] * few[i];
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        if (weights[i] != 0) combined += weights[i] * noon_of(tokens_of.load(advantages, i, t));
      }
    }
    for (int64_t i = 0; i < n; ++i) store(args.weights, i * tokens + k, here ? weights[i] : 0);
    store(args.optimum, k, optimum);
    store(args.advantages, k, combined);
  }
}

// --- launching -----------------------------------------------------------------------------------

constexpr int64_t kWord = sizeof(double);

void combine_by_token(const Tensor& on, const Launcher& launch, Layout layout, CombineArgs args) {
  const Sequences& s = args.inputs.sequences;
  const int64_t words = pama_token_workspace(s.objectives), bytes = words * kWord;
  const int64_t count = s.offsets ? s.total : s.count * s.length;
  const int block = bytes * kTokenBlock <= kSharedBytes ? kTokenBlock : kWarp;
  const int64_t blocks = std::max<int64_t>(ceil_div(count, block), 1);
  if (bytes * block <= kSharedBytes) {
    const auto kernel = layout == Layout::kAny ? pama_token_kernel<true, Layout::kAny>
                                               : pama_token_kernel<true, Layout::kFloats>;
    return launch(kernel, blocks, block, bytes * block, args);
  }
  const int64_t grid = std::min(blocks, kScratchThreads / block);
  Tensor scratch = allocate(on, {grid * block * words}, ScalarType::Double);
  args.scratch = data_of<double>(scratch);
  launch(pama_token_kernel<false, Layout::kAny>, grid, block, 0, args);
}

auto solve_kernel(bool gram, int64_t n, bool shared) {
  if (!shared) {
    return gram ? pama_solve_kernel<true, WarpTeam, false>
                : pama_solve_kernel<false, WarpTeam, false>;
  }
  return with_team(n, [gram](auto team) {
    using Team = decltype(team);
    return gram ? pama_solve_kernel<true, Team, true> : pama_solve_kernel<false, Team, true>;
  });
}

void combine_by_sequence(const Tensor& on, const Launcher& launch, Layout layout,
                         CombineArgs args) {
  const PamaInputs& inputs = args.inputs;
  const Sequences& s = inputs.sequences;
  const int64_t n = s.objectives, problems = inputs.by_sequence ? s.count : 1;
  const int64_t words = pama_solve_workspace(n), bytes = words * kWord;
  const bool own = inputs.reduction == Reduction::kSequence, shared = bytes <= kSharedBytes;
  const int64_t blocks = std::clamp<int64_t>(problems, 1, shared ? kSolveBlocks : kScratchBlocks);
  const int64_t size = problems * n + (shared ? 0 : blocks * words);
  Tensor scratch = allocate(on, {own ? 0 : size}, ScalarType::Double);
  if (!own) {
    args.solution = data_of<double>(scratch);
    if (!shared) args.scratch = args.solution + problems * n;
    const bool gram = inputs.reduction == Reduction::kGram;
    launch(solve_kernel(gram, n, shared), blocks, kWarp, shared ? bytes : 0, args);
  }
  const int64_t doubles = own ? 3 * n + PamaWeights<WarpTeam>::reals(n) : n;
  with_layout(layout, [&](auto known) {
    const auto kernel =
        own ? pama_sequence_kernel<true, known()> : pama_sequence_kernel<false, known()>;
    launch(kernel, std::max<int64_t>(s.count, 1), kSequenceBlock, doubles * kWord, args);
  });
}

void run(const Tensor& on, const PamaCombination& combination) {
  const Launcher launch(on);
  const CombineArgs args{combination, nullptr, nullptr};
  const PamaInputs& inputs = args.inputs;
  const Layout layout = layout_of(
      inputs.sequences, {inputs.advantages, inputs.log_ratio, args.advantages}, inputs.mask);
  if (inputs.reduction == Reduction::kToken) {
    combine_by_token(on, launch, layout, args);
  } else {
    combine_by_sequence(on, launch, layout, args);
  }
}

PAMA_CUDA_LIBRARY(m) { m.impl("pama_combine", TORCH_BOX(&pama_combine<run>)); }

}  // namespace
}  // namespace pama
