#include "cpu/token_tiles.h"

namespace pama {
namespace {

template <class Out>
PAMA_INLINE void load_as(const View& view, int64_t first, int64_t count, Out* out) {
  with_real(view.dtype, [=, &view](auto element) PAMA_INLINED {
    const auto* from = static_cast<const decltype(element)*>(view.data) + first;
    const int64_t stride = view.token;
    if (stride == 1) {
      for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Out>(number(from[j]));
    } else {
      for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Out>(number(from[j * stride]));
    }
  });
}

template <class In>
PAMA_INLINE void store_as(const View& view, int64_t first, int64_t count, const In* x) {
  if (view.dtype == DType::kDouble) {
    double* out = static_cast<double*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<double>(x[j]);
  } else {
    float* out = static_cast<float*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<float>(x[j]);
  }
}

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

PAMA_CLONES void load(const View& view, int64_t first, int64_t count, double* out) {
  load_as(view, first, count, out);
}

PAMA_CLONES void load(const View& view, int64_t first, int64_t count, float* out) {
  load_as(view, first, count, out);
}

PAMA_CLONES void store(const View& view, int64_t first, int64_t count, const double* x) {
  store_as(view, first, count, x);
}

PAMA_CLONES void store(const View& view, int64_t first, int64_t count, const float* x) {
  store_as(view, first, count, x);
}

PAMA_CLONES void select(const View& mask, int64_t first, int64_t length, Selection& tile) {
  tile.length = tile.count = length;
  tile.begin = 0;
  if (!mask.data) return;
  uint8_t buffer[kTile];
  const uint8_t* m = flags(mask, first, length, buffer);
  const auto count_from = [m](int64_t begin, int64_t end) {
    int count = 0;
    for (int64_t j = begin; j < end; ++j) count += m[j] != 0;
    return count;
  };
  tile.count = count_from(0, length);
  if (tile.all()) return;
  while (tile.begin < length && m[tile.begin] == 0) ++tile.begin;
  if (count_from(tile.begin, tile.begin + tile.count) == tile.count) return;
  tile.begin = -1;
  int64_t count = 0;
  for (int64_t j = 0; j < length; ++j) {
    tile.index[count] = static_cast<int32_t>(j);
    count += m[j] != 0;
  }
}

}  // namespace pama
