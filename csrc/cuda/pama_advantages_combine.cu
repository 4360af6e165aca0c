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

constexpr int kSequenceBlock = 256;

// One weight vector a sequence, a block each: its own (`kOwn`: for `sequence`) from its means, by
// the first warp, or those that the solving kernel left.
template <bool kOwn, Layout kLayout>
__global__ void __launch_bounds__(kSequenceBlock, kOwn ? 1 : 2)
    pama_sequence_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_inputs();
  const Sequences s = sequences_in<kLayout>(args.inputs.sequences);
  const int64_t n = s.objectives, b = blockIdx.x;
  pama_report_active(args);
  if (b >= s.count) return;
  const int64_t size = s.size(b), tile = static_cast<int64_t>(blockDim.x) * kPackTokens;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPackTokens;
  const auto inside_at = [&](int64_t t) { return inside_pack(size - t); };
  const auto raw = [&](const View& view, int64_t i, int64_t t) {
    return load_pack_of<kLayout>(view, s.first(view, i, b) + t * token_stride<kLayout>(view),
                                 inside_at(t));
  };
  const auto raw_mask = [&](int64_t t) {
    const View& mask = args.inputs.mask;
    return load_mask_pack<kLayout>(mask, s.first(mask, 0, b) + t * token_stride<kLayout>(mask),
                                   inside_at(t));
  };
  double *weights = dynamic_shared(), *means = weights + n, *preference = means + n;
  if constexpr (kOwn) {
    const View& ratios = args.inputs.log_ratio;
    const int64_t ratio_first = s.first(ratios, 0, b);
    const auto add = [](double x, double y) { return x + y; };
    // A few objectives at a time: their sums, and the tokens, by warp.
    constexpr int few = 7;
    __shared__ SharedArray<double, (few + 1) * kSequenceBlock / kWarp> parts;
    const int warps = kSequenceBlock / kWarp, mine = static_cast<int>(threadIdx.x) / kWarp;
    double tokens = 0;
#pragma unroll 1
    for (int64_t i = 0; i < n; i += few) {
      double sum[few] = {}, count = 0;
#pragma unroll 1
      for (int64_t t = first; t < size; t += tile) {
        const auto mask = raw_mask(t);
        const auto ratio = load_if_given<kLayout>(
            ratios, ratio_first + t * token_stride<kLayout>(ratios), inside_at(t));
        TokenPack<kLayout> advantage[few];
#pragma unroll
        for (int h = 0; h < few; ++h) {
          if (i + h < n) advantage[h] = raw(args.inputs.advantages, i + h, t);
        }
#pragma unroll
        for (int k = 0; k < kPackTokens; ++k) {
          if (!unmasked_at(args.inputs.mask, mask, k)) continue;
          count += 1;
          const double log_ratio = ratios.data ? real_at(ratios, ratio, k) : 0;
#pragma unroll
          for (int h = 0; h < few; ++h) {
            if (i + h >= n) continue;
            const double a =
                noon(args.inputs.rule, real_at(args.inputs.advantages, advantage[h], k));
            sum[h] += active_part(args.inputs.rule, a, log_ratio);
          }
        }
      }
      __syncthreads();  // the last ones have been read
#pragma unroll
      for (int h = 0; h < few; ++h) {
        const double total = warp_reduce(sum[h], add);
        if (lane() == 0) parts[h * warps + mine] = total;
      }
      count = warp_reduce(count, add);
      if (lane() == 0) parts[few * warps + mine] = count;
      __syncthreads();
      const auto total = [&](int h) {
        double all = 0;
        for (int w = 0; w < warps; ++w) all += parts[h * warps + w];
        return all;
      };
      tokens = total(few);
      const int h = static_cast<int>(threadIdx.x);
      if (h < few && i + h < n) means[i + h] = tokens > 0 ? total(h) / tokens : 0;
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
      for (int64_t i = lane(); i < n; i += kWarp) store(args.weights, i * s.count + b, weights[i]);
      if (lane() == 0) store(args.optimum, b, optimum);
    }
  } else {
    const double* solution = args.solution + (args.inputs.by_sequence ? b * n : 0);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) weights[i] = solution[i];
  }
  __syncthreads();
  const int64_t out = s.first(args.advantages, 0, b);
#pragma unroll 1
  for (int64_t t = first; t < size; t += tile) {
    const auto mask = raw_mask(t);
    double sum[kPackTokens] = {};
#pragma unroll 4
    for (int64_t i = 0; i < n; ++i) {
      const auto advantage = raw(args.inputs.advantages, i, t);
      const double weight = weights[i];
#pragma unroll
      for (int k = 0; k < kPackTokens; ++k) {
        const double a = noon(args.inputs.rule, real_at(args.inputs.advantages, advantage, k));
        if (weight != 0) sum[k] += weight * a;  // else dropped, whatever its advantage
      }
    }
#pragma unroll
    for (int k = 0; k < kPackTokens; ++k) {
      if (!unmasked_at(args.inputs.mask, mask, k)) sum[k] = 0;
    }
    store_pack_of<kLayout>(args.advantages, out + t, inside_at(t), sum);
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
  const int64_t n = s.objectives, tokens = s.offsets ? s.total : s.count * s.length;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  double* part = dynamic_shared() + threadIdx.x * pama_token_workspace(n);
  if constexpr (!kShared) part = args.scratch + thread * pama_token_workspace(n);
  double *weights = part + n, *preference = weights + n;
  pama_report_active(args);
  bool live = false;
  PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {preference + n, nullptr});
  int64_t prepared = -1;  // the sequence whose preference the solver has
  for (int64_t k = thread; k < tokens; k += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = s.offsets ? 0 : k / s.length, t = s.offsets ? k : k % s.length;
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
    const auto at = [&](const View& view, int64_t i) {
      return i * view.objective + row * view.sequence + t * view.token;
    };
    const auto noon_of = [&](int64_t i) {
      return noon(args.inputs.rule, load(advantages, at(advantages, i)));
    };
    decltype(load_one<kLayout>(advantages, 0)) loaded[kFewObjectives];
#pragma unroll
    for (int i = 0; i < kFewObjectives; ++i) {
      if (i < n) loaded[i] = load_one<kLayout>(advantages, at(advantages, i));
    }
    const double ratio =
        ratios.data ? real_of(ratios, load_one<kLayout>(ratios, at(ratios, 0))) : 0;
    const bool here = live && unmasked_one<kLayout>(mask, at(mask, 0));
    if (here) {
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i >= n) continue;
        few[i] = noon(args.inputs.rule, real_of(advantages, loaded[i]));
        part[i] = active_part(args.inputs.rule, few[i], ratio);
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        part[i] = active_part(args.inputs.rule, noon_of(i), ratio);
      }
      optimum = solver.solve(part, weights);
      // A weight of 0 drops the objective, whatever its advantage.
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i < n && weights[i] != 0) combined += weights[i] * few[i];
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        if (weights[i] != 0) combined += weights[i] * noon_of(i);
      }
    }
    for (int64_t i = 0; i < n; ++i) store(args.weights, i * tokens + k, here ? weights[i] : 0);
    store(args.optimum, k, optimum);
    store(args.advantages, k, combined);
  }
}

// --- launching -----------------------------------------------------------------------------------

constexpr int64_t kWord = sizeof(double);

void combine_by_token(const Tensor& on, const Launcher& launch, CombineArgs args) {
  const Sequences& s = args.inputs.sequences;
  const int64_t words = pama_token_workspace(s.objectives), bytes = words * kWord;
  const int64_t count = s.offsets ? s.total : s.count * s.length;
  const int block = bytes * kTokenBlock <= kSharedBytes ? kTokenBlock : kWarp;
  const int64_t blocks = std::max<int64_t>(ceil_div(count, block), 1);
  if (bytes * block <= kSharedBytes) {
    const Layout layout = layout_of(
        s, {args.inputs.advantages, args.inputs.log_ratio, args.advantages}, args.inputs.mask);
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

void combine_by_sequence(const Tensor& on, const Launcher& launch, CombineArgs args) {
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
  const Layout layout =
      layout_of(s, {inputs.advantages, inputs.log_ratio, args.advantages}, inputs.mask);
  with_layout(layout, [&](auto constant) {
    const auto kernel =
        own ? pama_sequence_kernel<true, constant()> : pama_sequence_kernel<false, constant()>;
    launch(kernel, std::max<int64_t>(s.count, 1), kSequenceBlock, doubles * kWord, args);
  });
}

void run(const Tensor& on, const PamaCombination& combination) {
  const Launcher launch(on);
  const CombineArgs args{combination, nullptr, nullptr};
  if (combination.inputs.reduction == Reduction::kToken) {
    combine_by_token(on, launch, args);
  } else {
    combine_by_sequence(on, launch, args);
  }
}

PAMA_CUDA_LIBRARY(m) { m.impl("pama_combine", TORCH_BOX(&pama_combine<run>)); }

}  // namespace
}  // namespace pama
