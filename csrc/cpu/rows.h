// What the CPU kernels share: multi-versioned loops, tiles of a row as dense float64, value checks.
#pragma once

#include <algorithm>
#include <sstream>
#include <vector>

#include "tensors.h"

// Compiled for three generations of processors, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define PAMA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define PAMA_CLONES
#endif

namespace pama {

using torch::stable::parallel_for;

// Tokens staged at a time: float64 tiles of a few arrays stay in the L1 cache.
inline constexpr int64_t kTile = 256;

namespace rows {

template <class T, class Out, class Convert>
PAMA_INLINE void read(const View& view, int64_t first, int64_t count, Out* out, Convert convert) {
  const T* from = static_cast<const T*>(view.data) + first;
  const int64_t stride = view.token;
  if (stride == 1) {
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Out>(convert(from[j]));
  } else {
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<Out>(convert(from[j * stride]));
  }
}

// out[j] = view[first + j * stride] for a floating view; Out is double, or float where that is
// exact.
template <class Out>
PAMA_INLINE void load(const View& view, int64_t first, int64_t count, Out* out) {
  const auto same = [](auto x) { return x; };
  switch (view.dtype) {
    case DType::kDouble:
      return read<double>(view, first, count, out, same);
    case DType::kHalf:
      return read<uint16_t>(view, first, count, out, half_to_float);
    case DType::kBFloat16:
      return read<uint16_t>(view, first, count, out, bfloat16_to_float);
    default:
      return read<float>(view, first, count, out, same);
  }
}

// view[first + j] = x[j]: results are contiguous along tokens.
template <class In>
PAMA_INLINE void store(const View& view, int64_t first, int64_t count, const In* x) {
  if (view.dtype == DType::kDouble) {
    double* out = static_cast<double*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<double>(x[j]);
  } else {
    float* out = static_cast<float*>(view.data) + first;
    for (int64_t j = 0; j < count; ++j) out[j] = static_cast<float>(x[j]);
  }
}

// The unmasked tokens of one tile, in order. What stands at a masked one is dropped unseen.
struct Selection {
  int64_t count, length;
  int32_t index[kTile];

  bool all() const { return count == length; }
};

PAMA_INLINE void select(const View& mask, int64_t first, int64_t length, Selection& tile) {
  tile.length = tile.count = length;
  if (!mask.data) return;
  int64_t count = 0;
  if (mask.dtype <= DType::kUInt8 && mask.token == 1) {
    const uint8_t* m = static_cast<const uint8_t*>(mask.data) + first;
    int all = 1;
    for (int64_t j = 0; j < length; ++j) all &= m[j] != 0;
    if (all) return;
    for (int64_t j = 0; j < length; ++j) {
      tile.index[count] = static_cast<int32_t>(j);
      count += m[j] != 0;
    }
  } else {
    for (int64_t j = 0; j < length; ++j) {
      tile.index[count] = static_cast<int32_t>(j);
      count += pama::load(mask, first + j * mask.token) != 0;
    }
  }
  tile.count = count;
}

// out[0 .. tile.count): the unmasked tokens of a tile, dense.
template <class Out>
PAMA_INLINE void gather(const View& view, int64_t first, const Selection& tile, Out* out) {
  if (tile.all()) return load(view, first, tile.length, out);
  Out whole[kTile];
  load(view, first, tile.length, whole);
  for (int64_t j = 0; j < tile.count; ++j) out[j] = whole[tile.index[j]];
}

// The inverse of `gather`: masked positions of the result become 0.
template <class In>
PAMA_INLINE void scatter(const View& view, int64_t first, const Selection& tile, const In* x) {
  if (tile.all()) return store(view, first, tile.length, x);
  In whole[kTile];
  std::fill_n(whole, tile.length, In(0));
  for (int64_t j = 0; j < tile.count; ++j) whole[tile.index[j]] = x[j];
  store(view, first, tile.length, whole);
}

}  // namespace rows

// Checks that need tensors' values, made before a CPU kernel writes anything.
void check_mask(const std::optional<Tensor>& mask);
void check_offsets(const std::optional<Tensor>& cu_seqlens, int64_t total);
void check_preference(const std::optional<Tensor>& preference);

inline void check_tokens(const std::optional<Tensor>& mask, const std::optional<Tensor>& cu_seqlens,
                         const Sequences& sequences) {
  check_mask(mask);
  check_offsets(cu_seqlens, sequences.total);
}

// Calls body(first, last) on ranges of sequences, each range worth a thread's while.
template <class Body>
void for_sequences(const Sequences& sequences, const Body& body) {
  const int64_t tokens = sequences.offsets ? sequences.total / std::max<int64_t>(sequences.count, 1)
                                           : sequences.length;
  const int64_t cost = std::max<int64_t>(sequences.objectives * tokens, 1);
  parallel_for(0, sequences.count, std::max<int64_t>(8192 / cost, 1), body);
}

}  // namespace pama
