// The check of a normalizer's value, made before a CPU kernel writes anything.
#pragma once

#include "core/normalizer.h"
#include "tensors.h"

namespace pama {

// 0 is a count of tokens too, that of an empty batch.
inline void check_normalizer(const std::optional<Tensor>& normalizer) {
  if (!normalizer) return;
  const double value = load(view_of(*normalizer), 0);
  if (value < 0) {
    throw std::invalid_argument("normalizer must not be negative, got " + std::to_string(value));
  }
}

}  // namespace pama
