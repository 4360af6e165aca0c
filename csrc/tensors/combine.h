// The ops `combine` and `combine_into`.
#pragma once

#include "tensors/gradient_list.h"
#include "tensors/tokens.h"

namespace pama {

// Where combined gradients go: tensors in the layouts that the gradients are walked in.
struct Combination {
  std::vector<Tensor> tensors;
  std::vector<void*> data;
  std::vector<int64_t> moved;  // whose given tensor lies otherwise

  Combination(const GradientList& grads, const std::vector<Tensor>& like) {
    for (int64_t p = 0; p < grads.parameters; ++p) {
      tensors.push_back(grads.empty_like(like, p));
      data.push_back(tensors.back().mutable_data_ptr());
    }
  }

  // In the given tensors; in copies of theirs, `write_back` later, where the layouts differ.
  Combination(const GradientList& grads, const std::vector<Tensor>& like,
              const std::vector<Tensor>& out, bool accumulate)
      : tensors(out) {
    grads.check_out(like, out);
    check_apart(grads, out);
    for (int64_t p = 0; p < grads.parameters; ++p) {
      if (!grads.walks(like, p, out[p])) {
        tensors[p] = grads.empty_like(like, p);
        if (accumulate) torch::stable::copy_(tensors[p], out[p]);
        moved.push_back(p);
      }
      data.push_back(tensors[p].mutable_data_ptr());
    }
  }

  void write_back(const std::vector<Tensor>& out) const {
    for (const int64_t p : moved) {
      Tensor to = out[p];
      torch::stable::copy_(to, tensors[p]);
    }
  }
};

inline int64_t weights_in(const Tensor& weights, const std::vector<Tensor>& grads) {
  check_floating("weights", weights);
  if (weights.dim() != 1)
    refuse("weights must have the shape [n], got " + text_of(weights.sizes()));
  if (!grads.empty()) check_device("weights", weights, grads[0]);
  return weights.size(0);
}

// out[p] = Σ w_i g_ip, or that added to it, for outputs in the layouts that gradients are walked
// in.
using CombineGradients = void(const Tensor& on, const GradientList& grads, const View& weights,
                              const std::vector<void*>& out, bool accumulate);

template <CombineGradients* Run>
std::vector<Tensor> combine(const std::vector<Tensor>& tensors, const Tensor& weights) {
  const GradientList grads(tensors, weights_in(weights, tensors));
  const Combination to(grads, tensors);
  Run(weights, grads, view_of(weights), to.data, false);
  return to.tensors;
}

template <CombineGradients* Run>
void combine_into(const std::vector<Tensor>& out, const std::vector<Tensor>& tensors,
                  const Tensor& weights, bool accumulate) {
  const GradientList grads(tensors, weights_in(weights, tensors));
  const Combination to(grads, tensors, out, accumulate);
  Run(weights, grads, view_of(weights), to.data, accumulate);
  to.write_back(out);
}

}  // namespace pama
