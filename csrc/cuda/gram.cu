// Gram matrices on a GPU: partial sums of a fixed grid, then a second kernel that adds them.
//
// On tensor cores where those of float64 are fast (gram_fragments.cuh, of up to 32 rows of float32
// and float64), and for more than 8 rows of halves (gram_mma.cuh). Elsewhere up to n = 8 a thread
// holds all pairs in registers and takes 16 bytes of each row at a time: float32 products are
// chained for at most 64 columns, then added in float64. More rows of float32 and float64 go to
// gram_tiles.cuh.
#include <cstdlib>

#include "cuda/gradient_launch.h"
#include "cuda/gram_fragments.cuh"
#include "cuda/gram_mma.cuh"
#include "cuda/gram_tiles.cuh"
#include "cuda/reduce.cuh"
#include "tensors/gram.h"

namespace pama {
namespace {

constexpr int kGramBlock = 256;
constexpr int kGramRows = 64;     // of a launch
constexpr int kGramColumns = 64;  // the longest float32 chain

template <class Real, int N>
struct PairSums {
  static constexpr int kPairs = N * (N + 1) / 2;
  Real part[kPairs] = {};
  double sum[kPairs] = {};
  int chained = 0;

  __device__ __forceinline__ void add(const Real (&x)[N]) {
    int e = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = i; j < N; ++j) part[e++] += x[i] * x[j];
    }
  }
  __device__ __forceinline__ void promote() {
#pragma unroll
    for (int e = 0; e < kPairs; ++e) {
      sum[e] += static_cast<double>(part[e]);
      part[e] = 0;
    }
    chained = 0;
  }
};

template <class Element, int N>
__global__ void __launch_bounds__(kGramBlock, 1)
    gram_pairs_kernel(const __grid_constant__ GramArgs args) {
  wait_for_inputs();
  using Real = decltype(real(Element{}));
  constexpr int width = Pack<Element>::kSize;
  // Packs of each row that a thread loads at once: eight rows' worth, where it has fewer.
  constexpr int at_once = N > 4 ? 1 : N > 2 ? 2 : N > 1 ? 4 : 8;
  const PointerTable& table = args.table;
  const int thread = static_cast<int>(threadIdx.x);
  PairSums<Real, N> sums;
#pragma unroll 1
  for (ChunkWalk<at_once * kGramBlock * width> walk(table, blockIdx.x); walk.found();
       walk.chunk += gridDim.x) {
    const int columns = walk.columns(), packs = table.aligned(walk.piece) ? columns / width : 0;
    const auto row = [&](int i) { return table.row<Element>(walk.piece, i) + walk.first(); };
    const auto add_packs = [&](auto count, int first) {
      Pack<Element> pack[count()][N];
#pragma unroll
      for (int u = 0; u < count(); ++u) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          pack[u][i] = reinterpret_cast<const Pack<Element>*>(row(i))[u * kGramBlock + first];
        }
      }
#pragma unroll
      for (int u = 0; u < count(); ++u) {
#pragma unroll
        for (int k = 0; k < width; ++k) {
          Real x[N];
#pragma unroll
          for (int i = 0; i < N; ++i) x[i] = real(pack[u][i].at[k]);
          sums.add(x);
        }
        if ((sums.chained += width) > kGramColumns - width) sums.promote();
      }
    };
    if (packs == at_once * kGramBlock) {
      add_packs(std::integral_constant<int, at_once>{}, thread);
      continue;
    }
#pragma unroll 1
    for (int u = thread; u < packs; u += kGramBlock) add_packs(std::integral_constant<int, 1>{}, u);
#pragma unroll 1
    for (int k = packs * width + thread; k < columns; k += kGramBlock) {
      Real x[N];
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = real(row(i)[k]);
      sums.add(x);
      if ((sums.chained += 1) > kGramColumns - width) sums.promote();
    }
  }
  sums.promote();
  constexpr int pairs = PairSums<Real, N>::kPairs;
  __shared__ SharedArray<double, pairs * kGramBlock / kWarp> shared;
  const BlockSums<kGramBlock> block{shared, pairs};
#pragma unroll
  for (int e = 0; e < pairs; ++e) block.add(e, sums.sum[e]);
  __syncthreads();
  if (thread >= pairs) return;
  double& to = args.partial[static_cast<int64_t>(blockIdx.x) * pairs + thread];
  to = block.total(thread, args.add ? to : 0);
}

// --- the sum of the partial sums -----------------------------------------------------------------

struct GramFinishArgs {
  const double* partial;
  double* gram;  // [n][n]; the entries are added to it
  int64_t n, blocks, entries;
  int rows;  // of the partial sums
  GramLayout layout;
  int objective[kGramRows];  // of each row: where it lies in the matrix
  // Whether pairs within the first `split` rows, and within the others, belong to this launch.
  int split;
  bool inside_low, inside_high;
};

// A warp for each entry.
__global__ void __launch_bounds__(128)
    gram_finish_kernel(const __grid_constant__ GramFinishArgs args) {
  wait_for_inputs();
  for (int64_t e = warp(); e < args.entries; e += gridDim.x * warps_per_block()) {
    int i = 0, j = 0;
    gram_entry_at(args.layout, args.rows, static_cast<int>(e), i, j);
    const bool wanted = i < args.split ? j >= args.split || args.inside_low : args.inside_high;
    if (i > j || j >= args.rows || !wanted) continue;
    const double sum = warp_sum(args.partial + e, args.blocks, args.entries);
    if (lane() == 0) {
      const int64_t row = args.objective[i], column = args.objective[j];
      args.gram[row * args.n + column] += sum;
      if (row != column) args.gram[column * args.n + row] += sum;
    }
  }
}

// --- launching ----------------------------------------------------------------------------------

using Kernel = void (*)(GramArgs);

constexpr int kMaxPairs = 8;  // rows whose pairs fit in registers

template <class Element>
Kernel fragment_kernel(int rows) {
  if (rows == 1) return gram_fragment_kernel<Element, 8>;
  if (rows == 2) return gram_fragment_kernel<Element, 4>;
  return rows <= 4 ? gram_fragment_kernel<Element, 2> : gram_fragment_kernel<Element, 1>;
}

// A kernel for the gradients of one dtype, and how to launch it.
struct Plan {
  Kernel kernel;
  GramLayout layout;
  int64_t blocks;  // at most
  int threads;
  int64_t shared;
  int64_t sets = 1;  // blocks that share the same columns
};

// Whether float64 goes to tensor cores that make it as fast as memory, as those of an A100 and an
// H100 do; other GPUs' double precision takes 32 or 64 times as long as single. PAMA_GRAM_KERNEL=
// plain, or tensor, overrules it, for tests and benchmarks.
bool on_tensor_cores(const Launcher& launch) {
  const char* name = std::getenv("PAMA_GRAM_KERNEL");
  if (name && *name) return std::string(name) != "plain";
  return launch.double_is_fast();
}

template <class Element>
Plan plan_of(int rows, bool tensor) {
  const int bands = tile_groups(rows, 16);
  if (rows <= kMaxPairs) {
    if (!tensor) {
      const Kernel kernel = with_number<kMaxPairs>(
          rows, [](auto n) -> Kernel { return gram_pairs_kernel<Element, n()>; });
      return {kernel, GramLayout::kPairs, 2 * kMultiprocessors, kGramBlock, 0};
    }
    return {fragment_kernel<Element>(rows), GramLayout::kTiles8,
            fragment_blocks<Element>() * kMultiprocessors, kFragmentBlock, kFragmentShared};
  }
  if constexpr (sizeof(Element) == 2) {
    const Kernel kernel =
        with_number<4>(bands, [](auto n) -> Kernel { return gram_mma_kernel<Element, n()>; });
    return {kernel, GramLayout::kMma, mma_blocks(bands) * kMultiprocessors, kMmaBlock,
            mma_shared_bytes(bands)};
  } else {
    if (tensor && bands <= 2) {
      return {bands == 1 ? gram_float64_kernel<Element, 1> : gram_float64_kernel<Element, 2>,
              GramLayout::kMma, float64_blocks(bands) * kMultiprocessors, kMmaBlock,
              mma_shared_bytes(bands)};
    }
    const TilePlan<Element> plan(rows);
    return {gram_tiles_kernel<Element>, GramLayout{plan.kHeight},
            2 * kMultiprocessors,       plan.threads(),
            plan.shared_bytes(),        plan.sets};
  }
}

// Adds to finish.gram the products of `rows` rows of the list: finish.split from `low` on, then
// those from `high` on.
void add_rows(const Tensor& on, const GradientList& grads, int64_t low, int64_t high,
              const std::vector<int64_t>& objectives, GramFinishArgs finish) {
  const Launcher launch(on);
  const auto at = [&](int i) { return i < finish.split ? low + i : high + i - finish.split; };
  for (int i = 0; i < finish.rows; ++i) finish.objective[i] = static_cast<int>(objectives[at(i)]);
  const auto row = [&](int i, int64_t p) { return grads.at(at(i), p); };
  const bool tensor = on_tensor_cores(launch);
  for (const DType dtype : kGradientDTypes) {
    int64_t total = 0;
    for (int64_t p = 0; p < grads.parameters; ++p) {
      if (grads.dtype[p] == dtype) total += grads.size[p];
    }
    if (total == 0) continue;
    const Plan plan = with_real(
        dtype, [&](auto element) { return plan_of<decltype(element)>(finish.rows, tensor); });
    finish.layout = plan.layout;
    finish.entries = gram_entries(plan.layout, finish.rows);
    // A block's worth of work is a few thousand columns; fewer blocks would only be slower.
    finish.blocks = std::clamp<int64_t>(ceil_div(total, 2048), 1, plan.blocks / plan.sets);
    Tensor partial = allocate(on, {finish.blocks * finish.entries}, ScalarType::Double);
    double* sums = data_of<double>(partial);
    finish.partial = sums;
    bool add = false;
    for_tables(grads, dtype, finish.rows, row, [&](const PointerTable& table, int64_t) {
      const GramArgs args{table, sums, add};
      launch(plan.kernel, finish.blocks * plan.sets, plan.threads, plan.shared, args);
      add = true;
    });
    launch(gram_finish_kernel, std::min<int64_t>(ceil_div(finish.entries, 4), 256), 128, 0, finish);
  }
}

// Pairs of groups of rows, at least one pair; pairs within a group belong to one launch that holds
// it.
void run(const Tensor& on, const GradientList& grads, const std::vector<int64_t>& objectives,
         double* gram, int64_t size_of_gram) {
  constexpr int64_t group = kGramRows / 2;
  const int64_t n = grads.objectives, groups = std::max<int64_t>(ceil_div(n, group), 2);
  const auto size = [&](int64_t g) { return std::clamp<int64_t>(n - g * group, 0, group); };
  for (int64_t a = 0; a < groups; ++a) {
    for (int64_t b = a + 1; b < groups; ++b) {
      GramFinishArgs finish{};
      finish.gram = gram;
      finish.n = size_of_gram;
      finish.rows = static_cast<int>(size(a) + size(b));
      finish.split = static_cast<int>(size(a));
      finish.inside_low = b == a + 1;
      finish.inside_high = a == groups - 2;
      add_rows(on, grads, a * group, b * group, objectives, finish);
    }
  }
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("gram", TORCH_BOX(&gram<run>));
  m.impl("gram_accumulate", TORCH_BOX(&gram_accumulate<run>));
}

}  // namespace
}  // namespace pama
