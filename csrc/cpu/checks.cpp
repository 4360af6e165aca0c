#include "cpu/checks.h"

#include <string>

namespace pama {
namespace {

template <class T>
bool zeros_and_ones(const T* x, int64_t stride, int64_t count) {
  bool good = true;
  for (int64_t j = 0; j < count; ++j) good &= x[j * stride] == T(0) || x[j * stride] == T(1);
  return good;
}

bool zeros_and_ones(const View& mask, int64_t first, int64_t count) {
  switch (mask.dtype) {
    case DType::kBool:
      return true;
    case DType::kUInt8:
      return zeros_and_ones(static_cast<const uint8_t*>(mask.data) + first, mask.token, count);
    case DType::kInt64:
      return zeros_and_ones(static_cast<const int64_t*>(mask.data) + first, mask.token, count);
    case DType::kFloat:
      return zeros_and_ones(static_cast<const float*>(mask.data) + first, mask.token, count);
    default:
      for (int64_t j = 0; j < count; ++j) {
        const double m = load(mask, first + j * mask.token);
        if (m != 0 && m != 1) return false;
      }
      return true;
  }
}

void check_mask(const View& mask, int64_t rows, int64_t length) {
  if (!mask.data || mask.dtype == DType::kBool || length == 0) return;
  for (int64_t b = 0; b < rows; ++b) {
    if (!zeros_and_ones(mask, b * mask.sequence, length)) {
      throw std::invalid_argument("mask must hold only 0 and 1, got other values in row " +
                                  std::to_string(b));
    }
  }
}

void check_offsets(const Sequences& s) {
  int64_t previous = 0;
  bool good = true;
  for (int64_t b = 0; b <= s.count; ++b) {
    const int64_t offset = s.given_offset(b);
    good &= b == 0 ? offset == 0 : offset >= previous;
    previous = offset;
  }
  if (!good || previous != s.total) {
    throw std::invalid_argument("cu_seqlens must rise from 0 to the " + std::to_string(s.total) +
                                " tokens, got offsets that do not");
  }
}

}  // namespace

void check_tokens(const Sequences& s, const View& mask) {
  if (!s.offsets) return check_mask(mask, s.count, s.length);
  check_mask(mask, 1, s.total);
  check_offsets(s);
}

void check_normalizer(const View& normalizer) {
  if (!normalizer.data) return;
  const double value = load(normalizer, 0);
  if (value < 0) {
    throw std::invalid_argument("normalizer must not be negative, got " + std::to_string(value));
  }
}

}  // namespace pama
