// Weighted sums of gradients on a GPU: 16 bytes of each row at a time, summed in registers.
//
// Four rows' loads are in flight before the first is used: 64 KB on a multiprocessor that holds
// four blocks, where 4.8 TB/s at 700 ns need 25 KB on each of an H200's. One multiply-add for 2 or
// 4 bytes read leaves the arithmetic under a tenth of the time. Measured on an H200: 92 to 100 % of
// the copy bandwidth for float32, 93 to 99 % for bfloat16 from n = 4 on. Two rows alone reached
// 82 %, and 63 % on a list, where a chunk also waits for its pointers: so of those a thread takes
// two packs at a time, which makes as many loads, and reaches 89 and 86 %.
#include "cuda/gradient_launch.h"
#include "tensors/combine.h"

namespace pama {
namespace {

constexpr int kCombineBlock = 256;
constexpr int kCombineLoads = 4;  // at once, of each thread

struct CombineArgs {
  PointerTable table;  // the last row of a piece is its result
  View weights;
  bool accumulate;
};

// `kPacks` packs of a thread in a chunk.
template <class Element, int kPacks>
__global__ void __launch_bounds__(kCombineBlock, 4)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  wait_for_inputs();
  using Real = decltype(real(Element{}));
  constexpr int width = Pack<Element>::kSize, rows = kCombineLoads / kPacks;
  const PointerTable& table = args.table;
  const int n = table.rows - 1;
  const int thread = static_cast<int>(threadIdx.x);
  Real* weight = reinterpret_cast<Real*>(dynamic_shared());
  for (int i = thread; i < n; i += kCombineBlock) {
    weight[i] = static_cast<Real>(load(args.weights, i * args.weights.token));
  }
  __syncthreads();
#pragma unroll 1
  for (ChunkWalk<kCombineBlock * width * kPacks> walk(table, blockIdx.x); walk.found();
       walk.chunk += gridDim.x) {
    const int piece = walk.piece, columns = walk.columns();
    const int packs = table.aligned(piece) ? columns / width : 0;
    Element* out = const_cast<Element*>(table.row<Element>(piece, n)) + walk.first();
    Real sum[kPacks][width] = {};
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int u = p * kCombineBlock + thread;
      if (!args.accumulate || u >= packs) continue;
      const Pack<Element> before = reinterpret_cast<const Pack<Element>*>(out)[u];
#pragma unroll
      for (int k = 0; k < width; ++k) sum[p][k] = real(before.at[k]);
    }
#pragma unroll 1
    for (int first = 0; first < n; first += rows) {
      Pack<Element> pack[rows][kPacks];
      bool present[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        const Element* row = first + i < n ? table.row<Element>(piece, first + i) : nullptr;
        present[i] = row;
        const auto* from = reinterpret_cast<const Pack<Element>*>(row) + walk.first() / width;
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
          const int u = p * kCombineBlock + thread;
          pack[i][p] = row && u < packs ? from[u] : Pack<Element>{};
        }
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        if (!present[i]) continue;  // not 0 * weight, which may be NaN
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
#pragma unroll
          for (int k = 0; k < width; ++k) {
            sum[p][k] += weight[first + i] * real(pack[i][p].at[k]);
          }
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int u = p * kCombineBlock + thread;
      Pack<Element> rounded;
#pragma unroll
      for (int k = 0; k < width; ++k) round_to(sum[p][k], rounded.at[k]);
      if (u < packs) reinterpret_cast<Pack<Element>*>(out)[u] = rounded;
    }
#pragma unroll 1
    for (int k = packs * width + thread; k < columns; k += kCombineBlock) {
      Real sum = args.accumulate ? real(out[k]) : Real(0);
      for (int i = 0; i < n; ++i) {
        const Element* row = table.row<Element>(piece, i);
        if (row) sum += weight[i] * real(row[walk.first() + k]);
      }
      round_to(sum, out[k]);
    }
  }
}

// --- launching ----------------------------------------------------------------------------------

// Objectives of a launch; more take several, each of which rounds to the result's dtype.
constexpr int64_t kMaxObjectives = 256;

void run(const Tensor& on, const GradientList& grads, const View& weights,
         const std::vector<void*>& out, bool accumulate) {
  const Launcher launch(on);
  for (int64_t first = 0; first < grads.objectives; first += kMaxObjectives) {
    const int n = static_cast<int>(std::min(kMaxObjectives, grads.objectives - first));
    View those = weights;
    those.data = static_cast<char*>(those.data) + first * those.token * size_of(those.dtype);
    const auto row = [&](int i, int64_t p) {
      return i < n ? grads.at(first + i, p) : static_cast<const void*>(out[p]);
    };
    const int packs = n <= 2 ? 2 : 1;
    for (const DType dtype : kGradientDTypes) {
      const auto kernel = with_real(dtype, [&](auto element) {
        using Element = decltype(element);
        return packs == 1 ? combine_kernel<Element, 1> : combine_kernel<Element, 2>;
      });
      for_tables(grads, dtype, n + 1, row, [&](const PointerTable& table, int64_t columns) {
        // About as many as there are chunks, up to those that run at once.
        const int64_t chunks = columns / (4 * kCombineBlock * packs) + table.pieces;
        const int64_t blocks = std::min(chunks, 4 * kMultiprocessors);
        launch(kernel, blocks, kCombineBlock, n * 8,
               CombineArgs{table, those, accumulate || first > 0});
      });
    }
  }
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("combine", TORCH_BOX(&combine<run>));
  m.impl("combine_into", TORCH_BOX(&combine_into<run>));
}

}  // namespace
}  // namespace pama
