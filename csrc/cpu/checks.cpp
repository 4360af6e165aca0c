// Checks of tensors' values: a mask of 0 and 1, offsets that rise over the tokens, a preference.
#include <cmath>

#include "cpu/rows.h"

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

}  // namespace

void check_mask(const std::optional<Tensor>& mask) {
  if (!mask || mask->scalar_type() == ScalarType::Bool) return;
  const View view = view_of(*mask);
  const int64_t rows = mask->dim() > 1 ? mask->size(mask->dim() - 2) : 1;
  const int64_t length = mask->size(mask->dim() - 1);
  if (length == 0) return;
  for (int64_t b = 0; b < rows; ++b) {
    if (!zeros_and_ones(view, b * view.sequence, length)) {
      throw std::invalid_argument("mask must hold only 0 and 1, got other values in row " +
                                  std::to_string(b));
    }
  }
}

void check_offsets(const std::optional<Tensor>& cu_seqlens, int64_t total) {
  if (!cu_seqlens) return;
  const View view = view_of(*cu_seqlens);
  const int64_t count = cu_seqlens->size(0);
  int64_t previous = 0;
  bool good = true;
  for (int64_t b = 0; b < count; ++b) {
    const auto offset = static_cast<int64_t>(load(view, b * view.token));
    good &= b == 0 ? offset == 0 : offset >= previous;
    previous = offset;
  }
  if (!good || previous != total) {
    throw std::invalid_argument("cu_seqlens must rise from 0 to the " + std::to_string(total) +
                                " tokens, got offsets that do not");
  }
}

void check_preference(const std::optional<Tensor>& preference) {
  if (!preference) return;
  const View view = preference_view(preference);
  if (by_sequence(preference)) {
    for (int64_t b = 0; b < preference->size(1); ++b) {
      for (int64_t i = 0; i < preference->size(0); ++i) {
        const double p = preferred(view, i, b);
        if (p >= 0 && std::isfinite(p)) continue;
        throw std::invalid_argument(
            "preference must be nonnegative and finite, got values that are not");
      }
    }
    return;
  }
  check_preference([&](int64_t i) { return preferred(view, i, 0); }, preference->size(0));
}

}  // namespace pama
