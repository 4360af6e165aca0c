// Checks of the shapes and dtypes that kernels rely on to read no further than a tensor goes. The
// public functions check more (pama_ops/_checks.py); these are for callers of the ops themselves.
// One function an op, for both back ends.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/gram_problem.h"
#include "core/pama.h"
#include "tensors.h"

namespace pama {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// By no stream: where g++ finds libstdc++ only as an archive, the archive's streams and the locales
// of torch's libstdc++ do not know each other, and the first number that is written crashes.
inline std::string text_of(Sizes sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

inline std::string text_of(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

[[noreturn]] inline void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

inline bool same_sizes(Sizes a, Sizes b) {
  if (a.size() != b.size()) return false;
  for (size_t d = 0; d < a.size(); ++d) {
    if (a[d] != b[d]) return false;
  }
  return true;
}

inline bool is_floating(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  return dtype == ScalarType::Double || dtype == ScalarType::Float ||
         dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

inline void check_floating(const char* name, const Tensor& x) {
  if (!is_floating(x)) {
    refuse(std::string(name) + " must be float64, float32, float16 or bfloat16, got " +
           toString(x.scalar_type()));
  }
}

inline void check_device(const char* name, const Tensor& x, const Tensor& like) {
  if (x.get_device_index() != like.get_device_index()) {  // -1 of a CPU tensor
    refuse(std::string(name) + " must be on the device of the other arguments");
  }
}

// `x` has these sizes, and is where `like` is.
inline void check_sizes(const char* name, const Tensor& x, Sizes sizes, const Tensor& like) {
  if (!same_sizes(x.sizes(), sizes)) {
    refuse(std::string(name) + " must have the shape " + text_of(sizes) + ", got " +
           text_of(x.sizes()));
  }
  check_device(name, x, like);
}

inline void check_reals(const char* name, const Tensor& x, Sizes sizes, const Tensor& like) {
  check_floating(name, x);
  check_sizes(name, x, sizes, like);
}

inline void check_reals(const char* name, const std::optional<Tensor>& x, Sizes sizes,
                        const Tensor& like) {
  if (x) check_reals(name, *x, sizes, like);
}

inline void check_one(const char* name, const std::optional<Tensor>& x, const Tensor& like) {
  if (!x) return;
  if (x->numel() != 1)
    refuse(std::string(name) + " must hold one number, got " + text_of(x->sizes()));
  dtype_of(*x, name);
  check_device(name, *x, like);
}

// --- tokens --------------------------------------------------------------------------------------

inline void check_mask(const std::optional<Tensor>& mask, Sizes sizes, const Tensor& like) {
  if (!mask) return;
  dtype_of(*mask, "mask");
  check_sizes("mask", *mask, sizes, like);
}

// `x` is [N, B, T] or [B, T] (`objectives` false), ragged without the B, and the mask fits it.
inline void check_tokens(const char* name, const Tensor& x, const std::optional<Tensor>& mask,
                         const std::optional<Tensor>& cu_seqlens, bool objectives = true) {
  check_floating(name, x);
  const int64_t dims = (objectives ? 3 : 2) - (cu_seqlens ? 1 : 0);
  const Sizes sizes = x.sizes();
  if (x.dim() != dims || (objectives && sizes[0] == 0)) {
    refuse(std::string(name) + " must have the shape [" + (objectives ? "N, " : "") +
           (cu_seqlens ? "total]" : "B, T]") + (objectives ? " with N >= 1" : "") + ", got " +
           text_of(sizes));
  }
  check_mask(mask, objectives ? Sizes(sizes.data() + 1, sizes.size() - 1) : sizes, x);
  if (!cu_seqlens) return;
  const ScalarType dtype = cu_seqlens->scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long) {
    refuse(std::string("cu_seqlens must be int32 or int64, got ") + toString(dtype));
  }
  if (cu_seqlens->dim() != 1 || cu_seqlens->size(0) == 0) {
    refuse("cu_seqlens must have the shape [B + 1], got " + text_of(cu_seqlens->sizes()));
  }
  check_device("cu_seqlens", *cu_seqlens, x);
}

// The number of sequences of an array that `check_tokens` passed.
inline int64_t sequences_in(const Tensor& x, const std::optional<Tensor>& cu_seqlens) {
  return cu_seqlens ? cu_seqlens->size(0) - 1 : x.size(x.dim() - 2);
}

inline void check_gae(const Tensor& rewards, const Tensor& values,
                      const std::optional<Tensor>& mask, const std::optional<Tensor>& last_values,
                      const std::optional<Tensor>& cu_seqlens) {
  check_tokens("rewards", rewards, mask, cu_seqlens);
  check_reals("values", values, rewards.sizes(), rewards);
  check_reals("last_values", last_values, {rewards.size(0), sequences_in(rewards, cu_seqlens)},
              rewards);
}

inline void check_moments(const Tensor& moments, const Tensor& x) {
  check_floating("moments", moments);
  const int64_t steps = moments.dim() > 0 ? std::max<int64_t>(moments.size(0), 1) : 1;
  check_sizes("moments", moments, {steps, x.size(0), 3}, x);
}

inline void check_rows(const char* name, const Tensor& x) {
  check_floating(name, x);
  if (x.dim() != 1 && x.dim() != 2) {
    refuse(std::string(name) + " must have 1 or 2 dimensions, got " + text_of(x.sizes()));
  }
}

inline void check_group_normalize(const Tensor& rewards, int64_t group_size) {
  check_rows("rewards", rewards);
  const int64_t length = rewards.size(rewards.dim() - 1);
  if (group_size < 1 || length % group_size != 0) {
    refuse("group_size must be positive and divide " + std::to_string(length) + ", got " +
           std::to_string(group_size));
  }
}

inline void check_kl(const std::optional<Tensor>& grad, const Tensor& logp, const Tensor& ref_logp,
                     const std::optional<Tensor>& mask) {
  check_rows("logp", logp);
  check_reals("ref_logp", ref_logp, logp.sizes(), logp);
  check_reals("grad", grad, logp.sizes(), logp);
  check_mask(mask, logp.sizes(), logp);
}

inline void check_pama(const Tensor& advantages, const std::optional<Tensor>& mask,
                       const std::optional<Tensor>& log_ratio,
                       const std::optional<Tensor>& preference,
                       const std::optional<Tensor>& cu_seqlens, int64_t reduction) {
  check_tokens("advantages", advantages, mask, cu_seqlens);
  const Sizes sizes = advantages.sizes();
  check_reals("log_ratio", log_ratio, Sizes(sizes.data() + 1, sizes.size() - 1), advantages);
  if (reduction < 0 || reduction > static_cast<int64_t>(Reduction::kBatch)) {
    refuse("reduction must be 0, 1, 2 or 3, got " + std::to_string(reduction));
  }
  if (by_sequence(preference)) {
    const int64_t count = sequences_in(advantages, cu_seqlens);
    check_reals("preference", preference, {advantages.size(0), count}, advantages);
  } else {
    check_reals("preference", preference, {advantages.size(0)}, advantages);
  }
}

inline void check_pama_combine(const Tensor& advantages, const Tensor& statistics,
                               int64_t reduction) {
  const int64_t n = advantages.size(0);
  check_sizes("statistics", statistics, {statistics_size(n, static_cast<Reduction>(reduction))},
              advantages);
  if (statistics.scalar_type() != ScalarType::Double || !statistics.is_contiguous()) {
    refuse("statistics must be contiguous float64, as pama_statistics returns them");
  }
}

inline void check_ppo(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages,
                      const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
                      const std::optional<Tensor>& normalizer,
                      const std::optional<Tensor>& cu_seqlens) {
  check_tokens("logp", logp, mask, cu_seqlens, false);
  check_reals("old_logp", old_logp, logp.sizes(), logp);
  check_reals("advantages", advantages, logp.sizes(), logp);
  check_reals("ref_logp", ref_logp, logp.sizes(), logp);
  check_one("normalizer", normalizer, logp);
}

inline void check_ppo_backward(const Tensor& grad, const Tensor& row_weights, const Tensor& logp,
                               const std::optional<Tensor>& cu_seqlens) {
  check_one("grad", grad, logp);
  check_reals("row_weights", row_weights, {sequences_of(logp, cu_seqlens, false).count}, logp);
}

inline void check_value_loss(const Tensor& values, const Tensor& returns,
                             const std::optional<Tensor>& mask,
                             const std::optional<Tensor>& old_values,
                             const std::optional<Tensor>& normalizer,
                             const std::optional<Tensor>& cu_seqlens) {
  check_tokens("values", values, mask, cu_seqlens);
  check_reals("returns", returns, values.sizes(), values);
  check_reals("old_values", old_values, values.sizes(), values);
  check_one("normalizer", normalizer, values);
}

inline void check_value_backward(const Tensor& grad, const Tensor& scale, const Tensor& values) {
  check_reals("grad", grad, {values.size(0)}, values);
  check_one("scale", scale, values);
}

// --- gradients -----------------------------------------------------------------------------------

// The number of parameters of a flat list of n objectives' gradients.
inline int64_t parameters_in(const std::vector<Tensor>& grads, int64_t n) {
  const int64_t count = static_cast<int64_t>(grads.size());
  if (n < 1 || count == 0 || count % n != 0) {
    refuse("grads must hold as many tensors for each of " + std::to_string(n) +
           " objectives, got " + std::to_string(count));
  }
  return count / n;
}

inline void check_gram_out(const Tensor& gram, const std::vector<Tensor>& grads) {
  if (gram.dim() != 2 || gram.size(0) != gram.size(1) || gram.scalar_type() != ScalarType::Double ||
      !gram.is_contiguous()) {
    refuse("gram must be a contiguous float64 matrix [n, n], got " + text_of(gram.sizes()));
  }
  if (!grads.empty()) check_device("gram", gram, grads[0]);
}

inline void check_combine(const std::vector<Tensor>& grads, const Tensor& weights) {
  check_floating("weights", weights);
  if (weights.dim() != 1)
    refuse("weights must have the shape [n], got " + text_of(weights.sizes()));
  if (!grads.empty()) check_device("weights", weights, grads[0]);
}

// --- small problems ------------------------------------------------------------------------------

// A preference, or what an op takes in its place, for each matrix or for all.
inline void check_vector(const char* name, const Tensor& x, int64_t size, const Tensor& like,
                         int64_t like_dims) {
  const Sizes sizes = x.sizes(), lead(like.sizes().data(), like.dim() - like_dims);
  const bool scalar = size == 1 && sizes.size() == 0;
  const bool alone = sizes.size() == 1 && sizes[0] == size;
  const bool each = sizes.size() == lead.size() + 1 && sizes[lead.size()] == size &&
                    same_sizes(Sizes(sizes.data(), lead.size()), lead);
  if (!scalar && !alone && !each) {
    refuse(std::string(name) + " must have the shape [" + std::to_string(size) + "], or that for " +
           "each matrix, got " + text_of(sizes));
  }
  check_device(name, x, like);
}

inline void check_matrices(const Tensor& gram) {
  check_floating("gram", gram);
  const int64_t dims = gram.dim();
  if (dims < 2 || gram.size(dims - 1) != gram.size(dims - 2) || gram.size(dims - 1) == 0) {
    refuse("gram must have the shape [..., n, n] with n >= 1, got " + text_of(gram.sizes()));
  }
}

// What `Solver` (core/solvers.h) asks for.
template <class Solver>
void check_problem(const Tensor& gram, const std::optional<Tensor>& vector,
                   const std::vector<double>& options, const std::optional<double>& rtol) {
  check_matrices(gram);
  if (static_cast<int64_t>(options.size()) != Solver::kOptions) {
    refuse("options must hold as many numbers as the op takes, " +
           std::to_string(Solver::kOptions) + ", got " + std::to_string(options.size()));
  }
  if (rtol && !(*rtol >= 0 && *rtol <= DBL_MAX)) {
    refuse("rtol must be nonnegative and finite, got " + text_of(*rtol));
  }
  if (!vector) {
    if (Solver::kTakes == Takes::kVector) refuse("the op takes a vector beside gram, got None");
    return;
  }
  const int64_t n = gram.size(gram.dim() - 1);
  switch (Solver::kTakes) {
    case Takes::kNothing:
      refuse("the op takes no vector beside gram, got a tensor");
    case Takes::kPreference:  // [n], or one for each matrix
      if (vector->dim() <= 1) return check_reals("preference", *vector, {n}, gram);
      check_floating("preference", *vector);
      return check_vector("preference", *vector, n, gram, 2);
    case Takes::kVector:
      if (vector->scalar_type() != ScalarType::Long)
        check_floating("the vector beside gram", *vector);
      return check_vector("the vector beside gram", *vector, Solver::vector(n), gram, 2);
  }
}

inline void check_values(const Tensor& values, const std::optional<Tensor>& preference) {
  check_floating("values", values);
  if (values.dim() == 0 || values.size(values.dim() - 1) == 0) {
    refuse("values must have the shape [..., n] with n >= 1, got " + text_of(values.sizes()));
  }
  check_reals("preference", preference, {values.size(values.dim() - 1)}, values);
}

}  // namespace pama
