// Cuts lists of gradients into tables that fit in a kernel's parameters.
#pragma once

#include "cuda/launch.h"
#include "cuda/pointer_table.cuh"
#include "tensors/gradient_list.h"

namespace pama {

// Multiprocessors of a large GPU. Grids are made for it, whatever the GPU: on those that take the
// same kernels sums keep their order.
inline constexpr int64_t kMultiprocessors = 132;

inline constexpr DType kGradientDTypes[] = {DType::kFloat, DType::kBFloat16, DType::kHalf,
                                            DType::kDouble};

// Calls body(table, columns) for the parameters of one dtype, in as few tables as hold them.
// `pointer(i, p)` is row i of parameter p.
template <class Pointer, class Body>
void for_tables(const GradientList& grads, DType dtype, int rows, const Pointer& pointer,
                const Body& body) {
  PointerTable table{};
  table.rows = rows;
  int64_t columns = 0;
  const auto flush = [&] {
    if (table.pieces > 0) body(table, columns);
    table.pieces = 0;
    columns = 0;
  };
  for (int64_t p = 0; p < grads.parameters; ++p) {
    if (grads.dtype[p] != dtype || grads.size[p] == 0) continue;
    if (table.full()) flush();
    table.add(grads.size[p], [&](int i) { return pointer(i, p); });
    columns += grads.size[p];
  }
  flush();
}

}  // namespace pama
