// What PAMA needs to know of a whole batch, and where in `pama_statistics` it lies.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace pama {

enum class Reduction : int { kToken, kSequence, kGram, kBatch };

// Flags of a nonzero part (n), then for `batch` the count of tokens and the sums (1 + n), for
// `gram` the matrix (n n).
PAMA_INLINE int64_t statistics_size(int64_t n, Reduction reduction) {
  return n + (reduction == Reduction::kGram ? n * n : reduction == Reduction::kBatch ? n + 1 : 0);
}

// The same as they are gathered: with a preference by sequence each objective's own tokens (n)
// stand at the end of those of `batch` and `gram`.
PAMA_INLINE int64_t gathered_size(int64_t n, Reduction reduction, bool by_sequence) {
  const int64_t size = statistics_size(n, reduction);
  return by_sequence && size > n ? size + n : size;
}

}  // namespace pama
