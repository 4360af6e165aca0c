#include "cpu/checks.h"

#include <string>

namespace pama {
namespace {

void check_mask(const View& mask, int64_t rows, int64_t length) {
  if (!mask.data || mask.dtype == DType::kBool || length == 0) return;
  with_element(mask.dtype, [&](auto element) {
    for (int64_t b = 0; b < rows; ++b) {
      const auto* row = static_cast<const decltype(element)*>(mask.data) + b * mask.sequence;
      bool good = true;
      for (int64_t j = 0; j < length; ++j) {
        const auto m = number(row[j * mask.token]);
        good &= m == 0 || m == 1;
      }
      if (!good) {
        throw std::invalid_argument("mask must hold only 0 and 1, got other values in row " +
                                    std::to_string(b));
      }
    }
  });
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
