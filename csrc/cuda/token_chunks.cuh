// Parts of a batch, a block each, and how a block walks the tokens of its one: threads side by side
// on neighbouring tokens, four tokens a thread in flight, each dtype told apart once for the four.
#pragma once

#include "core/view.h"
#include "cuda/launch.h"

namespace pama {

inline constexpr int kBlock = 256;
inline constexpr int kChunkTokens = 4;
inline constexpr int64_t kChunk = kBlock * kChunkTokens;

// A long sequence is shared by `chunks` blocks: block c takes every chunks-th chunk, from the c-th.
// The number follows from the shapes alone, and with it the order of every sum.
inline int64_t chunks_of(const Sequences& s) {
  const int64_t tokens = s.offsets ? s.total / (s.count > 0 ? s.count : 1) : s.length;
  return tokens > kChunk ? (tokens + kChunk - 1) / kChunk : 1;
}

// The part of a batch that a block takes: of a sequence that `chunks` blocks share.
struct Part {
  const Sequences& sequences;
  int64_t chunks, objective, chunk, sequence;

  // Index of its sequence's first token in a view.
  __device__ __forceinline__ int64_t first(const View& view) const {
    return sequences.first(view, objective, sequence);
  }
  // Where its sums stand among those of all, [objective][sequence][chunk].
  __device__ __forceinline__ int64_t index() const {
    return (objective * sequences.count + sequence) * chunks + chunk;
  }
};

// That of this block. Objectives are innermost: in a [B, T, N] layout neighbouring blocks then
// share cache lines.
__device__ __forceinline__ Part block_part(const Sequences& s, int64_t chunks) {
  // A grid has fewer blocks than 2^32, and so fewer of either.
  const unsigned objectives = static_cast<unsigned>(s.objectives), rest = blockIdx.x / objectives,
                 of = static_cast<unsigned>(chunks);
  return {s, chunks, blockIdx.x % objectives, rest % of, rest / of};
}

// Launches a kernel of (args, chunks) with a block for each part of the batch.
template <class Args>
void launch_parts(const Tensor& on, int block, const Sequences& s, void (*kernel)(Args, int64_t),
                  const Args& args) {
  const Launcher launch(on);
  const int64_t chunks = chunks_of(s);
  launch(kernel, s.objectives * s.count * chunks, block, 0, args, chunks);
}

// The same of a kernel that leaves the sums of each part, and a second one with a block for each
// objective, which adds them up.
template <class Sums, class Inputs, class Args>
void launch_sums(const Tensor& on, int block, const Sequences& s,
                 void (*sum)(Inputs, int64_t, Sums*), const Inputs& inputs,
                 void (*finish)(Args, int64_t, const Sums*), const Args& args) {
  const Launcher launch(on);
  const int64_t chunks = chunks_of(s), parts = s.objectives * s.count * chunks;
  constexpr int64_t words = sizeof(Sums) / sizeof(double);
  Tensor memory = allocate(on, {parts, words}, ScalarType::Double);
  Sums* sums = data_of<Sums>(memory);
  launch(sum, parts, block, 0, inputs, chunks, sums);
  launch(finish, s.objectives, block, 0, args, chunks, sums);
}

// The tokens of one thread in one chunk: `first`, `first` + kBlock, ...
struct Tokens {
  int64_t first;
  bool inside[kChunkTokens], unmasked[kChunkTokens];
};

// out[k] of the tokens to take, 0 for the others, which are not read.
template <class Element>
__device__ __forceinline__ void load_each(const View& view, int64_t first, const bool* take,
                                          double* out) {
  const Element* from = static_cast<const Element*>(view.data) + first;
  const int64_t step = kBlock * view.token;
  Element element[kChunkTokens];
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) element[k] = take[k] ? from[k * step] : Element{};
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) out[k] = static_cast<double>(number(element[k]));
}

// The same of real numbers, of the unmasked tokens.
__device__ __forceinline__ void load_tokens(const View& view, const Part& part,
                                            const Tokens& tokens, double* out) {
  const int64_t first = part.first(view) + tokens.first * view.token;
  with_real(view.dtype,
            [&](auto element) { load_each<decltype(element)>(view, first, tokens.unmasked, out); });
}

// `t` is this thread's first token, of a sequence of `size`.
__device__ __forceinline__ Tokens find_tokens(const View& mask, const Part& part, int64_t t,
                                              int64_t size) {
  Tokens tokens;
  tokens.first = t;
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) {
    tokens.unmasked[k] = tokens.inside[k] = t + k * kBlock < size;
  }
  if (!mask.data) return tokens;
  const int64_t first = part.first(mask) + t * mask.token;
  double value[kChunkTokens];
  with_element(mask.dtype, [&](auto element) {
    load_each<decltype(element)>(mask, first, tokens.inside, value);
  });
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) tokens.unmasked[k] = value[k] != 0;
  return tokens;
}

// Results are contiguous along tokens; masked ones become 0.
__device__ __forceinline__ void store_tokens(const View& view, const Part& part,
                                             const Tokens& tokens, const double* value) {
  const int64_t first = part.first(view) + tokens.first;
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) {
    if (tokens.inside[k]) store(view, first + k * kBlock, tokens.unmasked[k] ? value[k] : 0);
  }
}

// Calls body(tokens) on each chunk of the part.
template <class Body>
__device__ __forceinline__ void for_tokens(const View& mask, const Part& part, const Body& body) {
  const int64_t size = part.sequences.size(part.sequence), thread = threadIdx.x;
  for (int64_t start = part.chunk * kChunk; start < size; start += part.chunks * kChunk) {
    body(find_tokens(mask, part, start + thread, size));
  }
}

}  // namespace pama
