// Sums of products as if in twice the precision (Ogita, Rump & Oishi, SIAM J. Sci. Comput. 26,
// 2005).
#pragma once

#include <cmath>

#include "core/portable.h"

namespace pama {

// total + rest <- total + rest + a b, with an error of two roundings of `rest` only.
PAMA_INLINE void add_product(double a, double b, double* total, double* rest) {
  // By fma() even where nothing is added: a compiler may contract a product and a sum, and then
  // what the product lost to rounding would be counted twice.
  const double product = fma(a, b, 0.0), lost = fma(a, b, -product);
  const double sum = *total + product, part = sum - *total;
  *rest += ((*total - (sum - part)) + (product - part)) + lost;
  *total = sum;
}

}  // namespace pama
