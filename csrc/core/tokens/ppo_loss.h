// From the sums over sequences to the policy loss, its statistics, and what a token counts in it.
#pragma once

#include <cstdint>

#include "core/view.h"

namespace pama {

// Sums over the unmasked tokens of a sequence, or of a part of one.
struct PpoSums {
  double tokens, surrogate, flat, approx_kl, ratio, kl;
};

PAMA_INLINE PpoSums ppo_join(const PpoSums& a, const PpoSums& b) {
  return {a.tokens + b.tokens,       a.surrogate + b.surrogate, a.flat + b.flat,
          a.approx_kl + b.approx_kl, a.ratio + b.ratio,         a.kl + b.kl};
}

enum class Aggregate : int { kTokenMean, kSequenceMeanTokenMean, kSequenceMeanTokenSum, kTokenSum };

// Sums over sequences. `loss` weighs each by its share and is not yet divided.
struct PpoTotal {
  double loss, sequences;  // those with an unmasked token
  PpoSums sums;
};

PAMA_INLINE PpoTotal ppo_join(const PpoTotal& a, const PpoTotal& b) {
  return {a.loss + b.loss, a.sequences + b.sequences, ppo_join(a.sums, b.sums)};
}

// What a token of a sequence counts before the division by the normalizer.
PAMA_INLINE double token_share(Aggregate aggregate, double tokens) {
  return aggregate == Aggregate::kSequenceMeanTokenMean ? 1 / tokens : 1;
}

PAMA_INLINE PpoTotal ppo_total(Aggregate aggregate, double kl_coef, const PpoSums& sequence) {
  if (sequence.tokens == 0) return {};
  // A term that counts nothing is left out, so that it cannot bring a NaN either.
  const double penalty = kl_coef != 0 ? kl_coef * sequence.kl : 0;
  return {token_share(aggregate, sequence.tokens) * (penalty - sequence.surrogate), 1, sequence};
}

// The divisor that belongs to the aggregate, where no normalizer is given.
PAMA_INLINE double ppo_divisor(Aggregate aggregate, const PpoTotal& total) {
  const double count = aggregate == Aggregate::kTokenMean  ? total.sums.tokens
                       : aggregate == Aggregate::kTokenSum ? 1
                                                           : total.sequences;
  return count > 1 ? count : 1;
}

// The derivative of the loss in the loss of one token of a sequence.
PAMA_INLINE double token_weight(Aggregate aggregate, double tokens, double divisor) {
  return tokens == 0 ? 0 : token_share(aggregate, tokens) / divisor;
}

PAMA_INLINE void ppo_store(const PpoTotal& total, double divisor, const View& loss,
                           const View& statistics) {
  const PpoSums& sums = total.sums;
  const double tokens = sums.tokens > 1 ? sums.tokens : 1;
  store(loss, 0, sums.tokens > 0 ? total.loss / divisor : 0);
  store(statistics, 0, sums.flat / tokens);
  store(statistics, 1, sums.approx_kl / tokens);
  store(statistics, 2, sums.ratio / tokens);
  store(statistics, 3, sums.kl / tokens);
}

}  // namespace pama
