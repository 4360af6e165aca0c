#include "cuda/launch.h"
#include "kernels/ppo_loss.cuh"

namespace pama {
namespace {

PpoArgs arguments(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages,
                  const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
                  const std::optional<Tensor>& cu_seqlens, double low, double high, double kl_coef,
                  int64_t estimator) {
  const bool ragged = cu_seqlens.has_value();
  const Sequences sequences = sequences_of(logp, cu_seqlens, false);
  return {.sequences = sequences,
          .chunks = chunks_of(sequences),
          .logp = view_of(logp, ragged),
          .old_logp = view_of(old_logp, ragged),
          .advantages = view_of(advantages, ragged),
          .mask = view_of(mask, ragged),
          .ref_logp = view_of(ref_logp, ragged),
          .clip = clip_of(low, high),
          .kl_coef = kl_coef,
          .estimator = static_cast<Estimator>(estimator),
          .partials = nullptr,
          .grad = {},
          .weights = {},
          .out = {}};
}

std::tuple<Tensor, Tensor, Tensor> ppo_loss(
    const Tensor& logp, const Tensor& old_logp, const Tensor& advantages,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
    const std::optional<Tensor>& normalizer, const std::optional<Tensor>& cu_seqlens, double low,
    double high, int64_t aggregate, double divisor, double kl_coef, int64_t estimator) {
  check_ppo(logp, old_logp, advantages, mask, ref_logp, normalizer, cu_seqlens);
  const Launcher launch(logp);
  PpoArgs args = arguments(logp, old_logp, advantages, mask, ref_logp, cu_seqlens, low, high,
                           kl_coef, estimator);
  const int64_t count = args.sequences.count;
  Tensor partials = allocate(logp, {count, args.chunks, 6}, ScalarType::Double);
  static_assert(sizeof(PpoSums) == 6 * sizeof(double));
  args.partials = static_cast<PpoSums*>(partials.mutable_data_ptr());
  launch(ppo_loss_kernel, count * args.chunks, kBlock, 0, args);

  const ScalarType dtype = result_dtype(&logp, &old_logp, &advantages, ref_logp);
  Tensor loss = allocate(logp, {}, dtype), statistics = allocate(logp, {4}, dtype);
  Tensor weights = allocate(logp, {count}, ScalarType::Double);
  const PpoFinishArgs finish{.partials = args.partials,
                             .sequences = count,
                             .chunks = args.chunks,
                             .aggregate = static_cast<Aggregate>(aggregate),
                             .normalizer = view_of(normalizer),
                             .loss = view_of(loss),
                             .statistics = view_of(statistics),
                             .weights = view_of(weights),
                             .divisor = divisor,
                             .kl_coef = kl_coef};
  launch(ppo_finish_kernel, 1, kBlock, 0, finish);
  return {loss, statistics, weights};
}

Tensor ppo_loss_backward(const Tensor& grad, const Tensor& row_weights, const Tensor& logp,
                         const Tensor& old_logp, const Tensor& advantages,
                         const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
                         const std::optional<Tensor>& cu_seqlens, double low, double high,
                         double kl_coef, int64_t estimator) {
  check_ppo(logp, old_logp, advantages, mask, ref_logp, std::nullopt, cu_seqlens);
  check_ppo_backward(grad, row_weights, logp, cu_seqlens);
  const Launcher launch(logp);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp));
  // A term that counts nothing is not read, so that it cannot bring a NaN either.
  const std::optional<Tensor>& ref = kl_coef != 0 ? ref_logp : std::nullopt;
  PpoArgs args =
      arguments(logp, old_logp, advantages, mask, ref, cu_seqlens, low, high, kl_coef, estimator);
  args.grad = view_of(grad);
  args.weights = view_of(row_weights);
  args.out = view_of(out, cu_seqlens.has_value());
  launch(ppo_backward_kernel, args.sequences.count * args.chunks, kBlock, 0, args);
  return out;
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("ppo_loss", TORCH_BOX(&ppo_loss));
  m.impl("ppo_loss_backward", TORCH_BOX(&ppo_loss_backward));
}

}  // namespace
}  // namespace pama
