// The clipped policy loss with its statistics, and its derivative, each in one pass. A thread takes
// whole sequences; the sums of sequences are added in order, so that bits do not depend on threads.
#include "core/ppo_loss.h"

#include "core/kl.h"
#include "core/surrogate.h"
#include "cpu/normalizer.h"
#include "cpu/rows.h"

namespace pama {
namespace {

struct Ppo {
  Sequences sequences;
  View logp, old_logp, advantages, mask, ref_logp, out;  // `out` only for the derivative
  Clip clip;
  double kl_coef;
  Estimator estimator;
};

struct Tile {
  rows::Selection selection;
  alignas(64) double logp[kTile], log_ratio[kTile], advantage[kTile], log_ref_ratio[kTile];
};

PAMA_INLINE void gather(const Ppo& ppo, int64_t b, int64_t t, int64_t size, Tile& tile) {
  const auto first = [&](const View& view) {
    return ppo.sequences.first(view, 0, b) + t * view.token;
  };
  rows::select(ppo.mask, first(ppo.mask), std::min(kTile, size - t), tile.selection);
  const int64_t count = tile.selection.count;
  rows::gather(ppo.logp, first(ppo.logp), tile.selection, tile.logp);
  rows::gather(ppo.old_logp, first(ppo.old_logp), tile.selection, tile.log_ratio);
  rows::gather(ppo.advantages, first(ppo.advantages), tile.selection, tile.advantage);
  for (int64_t j = 0; j < count; ++j) tile.log_ratio[j] = tile.logp[j] - tile.log_ratio[j];
  if (ppo.ref_logp.data) {
    double* k = tile.log_ref_ratio;
    rows::gather(ppo.ref_logp, first(ppo.ref_logp), tile.selection, k);
    for (int64_t j = 0; j < count; ++j) k[j] = tile.logp[j] - k[j];
  }
}

template <Estimator kind>
PAMA_INLINE double kl_sum(const double* k, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += kl_estimate<kind>(k[j]);
  return sum;
}

template <Estimator kind>
PAMA_INLINE void add_kl_slope(double weight, const double* k, int64_t count, double* slope) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) slope[j] += weight * kl_slope<kind>(k[j]);
}

PAMA_CLONES void ppo_sequence(const Ppo& ppo, int64_t b, PpoSums& sums) {
  const Clip clip = ppo.clip;
  Tile tile;
  const int64_t size = ppo.sequences.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    gather(ppo, b, t, size, tile);
    const int64_t count = tile.selection.count;
    double value = 0, flat = 0, approx_kl = 0, ratio = 0;
#pragma omp simd reduction(+ : value, flat, approx_kl, ratio)
    for (int64_t j = 0; j < count; ++j) {
      const Surrogate token = surrogate(clip, tile.log_ratio[j], tile.advantage[j]);
      value += token.value;
      flat += token.flat;
      approx_kl += token.approx_kl;
      ratio += token.ratio;
    }
    sums.tokens += static_cast<double>(count);
    sums.surrogate += value;
    sums.flat += flat;
    sums.approx_kl += approx_kl;
    sums.ratio += ratio;
    if (!ppo.ref_logp.data) continue;
    switch (ppo.estimator) {
      case Estimator::kK1:
        sums.kl += kl_sum<Estimator::kK1>(tile.log_ref_ratio, count);
        break;
      case Estimator::kK2:
        sums.kl += kl_sum<Estimator::kK2>(tile.log_ref_ratio, count);
        break;
      default:
        sums.kl += kl_sum<Estimator::kK3>(tile.log_ref_ratio, count);
        break;
    }
  }
}

// `weight`: what a token of the sequence counts in the loss, times the loss's own gradient.
PAMA_CLONES void ppo_sequence_backward(const Ppo& ppo, int64_t b, double weight) {
  const Clip clip = ppo.clip;
  Tile tile;
  double* slope = tile.advantage;
  const double *k = tile.log_ref_ratio, kl_weight = weight * ppo.kl_coef;
  const int64_t size = ppo.sequences.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    gather(ppo, b, t, size, tile);
    const int64_t count = tile.selection.count;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      slope[j] = -weight * surrogate(clip, tile.log_ratio[j], slope[j]).slope;
    }
    if (ppo.ref_logp.data) {
      switch (ppo.estimator) {
        case Estimator::kK1:
          add_kl_slope<Estimator::kK1>(kl_weight, k, count, slope);
          break;
        case Estimator::kK2:
          add_kl_slope<Estimator::kK2>(kl_weight, k, count, slope);
          break;
        default:
          add_kl_slope<Estimator::kK3>(kl_weight, k, count, slope);
          break;
      }
    }
    rows::scatter(ppo.out, ppo.sequences.first(ppo.out, 0, b) + t, tile.selection, slope);
  }
}

std::tuple<Tensor, Tensor, Tensor> ppo_loss(
    const Tensor& logp, const Tensor& old_logp, const Tensor& advantages,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
    const std::optional<Tensor>& normalizer, const std::optional<Tensor>& cu_seqlens, double low,
    double high, int64_t aggregate, double divisor, double kl_coef, int64_t estimator) {
  check_ppo(logp, old_logp, advantages, mask, ref_logp, normalizer, cu_seqlens);
  const bool ragged = cu_seqlens.has_value();
  const Sequences s = sequences_of(logp, cu_seqlens, false);
  check_token_values(mask, cu_seqlens, s);
  check_normalizer(normalizer);
  const Ppo ppo{s,
                view_of(logp, ragged),
                view_of(old_logp, ragged),
                view_of(advantages, ragged),
                view_of(mask, ragged),
                view_of(ref_logp, ragged),
                {},
                clip_of(low, high),
                kl_coef,
                static_cast<Estimator>(estimator)};
  std::vector<PpoSums> sums(s.count);
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) ppo_sequence(ppo, b, sums[b]);
  });
  const auto kind = static_cast<Aggregate>(aggregate);
  PpoTotal total{};
  for (const PpoSums& of_sequence : sums)
    total = ppo_join(total, ppo_total(kind, kl_coef, of_sequence));
  const double count = divisor_of(view_of(normalizer), divisor, ppo_divisor(kind, total));

  const ScalarType dtype = result_dtype(&logp, &old_logp, &advantages, ref_logp);
  Tensor loss = allocate(logp, {}, dtype), statistics = allocate(logp, {4}, dtype);
  Tensor weights = allocate(logp, {s.count}, ScalarType::Double);
  ppo_store(total, count, view_of(loss), view_of(statistics));
  for (int64_t b = 0; b < s.count; ++b) {
    store(view_of(weights), b, token_weight(kind, sums[b].tokens, count));
  }
  return {loss, statistics, weights};
}

Tensor ppo_loss_backward(const Tensor& grad, const Tensor& row_weights, const Tensor& logp,
                         const Tensor& old_logp, const Tensor& advantages,
                         const std::optional<Tensor>& mask, const std::optional<Tensor>& ref_logp,
                         const std::optional<Tensor>& cu_seqlens, double low, double high,
                         double kl_coef, int64_t estimator) {
  check_ppo(logp, old_logp, advantages, mask, ref_logp, std::nullopt, cu_seqlens);
  check_ppo_backward(grad, row_weights, logp, cu_seqlens);
  const bool ragged = cu_seqlens.has_value();
  const Sequences s = sequences_of(logp, cu_seqlens, false);
  check_token_values(mask, cu_seqlens, s);
  Tensor out = allocate(logp, logp.sizes(), result_dtype(&logp));
  // A term that counts nothing is not read, so that it cannot bring a NaN either.
  const std::optional<Tensor>& ref = kl_coef != 0 ? ref_logp : std::nullopt;
  const Ppo ppo{s,
                view_of(logp, ragged),
                view_of(old_logp, ragged),
                view_of(advantages, ragged),
                view_of(mask, ragged),
                view_of(ref, ragged),
                view_of(out, ragged),
                clip_of(low, high),
                kl_coef,
                static_cast<Estimator>(estimator)};
  const double of_loss = load(view_of(grad), 0);
  const View weights = view_of(row_weights);
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) {
      ppo_sequence_backward(ppo, b, of_loss * load(weights, b * weights.token));
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("ppo_loss", TORCH_BOX(&ppo_loss));
  m.impl("ppo_loss_backward", TORCH_BOX(&ppo_loss_backward));
}

}  // namespace
}  // namespace pama
