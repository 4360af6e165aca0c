// How a block walks the tokens of a sequence: threads side by side on neighbouring tokens, four
// tokens a thread in flight, each dtype told apart once for the four.
#pragma once

#include "core/view.h"
#include "cuda/device.cuh"

namespace pama {

inline constexpr int kBlock = 256;
inline constexpr int kTokens = 4;
inline constexpr int64_t kChunk = kBlock * kTokens;

// A long sequence is shared by `chunks` blocks: block c takes every chunks-th chunk, from the c-th.
// The number follows from the shapes alone, and with it the order of every sum.
inline int64_t chunks_of(const Sequences& s) {
  const int64_t tokens = s.offsets ? s.total / (s.count > 0 ? s.count : 1) : s.length;
  return tokens > kChunk ? (tokens + kChunk - 1) / kChunk : 1;
}

// The part of a batch that this block takes. Objectives are innermost: in a [B, T, N] layout
// neighbouring blocks then share cache lines.
struct Part {
  int64_t objective, chunk, sequence;
};

__device__ __forceinline__ Part block_part(const Sequences& s, int64_t chunks) {
  // A grid has fewer blocks than 2^32, and so fewer of either.
  const unsigned objectives = static_cast<unsigned>(s.objectives), rest = blockIdx.x / objectives,
                 of = static_cast<unsigned>(chunks);
  return {blockIdx.x % objectives, rest % of, rest / of};
}

// The tokens of one thread in one chunk: `first`, `first` + kBlock, ...
struct Tokens {
  int64_t first;
  bool inside[kTokens], unmasked[kTokens];
};

// out[k] of the tokens to take, 0 for the others, which are not read.
template <class Element>
__device__ __forceinline__ void load_each(const View& view, int64_t first, const bool* take,
                                          double* out) {
  const Element* from = static_cast<const Element*>(view.data) + first;
  const int64_t step = kBlock * view.token;
  Element element[kTokens];
#pragma unroll
  for (int k = 0; k < kTokens; ++k) element[k] = take[k] ? from[k * step] : Element{};
#pragma unroll
  for (int k = 0; k < kTokens; ++k) out[k] = static_cast<double>(number(element[k]));
}

// The same of real numbers.
__device__ __forceinline__ void load_tokens(const View& view, int64_t first, const bool* take,
                                            double* out) {
  with_real(view.dtype,
            [&](auto element) { load_each<decltype(element)>(view, first, take, out); });
}

// `t` is this thread's first token, of a sequence of `size`.
__device__ __forceinline__ Tokens find_tokens(const Sequences& s, const View& mask,
                                              int64_t sequence, int64_t t, int64_t size) {
  Tokens tokens;
  tokens.first = t;
#pragma unroll
  for (int k = 0; k < kTokens; ++k) {
    tokens.unmasked[k] = tokens.inside[k] = t + k * kBlock < size;
  }
  if (!mask.data) return tokens;
  const int64_t first = s.first(mask, 0, sequence) + t * mask.token;
  if (mask.dtype <= DType::kUInt8) {
    double value[kTokens];
    load_each<uint8_t>(mask, first, tokens.inside, value);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) tokens.unmasked[k] = value[k] != 0;
  } else {
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      tokens.unmasked[k] = tokens.inside[k] && load(mask, first + k * kBlock * mask.token) != 0;
    }
  }
  return tokens;
}

// Results are contiguous along tokens; masked ones become 0.
__device__ __forceinline__ void store_tokens(const View& view, int64_t first, const Tokens& tokens,
                                             const double* value) {
#pragma unroll
  for (int k = 0; k < kTokens; ++k) {
    if (tokens.inside[k]) store(view, first + k * kBlock, tokens.unmasked[k] ? value[k] : 0);
  }
}

// Calls body(tokens) on each chunk of the part.
template <class Body>
__device__ __forceinline__ void for_tokens(const Sequences& s, const View& mask, const Part& part,
                                           int64_t chunks, const Body& body) {
  const int64_t size = s.size(part.sequence), thread = threadIdx.x;
  for (int64_t start = part.chunk * kChunk; start < size; start += chunks * kChunk) {
    body(find_tokens(s, mask, part.sequence, start + thread, size));
  }
}

}  // namespace pama
