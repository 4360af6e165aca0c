// Per-token estimators of KL(π ‖ π_ref) from k = log π − log π_ref, and their slopes in k.
#pragma once

#include <type_traits>

#include "core/tokens/exponential.h"

namespace pama {

enum class Estimator : int { kK1 = 1, kK2, kK3 };

// `kind` is a template parameter so that loops over tokens hold no branch on it.
template <Estimator kind>
PAMA_INLINE double kl_estimate(double k) {
  if constexpr (kind == Estimator::kK1) return k;
  if constexpr (kind == Estimator::kK2) return 0.5 * k * k;
  if constexpr (kind == Estimator::kK3) return exponential(-k).remainder;
}

template <Estimator kind>
PAMA_INLINE double kl_slope(double k) {
  if constexpr (kind == Estimator::kK1) return 1;
  if constexpr (kind == Estimator::kK2) return k;
  if constexpr (kind == Estimator::kK3) return -exponential(-k).minus_one;
}

// body(constant) with `kind` as a constant.
template <class Body>
PAMA_INLINE auto with_estimator(Estimator kind, const Body& body) {
  switch (kind) {
    case Estimator::kK1:
      return body(std::integral_constant<Estimator, Estimator::kK1>{});
    case Estimator::kK2:
      return body(std::integral_constant<Estimator, Estimator::kK2>{});
    default:
      return body(std::integral_constant<Estimator, Estimator::kK3>{});
  }
}

PAMA_INLINE double kl_estimate(Estimator kind, double k) {
  return with_estimator(kind, [k](auto constant) { return kl_estimate<constant()>(k); });
}

PAMA_INLINE double kl_slope(Estimator kind, double k) {
  return with_estimator(kind, [k](auto constant) { return kl_slope<constant()>(k); });
}

}  // namespace pama
