// The ops `gram` and `gram_accumulate`.
#pragma once

#include "tensors/gradient_list.h"

namespace pama {

// Adds J Jᵀ to the rows and columns `objectives` of a matrix [n, n]. No gradient is missing.
using AddGram = void(const Tensor& on, const GradientList& grads,
                     const std::vector<int64_t>& objectives, double* gram, int64_t n);

template <AddGram* Run>
void add_gram(const Tensor& on, const GradientList& grads, double* gram) {
  for_present(grads, [&](const GradientList& part, const std::vector<int64_t>& objectives) {
    Run(on, part, objectives, gram, grads.objectives);
  });
}

template <AddGram* Run>
Tensor gram(const std::vector<Tensor>& grads, int64_t n) {
  const GradientList list(grads, n);
  Tensor out = allocate(grads[0], {n, n}, ScalarType::Double);
  fill_with_zeros(out);
  add_gram<Run>(grads[0], list, data_of<double>(out));
  return out;
}

template <AddGram* Run>
void gram_accumulate(Tensor gram, const std::vector<Tensor>& grads) {
  if (gram.dim() != 2 || gram.size(0) != gram.size(1) || gram.scalar_type() != ScalarType::Double ||
      !gram.is_contiguous()) {
    refuse("gram must be a contiguous float64 matrix [n, n], got " + text_of(gram.sizes()));
  }
  if (!grads.empty()) check_device("gram", gram, grads[0]);
  add_gram<Run>(gram, GradientList(grads, gram.size(0)), data_of<double>(gram));
}

}  // namespace pama
