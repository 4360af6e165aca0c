// Checks of tensors' values, which a CPU kernel makes before it writes anything.
#pragma once

#include <cmath>
#include <stdexcept>

#include "core/view.h"

namespace pama {

// A mask of 0 and 1, and offsets that rise over the tokens.
void check_tokens(const Sequences& sequences, const View& mask);

// 0 is a count of tokens too, that of an empty batch.
void check_normalizer(const View& normalizer);

// A preference of n numbers.
template <class At>
void check_preference(const At& at, int64_t n) {
  double total = 0;
  bool good = true;
  for (int64_t i = 0; i < n; ++i) {
    good &= at(i) >= 0;
    total += at(i);
  }
  if (!good || !(total > 0) || !std::isfinite(total)) {
    throw std::invalid_argument(
        "preference must be nonnegative and finite with a positive sum, got values that are not");
  }
}

}  // namespace pama
