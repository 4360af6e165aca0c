// Weighted sums of gradients on a GPU: 16 bytes of each row at a time, summed in registers.
//
// Four rows' loads are in flight before the first is used: 64 KB on a multiprocessor that holds
// four blocks, where 4.8 TB/s at 700 ns need 25 KB on each of an H200's. One multiply-add for 2 or
// 4 bytes read leaves the arithmetic under a tenth of the time. Predicted: at least 85 % of the
// copy bandwidth. Measured on an H200: 92 to 100 % of it for float32; for bfloat16 82 % at n = 2,
// whose loads of two rows are half as many, and 93 to 99 % beyond.
#pragma once

#include "kernels/gradient_list.cuh"

namespace pama {

inline constexpr int kCombineBlock = 256;
inline constexpr int kCombineRows = 4;  // loaded at once

struct CombineArgs {
  PointerTable table;  // the last row of a piece is its result
  Stack weights;
  bool accumulate;
};

template <class Element>
__global__ void __launch_bounds__(kCombineBlock, 4)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  using Real = decltype(real(Element{}));
  constexpr int width = Pack<Element>::kSize;
  const PointerTable& table = args.table;
  const int n = table.rows - 1;
  const int thread = static_cast<int>(threadIdx.x);
  Real* weight = reinterpret_cast<Real*>(dynamic_shared());
  for (int i = thread; i < n; i += kCombineBlock) {
    weight[i] = static_cast<Real>(load(args.weights, i * args.weights.column));
  }
  __syncthreads();
#pragma unroll 1
  for (ChunkWalk<kCombineBlock * width> walk(table, blockIdx.x); walk.found();
       walk.chunk += gridDim.x) {
    const int piece = walk.piece, columns = walk.columns();
    const int packs = table.aligned(piece) ? columns / width : 0;
    Element* out = const_cast<Element*>(table.row<Element>(piece, n)) + walk.first();
    if (thread < packs) {
      const int64_t u = walk.first() / width + thread;
      Pack<Element>& to = reinterpret_cast<Pack<Element>*>(out)[thread];
      Real sum[width] = {};
      if (args.accumulate) {
        const Pack<Element> before = to;
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] = real(before.at[k]);
      }
#pragma unroll 1
      for (int first = 0; first < n; first += kCombineRows) {
        Pack<Element> pack[kCombineRows];
        bool present[kCombineRows];
#pragma unroll
        for (int i = 0; i < kCombineRows; ++i) {
          const Element* row = first + i < n ? table.row<Element>(piece, first + i) : nullptr;
          present[i] = row;
          pack[i] = row ? reinterpret_cast<const Pack<Element>*>(row)[u] : Pack<Element>{};
        }
#pragma unroll
        for (int i = 0; i < kCombineRows; ++i) {
          if (!present[i]) continue;  // not 0 * weight, which may be NaN
#pragma unroll
          for (int k = 0; k < width; ++k) sum[k] += weight[first + i] * real(pack[i].at[k]);
        }
      }
      Pack<Element> rounded;
#pragma unroll
      for (int k = 0; k < width; ++k) round_to(sum[k], rounded.at[k]);
      to = rounded;
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

}  // namespace pama
