// Which tensors share memory, also of those with holes, by their strides. None that do are missed;
// where strides are so odd that an answer is not found soon, they are said to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "tensors/tensor.h"

namespace pama {

// Where a tensor lies, the which-th of a list: from its first byte to before `end`, and how many
// bytes an element has.
struct Span {
  uintptr_t first, end;
  int64_t unit, which;

  bool operator<(const Span& other) const {
    return first < other.first || (first == other.first && which < other.which);
  }
};

// Some multiples of a step: 0 to `most` of them.
struct Steps {
  int64_t step, most;

  bool operator<(const Steps& other) const { return step < other.step; }
};

// The sums that some steps, each in any number it allows, can make.
class StepSums {
 public:
  explicit StepSums(std::vector<Steps> given) {
    std::sort(given.begin(), given.end());
    for (const Steps& x : given) {
      if (x.step == 0 || x.most == 0) continue;
      if (!steps_.empty() && x.step % steps_.back().step == 0 &&
          x.step / steps_.back().step <= steps_.back().most + 1) {  // together without a gap
        steps_.back().most += x.step / steps_.back().step * x.most;
      } else {
        steps_.push_back(x);
      }
    }
    largest_ = {0};  // of the first k
    for (const Steps& x : steps_) largest_.push_back(largest_.back() + x.step * x.most);
  }

  // Whether `sum` is one; also true where the search is given up.
  bool hold(int64_t sum) const {
    int tries = 1 << 16;
    return hold(sum, steps_.size(), tries);
  }

 private:
  bool hold(int64_t sum, size_t count, int& tries) const {
    if (sum < 0 || sum > largest_[count]) return false;
    if (count == 0 || --tries < 0) return true;
    int64_t common = 0;
    for (size_t k = count; k-- > 0;) {  // what the longer steps leave, the shorter ones must make
      common = std::gcd(common, steps_[k].step);
      if (sum % common > largest_[k]) return false;
    }
    const auto [step, most] = steps_[count - 1];
    const int64_t least = std::max<int64_t>(sum - largest_[count - 1] + step - 1, 0) / step;
    for (int64_t k = std::min(most, sum / step); k >= least; --k) {
      if (hold(sum - k * step, count - 1, tries)) return true;
    }
    return false;
  }

  std::vector<Steps> steps_;  // ascending
  std::vector<int64_t> largest_;
};

// How far a tensor's dimensions step, in bytes of `unit` an element, the shortest first.
inline std::vector<Steps> steps_of(const Tensor& x, int64_t unit) {
  const auto sizes = x.sizes(), strides = x.strides();
  std::vector<Steps> steps;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] > 1) steps.push_back({strides[d] * unit, sizes[d] - 1});
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

// Of a tensor with elements.
inline Span span_of(const Tensor& x, int64_t unit, int64_t which) {
  const auto first = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  int64_t bytes = unit;
  for (const auto [step, most] : steps_of(x, unit)) bytes += step * most;
  return {first, first + bytes, unit, which};
}

// Whether two elements lie in one place: by a walk that takes a step or more on in one dimension,
// any number on or back in the others, and ends where it began.
inline bool overlaps_itself(const Tensor& x) {
  if (x.numel() == 0 || x.is_contiguous()) return false;
  const std::vector<Steps> steps = steps_of(x, 1);
  int64_t reach = 0;
  bool nested = true;  // each step is longer than all shorter ones together
  for (const auto [step, most] : steps) {
    nested &= step > reach;
    reach += step * most;
  }
  for (size_t d = 0; d < steps.size() && !nested; ++d) {
    std::vector<Steps> walk = steps;
    for (Steps& each : walk) each.most *= 2;  // from as far back as can be
    walk[d].most = steps[d].most - 1;         // from one step on
    if (StepSums(walk).hold(reach - steps[d].step * (steps[d].most + 1))) return true;
  }
  return false;
}

// Whether a byte belongs to both: one is found from a's first byte on, the other from b's last one
// back.
inline bool meet(const Span& a, const Tensor& x, const Span& b, const Tensor& y) {
  std::vector<Steps> steps = steps_of(x, a.unit), others = steps_of(y, b.unit);
  steps.insert(steps.end(), others.begin(), others.end());
  steps.push_back({1, a.unit - 1 + b.unit - 1});
  return StepSums(steps).hold(static_cast<int64_t>(b.end - 1 - a.first));
}

// Two of the tensors that spans are of which share memory, the lower index first.
inline std::optional<std::pair<int64_t, int64_t>> sharing(std::vector<Span> spans,
                                                          const std::vector<Tensor>& tensors) {
  std::sort(spans.begin(), spans.end());
  std::vector<Span> open;  // that reach to the one at hand
  for (const Span& b : spans) {
    open.erase(
        std::remove_if(open.begin(), open.end(), [&](const Span& a) { return a.end <= b.first; }),
        open.end());
    for (const Span& a : open) {
      if (meet(a, tensors[a.which], b, tensors[b.which])) return std::minmax(a.which, b.which);
    }
    open.push_back(b);
  }
  return std::nullopt;
}

}  // namespace pama
