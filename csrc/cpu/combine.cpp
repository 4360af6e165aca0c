// Weighted sums of n gradients, read where they lie and written once.
//
// Bound by memory: n reads and a write, for which 256 bytes of sums at a time stay in registers
// while the rows pass. An ordinary store would first read what it overwrites, so results beyond the
// caches are written past them. float64 gradients are summed in float64, all others in float32.
//
// Measured against as many bytes read and written by torch (benchmarks/results/cpu_gram.json:
// GPT-2's shapes, two threads of an Emerald Rapids with AVX-512, quiet), at n = 4, 8, 16 and 32:
// float32 0.7, 0.9, 1.1 and 1.2; bfloat16, with twice the multiply-adds a byte, 0.85, 1.0, 1.2 and
// 1.4. Of the 10 ms at n = 32 in float32 a call takes 3 to hand over and check 4,700 tensors, 50 KB
// on average, before the first is read; one tensor of as many bytes takes 0.9 of the bound.
#include "tensors/combine.h"

#include "cpu/generations.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <emmintrin.h>
#define PAMA_STREAM
#endif

namespace pama {
namespace {

constexpr int64_t kChunk = 16 * 1024;  // columns that a thread takes at a time
// Fetched ahead of what is summed, into the second cache. Not 4 KB: rows often lie on page borders,
// and with all of them in the same sets of the caches 16 rows took twice as long.
constexpr int64_t kAheadBytes = 3072;
// Results of this size in bytes pass the caches by: they would not be found there again.
constexpr int64_t kStreamed = int64_t{4} << 20;

// Elements in memory, 64 bytes of sums, and the way between the two. The compiler splits vectors
// on processors with shorter registers.
template <class ElementType, class RealType>
struct Vectors {
  using Element = ElementType;
  using Real = RealType;
  static constexpr int64_t kCount = 64 / sizeof(Real);
  typedef Real Vector __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  typedef Element InMemory
      __attribute__((vector_size(kCount * sizeof(Element)), aligned(alignof(Element)), may_alias));
};

template <class Real>
struct Lanes : Vectors<Real, Real> {
  using typename Vectors<Real, Real>::Vector;
  using typename Vectors<Real, Real>::InMemory;
  static PAMA_INLINE void widen(const InMemory& x, Vector& to) { to = x; }
  static PAMA_INLINE void narrow(const Vector& x, InMemory& to) { to = x; }
};

template <>
struct Lanes<BFloat16> : Vectors<uint16_t, float> {
  static PAMA_INLINE void widen(const InMemory& x, Vector& to) {
    to = reinterpret_cast<Vector>(__builtin_convertvector(x, Bits) << 16);
  }
  static PAMA_INLINE void narrow(const Vector& x, InMemory& to) {
    const Bits bits = reinterpret_cast<Bits>(x);
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Bits result = (bits & 0x7fffffff) > 0x7f800000 ? rounded * 0 + 0x7fc0 : rounded;
    to = __builtin_convertvector(result, InMemory);
  }
};

// core/dtype.h says why these bits.
template <>
struct Lanes<Half> : Vectors<uint16_t, float> {
  static PAMA_INLINE void widen(const InMemory& x, Vector& to) {
    const Bits bits = __builtin_convertvector(x, Bits);
    const Vector magnitude =
        reinterpret_cast<Vector>((bits & 0x7fff) << 13) * 5.192296858534828e33f;
    const Bits special = magnitude >= 65536.0f ? bits * 0 + 0x7f800000 : bits * 0;
    to = reinterpret_cast<Vector>(reinterpret_cast<Bits>(magnitude) | special |
                                  (bits & 0x8000) << 16);
  }
  static PAMA_INLINE void narrow(const Vector& x, InMemory& to) {
    const Bits bits = reinterpret_cast<Bits>(x), magnitude = bits & 0x7fffffff;
    const Vector shifted = reinterpret_cast<Vector>(magnitude) + 0.5f;
    const Bits small = reinterpret_cast<Bits>(shifted) - 0x3f000000;
    const Bits normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    Bits half = magnitude < 0x38800000 ? small : normal;
    half = magnitude >= 0x477ff000 ? bits * 0 + 0x7c00 : half;
    half = magnitude > 0x7f800000 ? bits * 0 + 0x7e00 : half;
    to = __builtin_convertvector(half | (bits >> 16 & 0x8000), InMemory);
  }
};

// Columns of one parameter that a thread combines.
struct Columns {
  const void* const* rows;
  const double* weights;
  int64_t count, first, last;
  bool accumulate, streamed;
  void* out;
};

constexpr int64_t kVectors = 4;  // summed in registers at a time

// `kVectors` vectors of the result, from column `at` of rows and of `before` on.
template <class L>
PAMA_INLINE void strip(const Columns& run, int64_t at, const typename L::Element* before,
                       typename L::Element* to) {
  using InMemory = typename L::InMemory;
  typename L::Vector s0{}, s1{}, s2{}, s3{}, x;
  const auto part = [](const typename L::Element* from, int64_t k) -> const InMemory& {
    return *reinterpret_cast<const InMemory*>(from + k * L::kCount);
  };
  if (run.accumulate) {
    L::widen(part(before, 0), s0);
    L::widen(part(before, 1), s1);
    L::widen(part(before, 2), s2);
    L::widen(part(before, 3), s3);
  }
  for (int64_t i = 0; i < run.count; ++i) {
    const typename L::Element* row = static_cast<const typename L::Element*>(run.rows[i]) + at;
    const auto w = static_cast<typename L::Real>(run.weights[i]);
    const char* ahead = reinterpret_cast<const char*>(row) + kAheadBytes;
    for (size_t k = 0; k < kVectors * sizeof(InMemory); k += 64) {
      __builtin_prefetch(ahead + k, 0, 2);
    }
    L::widen(part(row, 0), x), s0 += w * x;
    L::widen(part(row, 1), x), s1 += w * x;
    L::widen(part(row, 2), x), s2 += w * x;
    L::widen(part(row, 3), x), s3 += w * x;
  }
  InMemory* out = reinterpret_cast<InMemory*>(to);
  L::narrow(s0, out[0]);
  L::narrow(s1, out[1]);
  L::narrow(s2, out[2]);
  L::narrow(s3, out[3]);
}

template <class L>
PAMA_CLONES void combine_columns(const Columns& run) {
  using Element = typename L::Element;
  using InMemory = typename L::InMemory;
  using Vector = typename L::Vector;
  constexpr int64_t width = kVectors * L::kCount;
  alignas(64) Element result[width];
  Element* out = static_cast<Element*>(run.out);
  int64_t at = run.first;
  // Fewer columns than a strip, through a copy of them.
  const auto rest = [&](int64_t count) {
    alignas(64) Element row[width] = {};
    Vector sum[kVectors] = {};
    const auto add = [&](typename L::Real w, const void* from) {
      std::copy_n(static_cast<const Element*>(from) + at, count, row);
      for (int64_t k = 0; k < kVectors; ++k) {
        Vector x;
        L::widen(reinterpret_cast<const InMemory*>(row)[k], x);
        sum[k] += w * x;
      }
    };
    if (run.accumulate) add(1, out);
    for (int64_t i = 0; i < run.count; ++i) {
      add(static_cast<typename L::Real>(run.weights[i]), run.rows[i]);
    }
    for (int64_t k = 0; k < kVectors; ++k) {
      L::narrow(sum[k], reinterpret_cast<InMemory*>(result)[k]);
    }
    std::copy_n(result, count, out + at);
    at += count;
  };
#if defined(PAMA_STREAM)
  const int64_t past = reinterpret_cast<uintptr_t>(out + at) % 64;
  if (run.streamed && past % sizeof(Element) == 0) {
    // From the first whole cache line on.
    const int64_t before = (64 - past) % 64 / static_cast<int64_t>(sizeof(Element));
    if (before > 0) rest(std::min(before, run.last - at));
    for (; at + width <= run.last; at += width) {
      strip<L>(run, at, out + at, result);
      const __m128i* from = reinterpret_cast<const __m128i*>(result);
      __m128i* to = reinterpret_cast<__m128i*>(out + at);
      constexpr size_t words = width * sizeof(Element) / sizeof(__m128i);
      for (size_t k = 0; k < words; ++k) _mm_stream_si128(to + k, from[k]);
    }
  }
#endif
  for (; at + width <= run.last; at += width) strip<L>(run, at, out + at, out + at);
  if (at < run.last) rest(run.last - at);
}

void run(const Tensor&, const GradientList& grads, const View& weights,
         const std::vector<void*>& out, bool accumulate) {
  std::vector<double> w(grads.objectives);
  for (int64_t i = 0; i < grads.objectives; ++i) w[i] = load(weights, i * weights.token);
  // Columns of all parameters in a row, so that threads get as many of them each.
  std::vector<int64_t> start(grads.parameters + 1, 0);
  int64_t bytes = 0;
  for (int64_t p = 0; p < grads.parameters; ++p) {
    start[p + 1] = start[p] + grads.size[p];
    bytes += grads.size[p] * size_of(grads.dtype[p]);
  }
  const int64_t total = start.back();
  torch::stable::parallel_for(
      0, (total + kChunk - 1) / kChunk, 4, [&](int64_t first, int64_t last) {
        std::vector<const void*> rows;
        std::vector<double> used;
        int64_t at = first * kChunk;
        const int64_t end = std::min(last * kChunk, total);
        int64_t p = std::upper_bound(start.begin(), start.end(), at) - start.begin() - 1;
        while (at < end) {
          while (start[p + 1] <= at) ++p;
          rows.clear(), used.clear();
          for (int64_t i = 0; i < grads.objectives; ++i) {
            if (grads.at(i, p)) rows.push_back(grads.at(i, p)), used.push_back(w[i]);
          }
          const int64_t until = std::min(end, start[p + 1]);
          const Columns columns{rows.data(),
                                used.data(),
                                static_cast<int64_t>(rows.size()),
                                at - start[p],
                                until - start[p],
                                accumulate,
                                bytes >= kStreamed,
                                out[p]};
          with_real(grads.dtype[p],
                    [&](auto element) { combine_columns<Lanes<decltype(element)>>(columns); });
          at = until;
        }
#if defined(PAMA_STREAM)
        _mm_sfence();
#endif
      });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine<run>));
  m.impl("combine_into", TORCH_BOX(&combine_into<run>));
}

}  // namespace
}  // namespace pama
