// e^x in float64 without a branch: one definition that vectorises in host loops and runs on a GPU.
//
// x = n ln 2 + r with |r| <= ln(2) / 2 (Cody and Waite: n times the high part of ln 2 is exact),
// and Taylor's series to r^13 / 13!, whose next term is below 5e-18. The error is under 1 ulp.
#pragma once

#include "core/view.h"

namespace pama {

// e^x and the differences that cancel near 0. `value` is right to an ulp, `minus_one` to that ulp
// of e^x or to two of its own, `remainder` to 1e-14 of itself.
struct Exponential {
  double value;      // e^x
  double minus_one;  // e^x − 1
  double remainder;  // e^x − 1 − x
};

PAMA_INLINE Exponential exponential(double x) {
  constexpr double log2_e = 0x1.71547652b82fep0;
  constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
  // Adding it rounds to an integer, which then stands in the lowest bits of the sum.
  constexpr double shift = 0x1.8p52;
  constexpr uint64_t bias = 1023;

  // Past these bounds e^x is infinite or 0; NaN passes both comparisons.
  const double below = x > 710 ? 710 : x;
  const double bounded = below < -746 ? -746 : below;
  const double n = (bounded * log2_e + shift) - shift;
  const double r = (bounded - n * ln2_high) - n * ln2_low;

  double q = 1.0 / 6227020800;
  q = q * r + 1.0 / 479001600;
  q = q * r + 1.0 / 39916800;
  q = q * r + 1.0 / 3628800;
  q = q * r + 1.0 / 362880;
  q = q * r + 1.0 / 40320;
  q = q * r + 1.0 / 5040;
  q = q * r + 1.0 / 720;
  q = q * r + 1.0 / 120;
  q = q * r + 1.0 / 24;
  q = q * r + 1.0 / 6;
  q = q * r + 0.5;
  const double tail = q * r * r;  // e^r − 1 − r

  // 2^n in two factors, of which each is a normal number, so that a subnormal result is rounded
  // once.
  const double half = n * 0.5 + shift, rest = (n - (half - shift)) + shift;
  const double low = bit_cast<double>((bit_cast<uint64_t>(half) + bias) << 52);
  const double high = bit_cast<double>((bit_cast<uint64_t>(rest) + bias) << 52);
  const double value = (1 + (r + tail)) * low * high;

  const bool reduced = n != 0;
  return {value, reduced ? value - 1 : r + tail, reduced ? value - 1 - below : tail};
}

}  // namespace pama
