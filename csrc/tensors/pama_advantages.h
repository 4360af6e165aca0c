// The ops that `pama_advantages` is made of: `pama_statistics` and `pama_combine`.
#pragma once

#include "core/tokens/active_part.h"
#include "core/tokens/pama_statistics.h"
#include "tensors/tokens.h"

namespace pama {

struct PamaInputs {
  Sequences sequences;
  View advantages, mask, log_ratio, preference;
  ActivePart rule;
  Reduction reduction;
  bool by_sequence;    // whether each sequence has a preference of its own, and may drop objectives
  double* statistics;  // core/tokens/pama_statistics.h; as gathered, the result of pama_statistics
};

struct PamaCombination {
  PamaInputs inputs;
  View advantages, weights, optimum;
  bool* active;
};

inline PamaInputs pama_inputs(const TokenInputs& tokens, const Tensor& advantages,
                              const OptionalTensor& log_ratio, const OptionalTensor& preference,
                              int64_t reduction, double epsilon_low, double epsilon_high, bool noon,
                              bool ratio_weighted) {
  PamaInputs inputs{.sequences = tokens.sequences,
                    .advantages = tokens.first,
                    .mask = tokens.mask,
                    .log_ratio = tokens.of_objective("log_ratio", log_ratio),
                    .preference = {},
                    .rule = active_part_rule(epsilon_low, epsilon_high, noon, ratio_weighted),
                    .reduction = static_cast<Reduction>(reduction),
                    .by_sequence = preference && preference->dim() == 2,
                    .statistics = nullptr};
  if (reduction < 0 || reduction > static_cast<int64_t>(Reduction::kBatch)) {
    refuse("reduction must be 0, 1, 2 or 3, got " + std::to_string(reduction));
  }
  if (inputs.by_sequence) {
    inputs.preference = tokens.of_sequence("preference", preference);
    inputs.sequences.count = tokens.rows;  // each has its weights, tokens or none
  } else if (preference) {
    check_reals("preference", *preference, {advantages.size(0)}, advantages);
    inputs.preference = view_of(preference);
    inputs.preference.objective = inputs.preference.token;
  }
  return inputs;
}

template <void (*Run)(const Tensor& on, const PamaInputs&)>
Tensor pama_statistics(const Tensor& advantages, const OptionalTensor& mask,
                       const OptionalTensor& log_ratio, const OptionalTensor& preference,
                       const OptionalTensor& cu_seqlens, int64_t reduction, double epsilon_low,
                       double epsilon_high, bool noon, bool ratio_weighted) {
  const TokenInputs tokens("advantages", advantages, mask, cu_seqlens);
  PamaInputs inputs = pama_inputs(tokens, advantages, log_ratio, preference, reduction, epsilon_low,
                                  epsilon_high, noon, ratio_weighted);
  const int64_t size =
      gathered_size(inputs.sequences.objectives, inputs.reduction, inputs.by_sequence);
  Tensor statistics = allocate(advantages, {size}, ScalarType::Double);
  inputs.statistics = data_of<double>(statistics);
  Run(advantages, inputs);
  return statistics;
}

template <void (*Run)(const Tensor& on, const PamaCombination&)>
std::tuple<Tensor, Tensor, Tensor, Tensor> pama_combine(
    const Tensor& advantages, const OptionalTensor& mask, const OptionalTensor& log_ratio,
    const OptionalTensor& preference, const OptionalTensor& cu_seqlens, const Tensor& statistics,
    int64_t reduction, double epsilon_low, double epsilon_high, bool noon, bool ratio_weighted) {
  const TokenInputs tokens("advantages", advantages, mask, cu_seqlens);
  PamaInputs inputs = pama_inputs(tokens, advantages, log_ratio, preference, reduction, epsilon_low,
                                  epsilon_high, noon, ratio_weighted);
  const int64_t n = inputs.sequences.objectives;
  check_sizes("statistics", statistics, {statistics_size(n, inputs.reduction)}, advantages);
  if (statistics.scalar_type() != ScalarType::Double || !statistics.is_contiguous()) {
    refuse("statistics must be contiguous float64, as pama_statistics returns them");
  }
  inputs.statistics = static_cast<double*>(const_cast<void*>(statistics.const_data_ptr()));
  const ScalarType dtype = result_dtype(&advantages, log_ratio);
  const bool gram = inputs.reduction == Reduction::kGram;
  const Sizes tokens_shape = tokens.sizes_of_objective();
  std::vector<int64_t> shape;  // of the problems that weights are chosen for
  if (inputs.reduction == Reduction::kToken) {
    shape.assign(tokens_shape.begin(), tokens_shape.end());
  } else if (inputs.reduction == Reduction::kSequence || inputs.by_sequence) {
    shape = {tokens.rows};
  }
  Tensor combined = allocate(advantages, tokens_shape, dtype);
  Tensor optimum = allocate(advantages, gram ? std::vector<int64_t>{0} : shape, dtype);
  shape.insert(shape.begin(), n);
  Tensor weights = allocate(advantages, shape, dtype);
  Tensor active = allocate(advantages, {n}, ScalarType::Bool);
  // There may be rows without tokens, which nobody walks.
  if (inputs.reduction == Reduction::kSequence && inputs.sequences.count == 0) {
    for (Tensor* x : {&weights, &optimum}) fill_with_zeros(*x);
  }
  Run(advantages, {inputs, tokens.view(combined), tokens.view(weights), tokens.view(optimum),
                   data_of<bool>(active)});
  return {combined, weights, optimum, active};
}

}  // namespace pama
