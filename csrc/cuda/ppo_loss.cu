// The clipped policy loss: a block sums a sequence's chunk, then one block adds up the sequences in
// a fixed order and writes the loss, its statistics and what a token of each sequence counts. The
// derivative is element by element.
#include "core/kl.h"
#include "core/normalizer.h"
#include "core/ppo_loss.h"
#include "core/surrogate.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/tokens.cuh"

namespace pama {
namespace {

struct PpoArgs {
  Sequences sequences;
  int64_t chunks;
  View logp, old_logp, advantages, mask, ref_logp;
  Clip clip;
  double kl_coef;
  Estimator estimator;
  PpoSums* partials;        // [sequence][chunk]
  View grad, weights, out;  // of the derivative
};

struct PpoTokens {
  double log_ratio[kTokens], advantage[kTokens], log_ref_ratio[kTokens];
};

__device__ __forceinline__ PpoTokens ppo_load(const PpoArgs& args, const Part& part,
                                              const Tokens& tokens) {
  double logp[kTokens];
  PpoTokens out;
  const auto take = [&](const View& view, double* to) {
    const int64_t first = args.sequences.first(view, 0, part.sequence);
    load_tokens(view, first + tokens.first * view.token, tokens.unmasked, to);
  };
  take(args.logp, logp);
  take(args.old_logp, out.log_ratio);
  take(args.advantages, out.advantage);
  if (args.ref_logp.data) take(args.ref_logp, out.log_ref_ratio);
#pragma unroll
  for (int k = 0; k < kTokens; ++k) {
    out.log_ratio[k] = logp[k] - out.log_ratio[k];
    out.log_ref_ratio[k] = args.ref_logp.data ? logp[k] - out.log_ref_ratio[k] : 0;
  }
  return out;
}

__global__ void __launch_bounds__(kBlock, 2) ppo_loss_kernel(const __grid_constant__ PpoArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  PpoSums sums{};
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(args, part, tokens);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      if (!tokens.unmasked[k]) continue;
      const Surrogate token = surrogate(args.clip, x.log_ratio[k], x.advantage[k]);
      const double kl = args.ref_logp.data ? kl_estimate(args.estimator, x.log_ref_ratio[k]) : 0;
      sums = ppo_join(sums, {1, token.value, token.flat, token.approx_kl, token.ratio, kl});
    }
  });
  sums = block_reduce(sums, [](const PpoSums& a, const PpoSums& b) { return ppo_join(a, b); });
  if (threadIdx.x == 0) args.partials[part.sequence * args.chunks + part.chunk] = sums;
}

struct PpoFinishArgs {
  const PpoSums* partials;
  int64_t sequences, chunks;
  Aggregate aggregate;
  View normalizer, loss, statistics, weights;
  double divisor, kl_coef;
};

__device__ __forceinline__ PpoSums ppo_sequence(const PpoFinishArgs& args, int64_t b) {
  PpoSums sums{};
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
    sums = ppo_join(sums, args.partials[b * args.chunks + chunk]);
  }
  return sums;
}

// One block.
__global__ void __launch_bounds__(kBlock)
    ppo_finish_kernel(const __grid_constant__ PpoFinishArgs args) {
  wait_for_inputs();
  PpoTotal total{};
  for (int64_t b = threadIdx.x; b < args.sequences; b += kBlock) {
    total = ppo_join(total, ppo_total(args.aggregate, args.kl_coef, ppo_sequence(args, b)));
  }
  total = block_reduce(total, [](const PpoTotal& a, const PpoTotal& b) { return ppo_join(a, b); });
  const double divisor =
      divisor_of(args.normalizer, args.divisor, ppo_divisor(args.aggregate, total));
  if (threadIdx.x == 0) ppo_store(total, divisor, args.loss, args.statistics);
  for (int64_t b = threadIdx.x; b < args.sequences; b += kBlock) {
    const double tokens = ppo_sequence(args, b).tokens;
    store(args.weights, b, token_weight(args.aggregate, tokens, divisor));
  }
}

__global__ void __launch_bounds__(kBlock)
    ppo_backward_kernel(const __grid_constant__ PpoArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const double weight = load(args.grad, 0) * load(args.weights, part.sequence * args.weights.token);
  const double kl_weight = weight * args.kl_coef;
  const int64_t to = s.first(args.out, 0, part.sequence);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    const PpoTokens x = ppo_load(args, part, tokens);
    double slope[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      slope[k] = -weight * surrogate(args.clip, x.log_ratio[k], x.advantage[k]).slope;
      if (args.ref_logp.data) slope[k] += kl_weight * kl_slope(args.estimator, x.log_ref_ratio[k]);
    }
    store_tokens(args.out, to + tokens.first, tokens, slope);
  });
}

// --- launching ----------------------------------------------------------------------------------

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
