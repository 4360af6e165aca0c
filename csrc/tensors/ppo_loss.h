// The op `ppo_loss` and its derivative.
#pragma once

#include "core/tokens/kl.h"
#include "core/tokens/ppo_loss.h"
#include "core/tokens/surrogate.h"
#include "tensors/tokens.h"

namespace pama {

struct PpoInputs {
  Sequences sequences;
  View logp, old_logp, advantages, mask, ref_logp;
  Clip clip;
  double kl_coef;
  Estimator estimator;
};

struct PpoLoss {
  PpoInputs inputs;
  Aggregate aggregate;
  double divisor;  // 0: that of the aggregate
  View normalizer, loss, statistics, row_weights;
};

struct PpoSlope {
  PpoInputs inputs;
  View grad, row_weights, out;
};

inline PpoInputs ppo_inputs(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages,
                            const OptionalTensor& mask, const OptionalTensor& ref_logp,
                            const OptionalTensor& cu_seqlens, double epsilon_low,
                            double epsilon_high, double kl_coef, int64_t estimator) {
  const TokenInputs tokens("logp", logp, mask, cu_seqlens, false);
  return {.sequences = tokens.sequences,
          .logp = tokens.first,
          .old_logp = tokens.alike("old_logp", old_logp),
          .advantages = tokens.alike("advantages", advantages),
          .mask = tokens.mask,
          .ref_logp = tokens.alike("ref_logp", ref_logp),
          .clip = clip_of(epsilon_low, epsilon_high),
          .kl_coef = kl_coef,
          .estimator = static_cast<Estimator>(estimator)};
}

template <void (*Run)(const Tensor& on, const PpoLoss&)>
std::tuple<Tensor, Tensor, Tensor> ppo_loss(const Tensor& logp, const Tensor& old_logp,
                                            const Tensor& advantages, const OptionalTensor& mask,
                                            const OptionalTensor& ref_logp,
                                            const OptionalTensor& normalizer,
                                            const OptionalTensor& cu_seqlens, double epsilon_low,
                                            double epsilon_high, int64_t aggregate, double divisor,
                                            double kl_coef, int64_t estimator) {
  const PpoInputs inputs = ppo_inputs(logp, old_logp, advantages, mask, ref_logp, cu_seqlens,
                                      epsilon_low, epsilon_high, kl_coef, estimator);
  const View divides = one_of("normalizer", normalizer, logp);
  const ScalarType dtype = result_dtype(&logp, &old_logp, &advantages, ref_logp);
  Tensor loss = allocate(logp, {}, dtype), statistics = allocate(logp, {4}, dtype);
  Tensor weights = allocate(logp, {inputs.sequences.count}, ScalarType::Double);
  Run(logp, {inputs, static_cast<Aggregate>(aggregate), divisor, divides, view_of(loss),
             view_of(statistics), by_sequence_of(weights)});
  return {loss, statistics, weights};
}

template <void (*Run)(const Tensor& on, const PpoSlope&)>
Tensor ppo_loss_backward(const Tensor& grad, const Tensor& row_weights, const Tensor& logp,
                         const Tensor& old_logp, const Tensor& advantages,
                         const OptionalTensor& mask, const OptionalTensor& ref_logp,
                         const OptionalTensor& cu_seqlens, double epsilon_low, double epsilon_high,
                         double kl_coef, int64_t estimator) {
  PpoInputs inputs = ppo_inputs(logp, old_logp, advantages, mask, ref_logp, cu_seqlens, epsilon_low,
                                epsilon_high, kl_coef, estimator);
  // A term that counts nothing is not read, so that it cannot bring a NaN either.
  if (kl_coef == 0) inputs.ref_logp.data = nullptr;
  const View of_loss = one_of("grad", grad, logp);
  check_reals("row_weights", row_weights, {inputs.sequences.count}, logp);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp));
  Run(logp, {inputs, of_loss, by_sequence_of(row_weights), view_of(out, cu_seqlens.has_value())});
  return out;
}

}  // namespace pama
