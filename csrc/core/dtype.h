// Element types of tensors: their names, their numbers, and a function called with one of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"

namespace pama {

enum class DType : int8_t {
  kBool,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kHalf,
  kBFloat16,
  kFloat,
  kDouble
};

template <class To, class From>
PAMA_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Bits to value without a branch on the exponent, so that loops over halves vectorise: the
// mantissa and exponent are moved into a float 2^112 too small, and a power of two makes it up.
PAMA_INLINE float half_to_float(uint16_t bits) {
  const float magnitude =
      bit_cast<float>(static_cast<uint32_t>(bits & 0x7fff) << 13) * 5.192296858534828e33f;
  // Halves from 2^16 on are infinities and NaNs: give them float's exponent for those.
  const uint32_t special = magnitude >= 65536.0f ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | special |
                         static_cast<uint32_t>(bits & 0x8000) << 16);
}

PAMA_INLINE float bfloat16_to_float(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

PAMA_INLINE uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

PAMA_INLINE uint16_t float_to_half(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7e00;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on
  if (magnitude < 0x38800000) {  // subnormal: adding 1/2 leaves the rounded bits in the mantissa
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

// Elements that have no type of their own in C++, as they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The number that an element is.
template <class T>
PAMA_INLINE T number(T x) {
  return x;
}
PAMA_INLINE float number(Half x) { return half_to_float(x.bits); }
PAMA_INLINE float number(BFloat16 x) { return bfloat16_to_float(x.bits); }

// The element nearest to a number.
template <class Real, class Element>
PAMA_INLINE void round_to(Real x, Element& to) {
  to = static_cast<Element>(x);
}
template <class Real>
PAMA_INLINE void round_to(Real x, Half& to) {
  to.bits = float_to_half(static_cast<float>(x));
}
template <class Real>
PAMA_INLINE void round_to(Real x, BFloat16& to) {
  to.bits = float_to_bfloat16(static_cast<float>(x));
}

// body(Element{}) of a floating dtype's element; of any other dtype's as of float32's.
template <class Body>
PAMA_INLINE auto with_real(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kDouble:
      return body(double{});
    case DType::kHalf:
      return body(Half{});
    case DType::kBFloat16:
      return body(BFloat16{});
    default:
      return body(float{});
  }
}

// The same of any dtype; a bool is a byte of 0 or 1.
template <class Body>
PAMA_INLINE auto with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUInt8:
      return body(uint8_t{});
    case DType::kInt8:
      return body(int8_t{});
    case DType::kInt16:
      return body(int16_t{});
    case DType::kInt32:
      return body(int32_t{});
    case DType::kInt64:
      return body(int64_t{});
    case DType::kHalf:
      return body(Half{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat:
      return body(float{});
    default:
      return body(double{});
  }
}

// Bytes of an element of a floating dtype.
PAMA_INLINE int64_t size_of(DType dtype) {
  return with_real(dtype, [](auto element) { return static_cast<int64_t>(sizeof(element)); });
}

// What rounding to a floating dtype loses.
struct Precision {
  double roundoff;  // half of the distance between 1 and the next number
  double least;     // the least above 0: squares of gradients below it have been lost
};

PAMA_INLINE Precision precision_of(DType dtype) {
  switch (dtype) {
    case DType::kHalf:
      return {0x1p-11, 0x1p-24};
    case DType::kBFloat16:
      return {0x1p-8, 0x1p-133};
    case DType::kFloat:
      return {0x1p-24, 0x1p-149};
    default:
      return {0x1p-53, 0x1p-1074};
  }
}

}  // namespace pama
