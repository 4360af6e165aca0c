#include "cuda/gradient_launch.h"
#include "kernels/combine.cuh"
#include "stack_of.h"

namespace pama {
namespace {

using Kernel = void (*)(CombineArgs);

// Objectives of a launch; more take several, each of which rounds to the result's dtype.
constexpr int64_t kMaxObjectives = 256;

template <int kPacks>
Kernel kernel_of(DType dtype) {
  switch (dtype) {
    case DType::kDouble:
      return combine_kernel<double, kPacks>;
    case DType::kHalf:
      return combine_kernel<HalfElement, kPacks>;
    case DType::kBFloat16:
      return combine_kernel<BFloat16Element, kPacks>;
    default:
      return combine_kernel<float, kPacks>;
  }
}

void combine_runs(const GradientList& grads, const Tensor& weights, const std::vector<void*>& out,
                  bool accumulate) {
  const Launcher launch(weights);
  for (int64_t first = 0; first < grads.objectives; first += kMaxObjectives) {
    const int n = static_cast<int>(std::min(kMaxObjectives, grads.objectives - first));
    Stack vector = stack_of(weights, 1, weights, 1);
    vector.data = static_cast<char*>(vector.data) +
                  first * vector.column * static_cast<int64_t>(weights.element_size());
    const auto row = [&](int i, int64_t p) {
      return i < n ? grads.at(first + i, p) : static_cast<const void*>(out[p]);
    };
    const int packs = combine_packs(n);
    for (const DType dtype : kGradientDTypes) {
      for_tables(grads, dtype, n + 1, row, [&](const PointerTable& table, int64_t columns) {
        // About as many as there are chunks, up to those that run at once.
        const int64_t chunks = columns / (4 * kCombineBlock * packs) + table.pieces;
        const int64_t blocks = std::min(chunks, 4 * kMultiprocessors);
        launch(packs == 1 ? kernel_of<1>(dtype) : kernel_of<2>(dtype), blocks, kCombineBlock, n * 8,
               CombineArgs{table, vector, accumulate || first > 0});
      });
    }
  }
}

std::vector<Tensor> combine(const std::vector<Tensor>& tensors, const Tensor& weights) {
  check_combine(tensors, weights);
  const GradientList grads(tensors, weights.size(0));
  const Combination to(grads, tensors);
  combine_runs(grads, weights, to.data, false);
  return to.tensors;
}

void combine_into(const std::vector<Tensor>& out, const std::vector<Tensor>& tensors,
                  const Tensor& weights, bool accumulate) {
  check_combine(tensors, weights);
  const GradientList grads(tensors, weights.size(0));
  const Combination to(grads, tensors, out, accumulate);
  combine_runs(grads, weights, to.data, accumulate);
  to.write_back(out);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_into", TORCH_BOX(&combine_into));
}

}  // namespace
}  // namespace pama
