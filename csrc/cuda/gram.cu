#include <cstdlib>

#include "cuda/gradient_launch.h"
#include "kernels/gram.cuh"

namespace pama {
namespace {

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
  switch (dtype) {
    case DType::kDouble:
      return plan_of<double>(rows, tensor);
    case DType::kHalf:
      return plan_of<HalfElement>(rows, tensor);
    case DType::kBFloat16:
      return plan_of<BFloat16Element>(rows, tensor);
    default:
      return plan_of<float>(rows, tensor);
  }
}

// Adds the Gram matrix of some rows of the list to args.gram.
void add_gram(const Tensor& like, const GradientList& grads, const std::vector<int64_t>& rows,
              const std::vector<int64_t>& objectives, GramFinishArgs finish) {
  const Launcher launch(like);
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
    Tensor partial = allocate(like, {finish.blocks * finish.entries}, ScalarType::Double);
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

// Adds the Gram matrix of gradients none of which is missing.
void accumulate(const Tensor& like, const GradientList& grads,
                const std::vector<int64_t>& objectives, GramFinishArgs finish) {
  const int64_t n = grads.objectives;
  std::vector<int64_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  if (n <= kGramRows) {
    finish.split = static_cast<int>(n);
    finish.inside_low = true;
    add_gram(like, grads, rows, objectives, finish);
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
      add_gram(like, grads, both, objectives, finish);
    }
  }
}

void accumulate(const Tensor& like, const GradientList& grads, double* gram) {
  GramFinishArgs finish{};
  finish.gram = gram;
  finish.n = grads.objectives;
  for_present(grads, [&](const GradientList& part, const std::vector<int64_t>& objectives) {
    accumulate(like, part, objectives, finish);
  });
}

Tensor gram(const std::vector<Tensor>& grads, int64_t n) {
  const GradientList list(grads, n);
  Tensor out = allocate(grads[0], {n, n}, ScalarType::Double);
  torch::stable::zero_(out);
  accumulate(grads[0], list, static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

void gram_accumulate(Tensor gram, const std::vector<Tensor>& grads) {
  check_gram_out(gram, grads);
  accumulate(gram, GradientList(grads, gram.size(0)),
             static_cast<double*>(gram.mutable_data_ptr()));
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("gram_accumulate", TORCH_BOX(&gram_accumulate));
}

}  // namespace
}  // namespace pama
