// The ops `combine` and `combine_into`.
#pragma once

#include "tensors/gradient_list.h"
#include "tensors/tokens.h"

namespace pama {

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

inline std::vector<void*> data_of(const std::vector<Tensor>& tensors) {
  std::vector<void*> data;
  for (const Tensor& x : tensors) data.push_back(x.mutable_data_ptr());
  return data;
}

template <CombineGradients* Run>
std::vector<Tensor> combine(const std::vector<Tensor>& tensors, const Tensor& weights) {
  const GradientList grads(tensors, weights_in(weights, tensors));
  std::vector<Tensor> out;
  for (int64_t p = 0; p < grads.parameters; ++p) out.push_back(grads.empty_like(tensors, p));
  Run(weights, grads, view_of(weights), data_of(out), false);
  return out;
}

// In the given tensors; by way of others where those do not lie as gradients are walked.
template <CombineGradients* Run>
void combine_into(const std::vector<Tensor>& out, const std::vector<Tensor>& tensors,
                  const Tensor& weights, bool accumulate) {
  const GradientList grads(tensors, weights_in(weights, tensors));
  grads.check_out(tensors, out);
  check_apart(grads, out);
  std::vector<Tensor> walked = out;
  std::vector<int64_t> moved;
  for (int64_t p = 0; p < grads.parameters; ++p) {
    if (grads.walks(tensors, p, out[p])) continue;
    moved.push_back(p);
    walked[p] = grads.empty_like(tensors, p);
    if (accumulate) torch::stable::copy_(walked[p], out[p]);
  }
  Run(weights, grads, view_of(weights), data_of(walked), accumulate);
  for (const int64_t p : moved) {
    Tensor to = out[p];
    torch::stable::copy_(to, walked[p]);
  }
}

}  // namespace pama
