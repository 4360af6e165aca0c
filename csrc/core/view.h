// Arrays of tokens as kernels see them: any dtype, any strides, padded or ragged.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pama {

// A token array [objective, sequence, token]; strides in elements, 0 where a dimension is absent.
struct View {
  void* data;  // null: the argument was not given
  DType dtype;
  int64_t objective, sequence, token;
};

PAMA_INLINE double load(const View& view, int64_t i) {
  return with_element(view.dtype, [&](auto element) PAMA_INLINED {
    return static_cast<double>(number(static_cast<const decltype(element)*>(view.data)[i]));
  });
}

// Results are float32 or float64.
PAMA_INLINE void store(const View& view, int64_t i, double value) {
  if (view.dtype == DType::kDouble) {
    static_cast<double*>(view.data)[i] = value;
  } else {
    static_cast<float*>(view.data)[i] = static_cast<float>(value);
  }
}

// Where each sequence lies. Padded: `length` tokens each. Ragged: tokens offsets[b] to
// offsets[b + 1] of `total`, and the views' sequence stride is 0.
struct Sequences {
  int64_t objectives, count, length;
  const void* offsets;  // null: padded
  bool wide_offsets;    // int64 rather than int32
  int64_t total;
  int64_t stride;  // of the offsets

  PAMA_INLINE int64_t given_offset(int64_t b) const {
    return wide_offsets ? static_cast<const int64_t*>(offsets)[b * stride]
                        : static_cast<const int32_t*>(offsets)[b * stride];
  }
  // Clamped, so that offsets nobody could check without a synchronisation cannot leave the array.
  PAMA_INLINE int64_t offset(int64_t b) const {
    const int64_t i = given_offset(b);
    return i < 0 ? 0 : i > total ? total : i;
  }
  PAMA_INLINE int64_t begin(int64_t b) const { return offsets ? offset(b) : 0; }
  PAMA_INLINE int64_t size(int64_t b) const {
    if (!offsets) return length;
    const int64_t tokens = offset(b + 1) - offset(b);
    return tokens < 0 ? 0 : tokens;
  }
  // Index of the first token of (objective, sequence) in a view.
  PAMA_INLINE int64_t first(const View& view, int64_t objective, int64_t b) const {
    return objective * view.objective + b * view.sequence + begin(b) * view.token;
  }
};

// A preference [N], the same for all sequences (`sequence` is 0), or [N, B]. A view without data
// prefers all objectives alike.
PAMA_INLINE double preferred(const View& preference, int64_t objective, int64_t b) {
  if (!preference.data) return 1;
  return load(preference, objective * preference.objective + b * preference.sequence);
}

PAMA_INLINE bool unmasked(const View& mask, int64_t i) { return !mask.data || load(mask, i) != 0; }

}  // namespace pama
