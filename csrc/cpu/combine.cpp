// Weighted sums of n gradients, read where they lie and written once.
//
// Bound by memory: n reads and a write, for which 64 columns at a time stay in registers while the
// rows pass. An ordinary store would first read what it overwrites, so results beyond the caches
// are written past them. float64 gradients are summed in float64, all others in float32.
#include "cpu/rows.h"
#include "gradient_list.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <emmintrin.h>
#define PAMA_STREAM
#endif

namespace pama {
namespace {

constexpr int64_t kChunk = 16 * 1024;  // columns that a thread takes at a time
constexpr int64_t kStrip = 64;         // columns summed in registers
// Results of this size in bytes pass the caches by: they would not be found there again.
constexpr int64_t kStreamed = int64_t{4} << 20;

template <class From, class Real>
PAMA_INLINE Real widen(From x, DType dtype) {
  if constexpr (sizeof(From) == 2) {
    return dtype == DType::kHalf ? half_to_float(x) : bfloat16_to_float(x);
  } else {
    return x;
  }
}

// Without a branch, so that the loop vectorises; NaN stays NaN.
PAMA_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

PAMA_INLINE uint16_t to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

template <class To, class Real>
PAMA_INLINE To narrow(Real x, DType dtype) {
  if constexpr (sizeof(To) == 2) {
    return dtype == DType::kHalf ? to_half(x) : to_bfloat16(x);
  } else {
    return x;
  }
}

// Columns of one parameter that a thread combines.
struct Run {
  const void* const* rows;
  const double* weights;
  int64_t count, first, last;
  DType dtype;
  bool accumulate, streamed;
  void* out;
};

template <class Element, class Real, int64_t kWidth>
PAMA_INLINE void strip(const Run& run, int64_t at, int64_t width, Real* sum) {
  const DType dtype = run.dtype;
  const Element* out = static_cast<const Element*>(run.out) + at;
  for (int64_t k = 0; k < kWidth; ++k) sum[k] = 0;
  if (run.accumulate) {
    for (int64_t k = 0; k < width; ++k) sum[k] = widen<Element, Real>(out[k], dtype);
  }
  for (int64_t i = 0; i < run.count; ++i) {
    const Element* row = static_cast<const Element*>(run.rows[i]) + at;
    const Real w = static_cast<Real>(run.weights[i]);
    for (int64_t k = 0; k < width; ++k) sum[k] += w * widen<Element, Real>(row[k], dtype);
  }
}

template <class Element, class Real>
PAMA_INLINE void combine_columns(const Run& run) {
  alignas(64) Real sum[kStrip];
  alignas(64) Element result[kStrip];
  Element* out = static_cast<Element*>(run.out);
  int64_t at = run.first;
  const auto finish = [&](int64_t width) {
    strip<Element, Real, kStrip>(run, at, width, sum);
    for (int64_t k = 0; k < width; ++k) out[at + k] = narrow<Element, Real>(sum[k], run.dtype);
    at += width;
  };
#if defined(PAMA_STREAM)
  if (run.streamed) {
    // Up to the first whole cache line; it is there in all but views at odd addresses.
    const int64_t past = reinterpret_cast<uintptr_t>(out + at) % 64;
    if (past % sizeof(Element) == 0) {
      if (past > 0) finish(std::min<int64_t>((64 - past) / sizeof(Element), run.last - at));
      for (; at + kStrip <= run.last; at += kStrip) {
        strip<Element, Real, kStrip>(run, at, kStrip, sum);
        for (int64_t k = 0; k < kStrip; ++k) result[k] = narrow<Element, Real>(sum[k], run.dtype);
        const __m128i* from = reinterpret_cast<const __m128i*>(result);
        __m128i* to = reinterpret_cast<__m128i*>(out + at);
        constexpr size_t words = kStrip * sizeof(Element) / sizeof(__m128i);
        for (size_t k = 0; k < words; ++k) _mm_stream_si128(to + k, from[k]);
      }
    }
  }
#endif
  for (; at + kStrip <= run.last;) finish(kStrip);
  if (at < run.last) finish(run.last - at);
}

PAMA_CLONES void combine_float(const Run& run) { combine_columns<float, float>(run); }
PAMA_CLONES void combine_double(const Run& run) { combine_columns<double, double>(run); }
PAMA_CLONES void combine_bfloat16(Run run) {
  run.dtype = DType::kBFloat16;  // known to the compiler, which drops the other branch
  combine_columns<uint16_t, float>(run);
}
PAMA_CLONES void combine_half(Run run) {
  run.dtype = DType::kHalf;
  combine_columns<uint16_t, float>(run);
}

void combine_run(const Run& run) {
  switch (run.dtype) {
    case DType::kDouble:
      return combine_double(run);
    case DType::kHalf:
      return combine_half(run);
    case DType::kBFloat16:
      return combine_bfloat16(run);
    default:
      return combine_float(run);
  }
}

// out[p] = Σ w_i g_ip, for outputs in the layout that the gradients are walked in.
void combine_runs(const GradientList& grads, const Tensor& weights, const std::vector<void*>& out,
                  bool accumulate) {
  const View view = view_of(weights);
  std::vector<double> w(grads.objectives);
  for (int64_t i = 0; i < grads.objectives; ++i) w[i] = load(view, i * view.token);
  std::vector<int64_t> chunks(grads.parameters + 1, 0);
  int64_t bytes = 0;
  for (int64_t p = 0; p < grads.parameters; ++p) {
    chunks[p + 1] = chunks[p] + (grads.size[p] + kChunk - 1) / kChunk;
    bytes += grads.size[p] * 4;
  }
  parallel_for(0, chunks.back(), 4, [&](int64_t first, int64_t last) {
    std::vector<const void*> rows;
    std::vector<double> used;
    int64_t p = std::upper_bound(chunks.begin(), chunks.end(), first) - chunks.begin() - 1;
    while (first < last) {
      while (chunks[p + 1] <= first) ++p;
      rows.clear(), used.clear();
      for (int64_t i = 0; i < grads.objectives; ++i) {
        if (grads.at(i, p)) rows.push_back(grads.at(i, p)), used.push_back(w[i]);
      }
      const int64_t end = std::min(last, chunks[p + 1]);
      const int64_t begin_column = (first - chunks[p]) * kChunk;
      const int64_t end_column = std::min((end - chunks[p]) * kChunk, grads.size[p]);
      combine_run(Run{rows.data(), used.data(), static_cast<int64_t>(rows.size()), begin_column,
                      end_column, grads.dtype[p], accumulate, bytes >= kStreamed, out[p]});
      first = end;
    }
#if defined(PAMA_STREAM)
    _mm_sfence();
#endif
  });
}

std::vector<Tensor> combine(const std::vector<Tensor>& tensors, const Tensor& weights) {
  const GradientList grads(tensors, weights.size(0));
  const Combination to(grads, tensors);
  combine_runs(grads, weights, to.data, false);
  return to.tensors;
}

void combine_into(const std::vector<Tensor>& out, const std::vector<Tensor>& tensors,
                  const Tensor& weights, bool accumulate) {
  const GradientList grads(tensors, weights.size(0));
  const Combination to(grads, tensors, out, accumulate);
  combine_runs(grads, weights, to.data, accumulate);
  to.write_back(out);
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_into", TORCH_BOX(&combine_into));
}

}  // namespace
}  // namespace pama
