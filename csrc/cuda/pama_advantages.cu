// PAMA on the GPU in at most four launches: partial statistics of each sequence, their sums,
// weights for the whole batch (`gram` and `batch` only), and the combination, which for `token` and
// `sequence` finds its weights on the way.
#include <vector>

#include "core/min_norm.h"
#include "core/pama.h"
#include "core/pama_weights.h"
#include "core/view.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/raw_tokens.cuh"
#include "cuda/reduce.cuh"
#include "cuda/warp_team.cuh"

namespace pama {
namespace {

struct PamaArgs {
  Sequences sequences;
  View advantages, mask, log_ratio, preference;
  ActivePart rule;
  Reduction reduction;
  bool by_sequence;    // whether each sequence has a preference of its own
  double* statistics;  // see gathered_size
};

__device__ __forceinline__ double pama_log_ratio(const PamaArgs& args, int64_t b, int64_t t) {
  const View& ratio = args.log_ratio;
  return ratio.data ? load(ratio, args.sequences.first(ratio, 0, b) + t * ratio.token) : 0.0;
}

// Whether an objective has no part in a sequence.
__device__ __forceinline__ bool pama_dropped(const PamaArgs& args, int64_t n, int64_t b) {
  return args.by_sequence && !(preferred(args.preference, n, b) > 0);
}

// A of an unmasked token, after Noon.
__device__ __forceinline__ double pama_noon(const PamaArgs& args, int64_t n, int64_t b, int64_t t) {
  const View& a = args.advantages;
  return noon(args.rule, load(a, args.sequences.first(a, n, b) + t * a.token));
}

__device__ __forceinline__ bool pama_unmasked(const PamaArgs& args, int64_t b, int64_t t) {
  return unmasked(args.mask, args.sequences.first(args.mask, 0, b) + t * args.mask.token);
}

// --- statistics ----------------------------------------------------------------------------------

// The statistics of one sequence, by a block. Tiles of I(A), [n][tile], are staged in shared
// memory; then each warp sums the entries that it owns over the tile, and adds them to its partial
// result.
__global__ void __launch_bounds__(128, 1)
    pama_partial_kernel(const __grid_constant__ PamaArgs args, int tile, double* partial) {
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
constexpr int kFewObjectives = 8;

// For how many objectives the kernel of n is made, and the sums of a thread.
constexpr int pama_few(int64_t n) { return n <= 2 ? 2 : n <= 4 ? 4 : kFewObjectives; }
PAMA_HD constexpr int pama_few_sums(int objectives, bool gram) {
  return gram ? objectives * (objectives + 1) / 2 : objectives;
}

// The same for up to N objectives, whose sums a thread holds in registers: four tokens a thread,
// all loads of a tile in flight at once, and one reduction at the end.
template <int N, bool kGram, Layout kLayout>
__global__ void __launch_bounds__(kFewBlock, 1)
    pama_few_partial_kernel(const __grid_constant__ PamaArgs args, double* partial) {
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
    return load_raw<kLayout>(view, first + t * token_stride<kLayout>(view), inside);
  };
  const View& ratios = args.log_ratio;
  const int64_t mask_first = s.first(args.mask, 0, b), ratio_first = s.first(ratios, 0, b);
  double sum[sums] = {};
  unsigned nonzero = 0;
  int count = 0;
#pragma unroll 1
  for (int64_t t = static_cast<int64_t>(threadIdx.x) * kRawTokens; t < size;
       t += kFewBlock * kRawTokens) {
    const int inside = raw_inside(size - t);
    const auto mask =
        load_mask<kLayout>(args.mask, mask_first + t * token_stride<kLayout>(args.mask), inside);
    const auto ratio =
        load_if_given<kLayout>(ratios, ratio_first + t * token_stride<kLayout>(ratios), inside);
    RawTokens<kLayout> advantage[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (taken >> i & 1) {
        advantage[i] = raw(args.advantages, s.first(args.advantages, i, b), t, inside);
      }
    }
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) {
      if (!raw_unmasked(args.mask, mask, k)) continue;
      const double log_ratio = ratios.data ? raw_real(ratios, ratio, k) : 0;
      double part[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        part[i] = 0;
        if (!(taken >> i & 1)) continue;
        const double a = noon(args.rule, raw_real(args.advantages, advantage[i], k));
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
    pama_finish_kernel(const __grid_constant__ PamaArgs args, const double* partial) {
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

// --- combination ---------------------------------------------------------------------------------

struct PamaCombineArgs {
  PamaArgs batch;
  View advantages, weights, optimum;
  bool* active;
  double* solution;  // weights of the whole batch, or of each sequence, by the solving kernel
  double* scratch;   // of each thread of the token kernel
};

// The preference among active objectives, in sequence b. False if nothing is both active and
// preferred.
template <class Team>
__device__ bool pama_preference(const PamaCombineArgs& args, int64_t b, Team team,
                                double* preference) {
  bool live = false;
  for (int64_t i = team.rank(); i < args.batch.sequences.objectives; i += team.size()) {
    preference[i] = args.batch.statistics[i] != 0 ? preferred(args.batch.preference, i, b) : 0;
    live = live || preference[i] > 0;
  }
  team.sync();
  return team.any(live);
}

__device__ __forceinline__ void pama_report_active(const PamaCombineArgs& args) {
  if (blockIdx.x != 0) return;
  for (int64_t i = threadIdx.x; i < args.batch.sequences.objectives; i += blockDim.x) {
    args.active[i] = args.batch.statistics[i] != 0;
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
    pama_solve_kernel(const __grid_constant__ PamaCombineArgs args) {
  wait_for_inputs();
  const int64_t n = args.batch.sequences.objectives;
  const int64_t problems = args.batch.by_sequence ? args.batch.sequences.count : 1;
  const double* statistics = args.batch.statistics + n;
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
    pama_sequence_kernel(const __grid_constant__ PamaCombineArgs args) {
  wait_for_inputs();
  const Sequences s = sequences_in<kLayout>(args.batch.sequences);
  const int64_t n = s.objectives, b = blockIdx.x;
  pama_report_active(args);
  if (b >= s.count) return;
  const int64_t size = s.size(b), tile = static_cast<int64_t>(blockDim.x) * kRawTokens;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kRawTokens;
  const auto inside_at = [&](int64_t t) { return raw_inside(size - t); };
  const auto raw = [&](const View& view, int64_t i, int64_t t) {
    return load_raw<kLayout>(view, s.first(view, i, b) + t * token_stride<kLayout>(view),
                             inside_at(t));
  };
  const auto raw_mask = [&](int64_t t) {
    const View& mask = args.batch.mask;
    return load_mask<kLayout>(mask, s.first(mask, 0, b) + t * token_stride<kLayout>(mask),
                              inside_at(t));
  };
  double *weights = dynamic_shared(), *means = weights + n, *preference = means + n;
  if constexpr (kOwn) {
    const View& ratios = args.batch.log_ratio;
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
        RawTokens<kLayout> advantage[few];
#pragma unroll
        for (int h = 0; h < few; ++h) {
          if (i + h < n) advantage[h] = raw(args.batch.advantages, i + h, t);
        }
#pragma unroll
        for (int k = 0; k < kRawTokens; ++k) {
          if (!raw_unmasked(args.batch.mask, mask, k)) continue;
          count += 1;
          const double log_ratio = ratios.data ? raw_real(ratios, ratio, k) : 0;
#pragma unroll
          for (int h = 0; h < few; ++h) {
            if (i + h >= n) continue;
            const double a =
                noon(args.batch.rule, raw_real(args.batch.advantages, advantage[h], k));
            sum[h] += active_part(args.batch.rule, a, log_ratio);
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
    const double* solution = args.solution + (args.batch.by_sequence ? b * n : 0);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) weights[i] = solution[i];
  }
  __syncthreads();
  const int64_t out = s.first(args.advantages, 0, b);
#pragma unroll 1
  for (int64_t t = first; t < size; t += tile) {
    const auto mask = raw_mask(t);
    double sum[kRawTokens] = {};
#pragma unroll 4
    for (int64_t i = 0; i < n; ++i) {
      const auto advantage = raw(args.batch.advantages, i, t);
      const double weight = weights[i];
#pragma unroll
      for (int k = 0; k < kRawTokens; ++k) {
        const double a = noon(args.batch.rule, raw_real(args.batch.advantages, advantage, k));
        if (weight != 0) sum[k] += weight * a;  // else dropped, whatever its advantage
      }
    }
#pragma unroll
    for (int k = 0; k < kRawTokens; ++k) {
      if (!raw_unmasked(args.batch.mask, mask, k)) sum[k] = 0;
    }
    store_raw<kLayout>(args.advantages, out + t, inside_at(t), sum);
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
// preference by sequence asks where its sequences lie.
template <bool kShared, Layout kLayout>
__global__ void __launch_bounds__(128, 1)
    pama_token_kernel(const __grid_constant__ PamaCombineArgs args) {
  wait_for_inputs();
  const Sequences& s = args.batch.sequences;
  const int64_t n = s.objectives, tokens = s.offsets ? s.total : s.count * s.length;
  PamaCombineArgs flat = args;
  flat.batch.sequences.offsets = nullptr;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  double* part = dynamic_shared() + threadIdx.x * pama_token_workspace(n);
  if constexpr (!kShared) part = args.scratch + thread * pama_token_workspace(n);
  double *weights = part + n, *preference = weights + n;
  pama_report_active(args);
  bool live = false;
  PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {preference + n, nullptr});
  int64_t prepared = -1;  // the sequence whose preference the solver has
  for (int64_t k = thread; k < tokens; k += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t b = s.offsets ? 0 : k / s.length, t = s.offsets ? k : k % s.length;
    const int64_t owner = !args.batch.by_sequence ? 0 : s.offsets ? sequence_of(s, k) : b;
    if (owner != prepared) {
      live = pama_preference(args, owner, SerialTeam{}, preference);
      solver.prefer(preference);
      prepared = owner;
    }
    double combined = 0, optimum = 0, few[kFewObjectives];
    // Those of the first objectives are loaded together, with the mask and the ratio.
    const View& advantages = flat.batch.advantages;
    const auto index = [&](int64_t i) {
      return flat.batch.sequences.first(advantages, i, b) + t * advantages.token;
    };
    decltype(load_one<kLayout>(advantages, 0)) loaded[kFewObjectives];
#pragma unroll
    for (int i = 0; i < kFewObjectives; ++i) {
      if (i < n) loaded[i] = load_one<kLayout>(advantages, index(i));
    }
    const View &ratios = flat.batch.log_ratio, &mask = flat.batch.mask;
    const int64_t ratio_at = flat.batch.sequences.first(ratios, 0, b) + t * ratios.token,
                  mask_at = flat.batch.sequences.first(mask, 0, b) + t * mask.token;
    const double ratio = ratios.data ? real_of(ratios, load_one<kLayout>(ratios, ratio_at)) : 0;
    const bool here = live && unmasked_one<kLayout>(mask, mask_at);
    if (here) {
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i >= n) continue;
        few[i] = noon(args.batch.rule, real_of(advantages, loaded[i]));
        part[i] = active_part(args.batch.rule, few[i], ratio);
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        part[i] = active_part(args.batch.rule, pama_noon(flat.batch, i, b, t), ratio);
      }
      optimum = solver.solve(part, weights);
      // A weight of 0 drops the objective, whatever its advantage.
#pragma unroll
      for (int i = 0; i < kFewObjectives; ++i) {
        if (i < n && weights[i] != 0) combined += weights[i] * few[i];
      }
#pragma unroll 1
      for (int64_t i = kFewObjectives; i < n; ++i) {
        if (weights[i] != 0) combined += weights[i] * pama_noon(flat.batch, i, b, t);
      }
    }
    for (int64_t i = 0; i < n; ++i) store(args.weights, i * tokens + k, here ? weights[i] : 0);
    store(args.optimum, k, optimum);
    store(args.advantages, k, combined);
  }
}

// --- launching ----------------------------------------------------------------------------------

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
