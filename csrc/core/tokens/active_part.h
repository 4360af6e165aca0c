// The part of an advantage that PAMA chooses weights by: Noon and the active part I(A).
#pragma once

#include <cmath>

#include "core/portable.h"
#include "core/tokens/exponential.h"
#include "core/tokens/surrogate.h"

namespace pama {

struct ActivePart {
  double log_low, log_high;  // the clip's bounds, log(1 - ε_low) and log(1 + ε_high), on log u
  bool noon, ratio_weighted;
};

// NaN stays NaN (fmax would drop it).
PAMA_INLINE double noon(const ActivePart& rule, double a) { return rule.noon && a <= 0 ? 0.0 : a; }

// Whether the clip holds the surrogate flat, so that it has no gradient here. False for NaN.
PAMA_INLINE bool held_flat(const ActivePart& rule, double a, double log_ratio) {
  return a < 0 ? log_ratio < rule.log_low : log_ratio > rule.log_high;
}

// The largest log ratio that weighs I(a): beyond it products of two parts would leave the range of
// numbers, and every other weight is 0 long before.
constexpr double kLargestLogRatio = 340;

PAMA_INLINE double ratio_weight(double log_ratio) {
  return exponential(log_ratio > kLargestLogRatio ? kLargestLogRatio : log_ratio).value;
}

// I(a) of an advantage after Noon; a ratio that is NaN makes it NaN.
PAMA_INLINE double active_part(const ActivePart& rule, double a, double log_ratio) {
  if (held_flat(rule, a, log_ratio)) return 0.0;
  const double part = log_ratio != log_ratio ? log_ratio : a;
  return rule.ratio_weighted ? part * ratio_weight(log_ratio) : part;
}

inline ActivePart active_part_rule(double epsilon_low, double epsilon_high, bool noon,
                                   bool ratio_weighted) {
  const Clip clip = clip_of(epsilon_low, epsilon_high);
  return {clip.log_low, clip.log_high, noon, ratio_weighted};
}

}  // namespace pama
