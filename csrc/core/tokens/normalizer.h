// What a loss is divided by.
#pragma once

#include "core/view.h"

namespace pama {

// A tensor of one element, else a number that is not 0, else the loss's own count.
PAMA_INLINE double divisor_of(const View& normalizer, double number, double count) {
  return normalizer.data ? load(normalizer, 0) : number != 0 ? number : count;
}

}  // namespace pama
