// Gram matrices on a GPU: partial sums of a fixed grid, then a second kernel that adds them.
//
// On tensor cores where those of float64 are fast (gram_fragments.cuh), and for more than 8 rows of
// halves (gram_mma.cuh). Elsewhere up to n = 8 a thread holds all pairs in registers and takes 16
// bytes of each row at a time: float32 products are chained for at most 64 columns, then added in
// float64. More rows of float32 and float64 go to gram_tiles.cuh.
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
    const auto add = [&](const Pack<Element>(&pack)[N]) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        Real x[N];
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = real(pack[i].at[k]);
        sums.add(x);
      }
      if ((sums.chained += width) > kGramColumns - width) sums.promote();
    };
    if (packs == at_once * kGramBlock) {
      Pack<Element> pack[at_once][N];
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          pack[u][i] = reinterpret_cast<const Pack<Element>*>(row(i))[u * kGramBlock + thread];
        }
      }
#pragma unroll
      for (int u = 0; u < at_once; ++u) add(pack[u]);
      continue;
    }
#pragma unroll 1
    for (int u = thread; u < packs; u += kGramBlock) {
      Pack<Element> pack[N];
#pragma unroll
      for (int i = 0; i < N; ++i) pack[i] = reinterpret_cast<const Pack<Element>*>(row(i))[u];
      add(pack);
    }
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
  double* to = args.partial + static_cast<int64_t>(blockIdx.x) * pairs;
  __shared__ SharedArray<double, kGramBlock / kWarp> shared;
  // One entry at a time: a struct of them would double the registers.
#pragma unroll
  for (int e = 0; e < pairs; ++e) {
    double x = sums.sum[e];
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      x += __shfl_down_sync(kFullWarp, x, distance);
    }
    __syncthreads();  // the last entry has been read
    if (lane() == 0) shared[threadIdx.x / kWarp] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = args.add ? to[e] : 0;
      for (int w = 0; w < kGramBlock / kWarp; ++w) total += shared[w];
      to[e] = total;
    }
  }
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

template <class Element>
Kernel pairs_kernel(int n) {
  switch (n) {
    case 1:
      return gram_pairs_kernel<Element, 1>;
    case 2:
      return gram_pairs_kernel<Element, 2>;
    case 3:
      return gram_pairs_kernel<Element, 3>;
    case 4:
      return gram_pairs_kernel<Element, 4>;
    case 5:
      return gram_pairs_kernel<Element, 5>;
    case 6:
      return gram_pairs_kernel<Element, 6>;
    case 7:
      return gram_pairs_kernel<Element, 7>;
    default:
      return gram_pairs_kernel<Element, 8>;
  }
}

constexpr int kMaxPairs = 8;  // rows whose pairs fit in registers

template <class Element>
Kernel mma_kernel(int rows) {
  switch (tile_groups(rows, 16)) {
    case 1:
      return gram_mma_kernel<Element, 1>;
    case 2:
      return gram_mma_kernel<Element, 2>;
    case 3:
      return gram_mma_kernel<Element, 3>;
    default:
      return gram_mma_kernel<Element, 4>;
  }
}

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
  constexpr bool half = sizeof(Element) == 2;
  if (rows <= kMaxPairs) {
    if (!tensor) {
      return {pairs_kernel<Element>(rows), GramLayout::kPairs, 2 * kMultiprocessors, kGramBlock, 0};
    }
    return {fragment_kernel<Element>(rows), GramLayout::kTiles8,
            fragment_blocks<Element>() * kMultiprocessors, kFragmentBlock, kFragmentShared};
  }
  if constexpr (half) {
    return {mma_kernel<Element>(rows), GramLayout::kMma,
            mma_blocks(tile_groups(rows, 16)) * kMultiprocessors, kMmaBlock,
            mma_shared_bytes(rows)};
  } else {
    if (tensor && rows <= 32) {
      const int bands = tile_groups(rows, 16);
      return {bands == 1 ? gram_float64_kernel<Element, 1> : gram_float64_kernel<Element, 2>,
              GramLayout::kMma, (bands == 1 ? 4 : 3) * kMultiprocessors, kMmaBlock,
              mma_shared_bytes(rows)};
    }
    constexpr int height = kTileHeight<Element>;
    const TilePlan plan(rows, height);
    return {gram_tiles_kernel<Element>, GramLayout{height}, 2 * kMultiprocessors, plan.threads(),
            plan.shared_bytes(height),  plan.sets};
  }
}

Plan plan_of(DType dtype, int rows, bool tensor) {
  return with_real(dtype, [&](auto element) { return plan_of<decltype(element)>(rows, tensor); });
}

// Adds the Gram matrix of some rows of the list to args.gram.
void add_rows(const Tensor& on, const GradientList& grads, const std::vector<int64_t>& rows,
              const std::vector<int64_t>& objectives, GramFinishArgs finish) {
  const Launcher launch(on);
  finish.rows = static_cast<int>(rows.size());
  for (int i = 0; i < finish.rows; ++i) {
    finish.objective[i] = static_cast<int>(objectives[rows[i]]);
  }
  const auto row = [&](int i, int64_t p) { return grads.at(rows[i], p); };
  for (const DType dtype : kGradientDTypes) {
    int64_t total = 0;
    for (int64_t p = 0; p < grads.parameters; ++p) {
      if (grads.dtype[p] == dtype) total += grads.size[p];
    }
    if (total == 0) continue;
    const Plan plan = plan_of(dtype, finish.rows, on_tensor_cores(launch));
    finish.layout = plan.layout;
    finish.entries = gram_entries(plan.layout, finish.rows);
    // A block's worth of work is a few thousand columns; fewer blocks would only be slower.
    finish.blocks = std::clamp<int64_t>(ceil_div(total, 2048), 1, plan.blocks / plan.sets);
    Tensor partial = allocate(on, {finish.blocks * finish.entries}, ScalarType::Double);
    finish.partial = static_cast<const double*>(partial.mutable_data_ptr());
    bool add = false;
    for_tables(grads, dtype, finish.rows, row, [&](const PointerTable& table, int64_t) {
      const GramArgs args{table, const_cast<double*>(finish.partial), add};
      launch(plan.kernel, finish.blocks * plan.sets, plan.threads, plan.shared, args);
      add = true;
    });
    launch(gram_finish_kernel, std::min<int64_t>(ceil_div(finish.entries, 4), 256), 128, 0, finish);
  }
}

void run(const Tensor& on, const GradientList& grads, const std::vector<int64_t>& objectives,
         double* gram, int64_t size_of_gram) {
  GramFinishArgs finish{};
  finish.gram = gram;
  finish.n = size_of_gram;
  const int64_t n = grads.objectives;
  std::vector<int64_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  if (n <= kGramRows) {
    finish.split = static_cast<int>(n);
    finish.inside_low = true;
    add_rows(on, grads, rows, objectives, finish);
    return;
  }
  // Pairs of groups of rows; pairs within a group belong to one launch that holds it.
  constexpr int64_t group = kGramRows / 2;
  const int64_t groups = ceil_div(n, group);
  for (int64_t a = 0; a < groups; ++a) {
    for (int64_t b = a + 1; b < groups; ++b) {
      const auto low = rows.begin() + a * group, high = rows.begin() + b * group;
      std::vector<int64_t> both(low, low + group);
      both.insert(both.end(), high, high + std::min(group, n - b * group));
      finish.split = static_cast<int>(group);
      finish.inside_low = b == a + 1;
      finish.inside_high = a == groups - 2;
      add_rows(on, grads, both, objectives, finish);
    }
  }
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("gram", TORCH_BOX(&gram<run>));
  m.impl("gram_accumulate", TORCH_BOX(&gram_accumulate<run>));
}

}  // namespace
}  // namespace pama
