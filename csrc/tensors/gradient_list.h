// Gradients as kernels walk them: one run of elements a parameter and objective, where they lie.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <vector>

#include "tensors/overlap.h"
#include "tensors/tensor.h"

namespace pama {

// Whether the elements of x fill a run of memory in some order of its dimensions.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous()) return true;
  int64_t run = 1;
  for (const auto [step, most] : steps_of(x, 1)) {
    if (step != run) return false;
    run *= most + 1;
  }
  return true;
}

// Whether walking a and b, of equal sizes and both dense, meets their elements in the same order.
inline bool same_order(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), left = a.strides(), right = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] > 1 && left[d] != right[d]) return false;
  }
  return true;
}

// The number of parameters of a flat list of n objectives' gradients.
inline int64_t parameters_in(const std::vector<Tensor>& grads, int64_t n) {
  const int64_t count = static_cast<int64_t>(grads.size());
  if (n < 1 || count == 0 || count % n != 0) {
    refuse("grads must hold as many tensors for each of " + std::to_string(n) +
           " objectives, got " + std::to_string(count));
  }
  return count / n;
}

// The n x P gradients of a flat list (objective by objective). An empty tensor among others that
// are not stands for a missing one.
class GradientList {
 public:
  GradientList(const std::vector<Tensor>& grads, int64_t n)
      : objectives(n),
        parameters(parameters_in(grads, n)),
        data(grads.size(), nullptr),
        size(parameters, 0),
        dtype(parameters, DType::kFloat),
        model(parameters, 0),
        in_place_(parameters, true) {
    for (int64_t p = 0; p < parameters; ++p) place(grads, p);
  }

  // Of some of the objectives and parameters of another list, which must outlive it.
  GradientList(const GradientList& from, const std::vector<int64_t>& which,
               const std::vector<int64_t>& of_which)
      : objectives(static_cast<int64_t>(which.size())),
        parameters(static_cast<int64_t>(of_which.size())) {
    for (const int64_t p : of_which) {
      size.push_back(from.size[p]);
      dtype.push_back(from.dtype[p]);
      model.push_back(from.model[p]);
      in_place_.push_back(from.in_place_[p]);
    }
    for (const int64_t i : which) {
      for (const int64_t p : of_which) data.push_back(from.at(i, p));
    }
  }

  // What combined gradients may be written to.
  void check_out(const std::vector<Tensor>& grads, const std::vector<Tensor>& out) const {
    if (static_cast<int64_t>(out.size()) != parameters) {
      refuse("out must have as many tensors as grads[0], " + std::to_string(parameters) + ", got " +
             std::to_string(out.size()));
    }
    for (int64_t p = 0; p < parameters; ++p) {
      check_alike("out[" + std::to_string(p) + "]", out[p], named(model[p]), grads[model[p]]);
    }
  }

  int64_t objectives, parameters;
  std::vector<const void*> data;  // [objective][parameter], null: missing
  std::vector<int64_t> size;      // elements of each parameter's gradient
  std::vector<DType> dtype;
  std::vector<int64_t> model;  // index in the flat list of a tensor whose layout is walked
  std::vector<Tensor> copies;  // of gradients whose layouts differ among the objectives

  const void* at(int64_t objective, int64_t parameter) const {
    return data[objective * parameters + parameter];
  }

  // Whether every objective has a gradient of parameter p.
  bool complete(int64_t p) const {
    for (int64_t i = 0; i < objectives; ++i) {
      if (!at(i, p)) return false;
    }
    return true;
  }

  // A tensor in the layout that parameter p is walked in.
  Tensor empty_like(const std::vector<Tensor>& grads, int64_t p) const {
    const Tensor& like = grads[model[p]];
    if (in_place_[p] && !like.is_contiguous()) return torch::stable::empty_like(like);
    return allocate(like, like.sizes(), like.scalar_type());
  }

  // Whether x lies in that layout.
  bool walks(const std::vector<Tensor>& grads, int64_t p, const Tensor& x) const {
    const Tensor& like = grads[model[p]];
    if (!in_place_[p] || like.is_contiguous()) return x.is_contiguous();
    return is_dense(x) && same_order(like, x);
  }

 private:
  std::string named(int64_t k) const {
    return "grads[" + std::to_string(k / parameters) + "][" + std::to_string(k % parameters) + "]";
  }

  // In the words of `alike` in pama_ops/_gradient_lists.py.
  static void check_alike(const std::string& at, const Tensor& x, const std::string& of,
                          const Tensor& like) {
    if (!same_sizes(x.sizes(), like.sizes())) {
      refuse(at + " must have the shape " + text_of(like.sizes()) + " of " + of + ", got " +
             text_of(x.sizes()));
    }
    if (x.scalar_type() != like.scalar_type()) {
      refuse(at + " must have the dtype " + text_of(like.scalar_type()) + " of " + of + ", got " +
             text_of(x.scalar_type()));
    }
    check_device(at.c_str(), x, like, of.c_str());
  }

  void place(const std::vector<Tensor>& grads, int64_t p) {
    const int64_t count = static_cast<int64_t>(grads.size());
    model[p] = p;
    for (int64_t k = p; k < count && size[p] == 0; k += parameters) {
      size[p] = grads[k].numel();
      if (size[p] > 0) model[p] = k;
    }
    const Tensor& first = grads[model[p]];
    if (!is_floating(first.scalar_type())) check_floating(named(model[p]).c_str(), first);
    if (first.get_device_index() != grads[0].get_device_index()) {
      check_device(named(model[p]).c_str(), first, grads[0], "the others");
    }
    dtype[p] = dtype_of(first);
    if (size[p] == 0) return;
    const bool contiguous = first.is_contiguous(), dense = contiguous || is_dense(first);
    // Asked once: lists hold thousands of small tensors, and every question crosses torch's C ABI.
    const ScalarType kind = first.scalar_type();
    const Sizes sizes = first.sizes();
    const auto device = first.get_device_index();
    bool in_place = true;
    for (int64_t k = p; k < count; k += parameters) {
      const Tensor& x = grads[k];
      const bool alike =
          x.scalar_type() == kind && x.get_device_index() == device && same_sizes(x.sizes(), sizes);
      if (!alike && x.numel() == 0) continue;
      if (!alike) check_alike(named(k), x, named(model[p]), first);
      in_place &= contiguous ? x.is_contiguous() : dense && same_order(first, x);
      data[k] = x.const_data_ptr();
    }
    in_place_[p] = in_place;
    for (int64_t k = p; k < count && !in_place; k += parameters) {
      if (!data[k]) continue;
      copies.push_back(torch::stable::contiguous(grads[k]));
      data[k] = copies.back().const_data_ptr();
    }
  }

  std::vector<bool> in_place_;  // not through copies
};

// Calls body(part, objectives) with the gradients of those parameters that the same objectives have
// one of. A missing gradient takes part in no product, so that no 0 · ∞ arises.
template <class Body>
void for_present(const GradientList& grads, const Body& body) {
  std::vector<int64_t> all(grads.objectives), complete;
  std::iota(all.begin(), all.end(), 0);
  std::map<std::vector<int64_t>, std::vector<int64_t>> parameters_of;
  for (int64_t p = 0; p < grads.parameters; ++p) {
    if (grads.complete(p)) {
      complete.push_back(p);
      continue;
    }
    std::vector<int64_t> having;
    std::copy_if(all.begin(), all.end(), std::back_inserter(having),
                 [&](int64_t i) { return grads.at(i, p) != nullptr; });
    if (!having.empty()) parameters_of[having].push_back(p);
  }
  if (parameters_of.empty()) return body(grads, all);
  if (!complete.empty()) parameters_of[all] = complete;
  for (const auto& [having, parameters] : parameters_of) {
    body(GradientList(grads, having, parameters), having);
  }
}

// No element is written twice, nor read after it has been written: a tensor of `out` shares no
// memory with itself, with another one or with a gradient, but that it may be one whole gradient
// of its own parameter. Of gradients that are read from copies, and of tensors with holes, which
// are written from copies once all is read, it is not asked whether they meet each other.
inline void check_apart(const GradientList& grads, const std::vector<Tensor>& out) {
  const auto named = [](int64_t p) { return "out[" + std::to_string(p) + "]"; };
  std::vector<Span> dense, all;
  for (int64_t p = 0; p < grads.parameters; ++p) {
    const Tensor& x = out[p];
    if (x.numel() == 0) continue;
    if (overlaps_itself(x)) {
      refuse(named(p) + " must have memory for each element, got one that shares some: clone() it");
    }
    all.push_back(span_of(x, size_of(grads.dtype[p]), p));
    if (is_dense(x)) dense.push_back(all.back());
  }
  if (const auto pair = sharing(all, out)) {
    refuse(named(pair->second) + " must share no memory with " + named(pair->first) + ", but does");
  }
  std::sort(dense.begin(), dense.end());
  for (int64_t k = 0; !dense.empty() && k < static_cast<int64_t>(grads.data.size()); ++k) {
    if (!grads.data[k]) continue;
    const int64_t p = k % grads.parameters, i = k / grads.parameters;
    const auto first = reinterpret_cast<uintptr_t>(grads.data[k]);
    const int64_t unit = size_of(grads.dtype[p]);
    const Span run{first, first + grads.size[p] * unit, unit, p};
    const auto at = std::partition_point(dense.begin(), dense.end(),
                                         [&](const Span& x) { return x.end <= run.first; });
    if (at == dense.end() || at->first >= run.end) continue;
    if (at->which == p && at->first == run.first) continue;
    refuse(named(at->which) + " must be a whole gradient of its parameter or share no memory " +
           "with grads, but shares some with grads[" + std::to_string(i) + "][" +
           std::to_string(p) + "]");
  }
}

}  // namespace pama
