#include "cpu/token_tiles.h"

namespace pama {
namespace {

// Whether each token counts, as bytes: the mask itself if it is made of them, or else `buffer`.
PAMA_INLINE const uint8_t* flags(const View& mask, int64_t first, int64_t length, uint8_t* buffer) {
  if (mask.dtype <= DType::kUInt8 && mask.token == 1) {
    return static_cast<const uint8_t*>(mask.data) + first;
  }
  with_element(mask.dtype, [=, &mask](auto element) PAMA_INLINED {
    const auto* from = static_cast<const decltype(element)*>(mask.data) + first;
    const int64_t stride = mask.token;
    if (stride == 1) {
      for (int64_t j = 0; j < length; ++j) buffer[j] = number(from[j]) != 0;
    } else {
      for (int64_t j = 0; j < length; ++j) buffer[j] = number(from[j * stride]) != 0;
    }
  });
  return buffer;
}

}  // namespace

template <class Real>
PAMA_CLONES void load(const View& view, int64_t first, int64_t count, Real* out) {
  with_real(view.dtype, [=, &view](auto element) PAMA_INLINED {
    const auto* from = static_cast<const decltype(element)*>(view.data) + first;
    const int64_t stride = view.token;
    if (stride == 1) {
      for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Real>(number(from[j]));
    } else {
      for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Real>(number(from[j * stride]));
    }
  });
}

template <class Real>
PAMA_CLONES void store(const View& view, int64_t first, int64_t count, const Real* x) {
  if (view.dtype == DType::kDouble) {
    double* out = static_cast<double*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<double>(x[j]);
  } else {
    float* out = static_cast<float*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<float>(x[j]);
  }
}

template void load(const View&, int64_t, int64_t, float*);
template void load(const View&, int64_t, int64_t, double*);
template void store(const View&, int64_t, int64_t, const float*);
template void store(const View&, int64_t, int64_t, const double*);

PAMA_CLONES void Tile::select(const View& mask, int64_t from, int64_t tokens) {
  start = from;
  length = count = tokens;
  begin = 0;
  if (!mask.data) return;
  uint8_t buffer[kTile];
  const uint8_t* m = flags(mask, first(mask), tokens, buffer);
  const auto count_from = [m](int64_t at, int64_t end) {
    int found = 0;
    for (int64_t j = at; j < end; ++j) found += m[j] != 0;
    return found;
  };
  count = count_from(0, tokens);
  if (all()) return;
  while (begin < tokens && m[begin] == 0) ++begin;
  if (count_from(begin, begin + count) == count) return;
  begin = -1;
  int64_t found = 0;
  for (int64_t j = 0; j < tokens; ++j) {
    index[found] = static_cast<int32_t>(j);
    found += m[j] != 0;
  }
}

}  // namespace pama
