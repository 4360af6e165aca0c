// The Gram matrix of n gradients, read where they lie.
//
// The columns of all parameters in a row are cut into at most 64 slots, the same whatever the
// number of threads; a slot is summed by one thread and slots are added in order. Within a slot,
// blocks of 768 columns pass through all pairs of rows as tiles (gram_tile.h) while they are in
// the cache, and what is read next is fetched meanwhile. float32, float64 and bfloat16 are read in
// place; float16, and what a tensor leaves beyond whole registers, are staged as float32 or float64
// columns, where columns of different tensors share a block.
//
// Measured in read passes (benchmarks/results/cpu_gram.json: GPT-2's shapes, two threads of an
// Emerald Rapids with 2 MB of second cache a core and AVX-512, quiet), at n = 4, 8, 16 and 32:
// float32 1.0, 1.1, 1.35 and 1.8; bfloat16 1.05, 1.1, 1.6 and 2.8. Memory bounds n <= 8. Beyond,
// there are n/8 multiply-adds a byte of float32 and n/4 of bfloat16, at 70 % of the processor's
// peak with all rows in the second cache: 0.7 read passes at n = 32 in float32, of which little is
// hidden behind memory. There 4,700 tensors add 0.3, to be handed over and checked before the first
// is read; one tensor of as many bytes takes 1.4.
#include <cstdlib>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PAMA_X86
#endif

#include "cpu/generations.h"
#include "cpu/gram_tile.h"
#include "tensors/gram.h"

namespace pama {
namespace tiles {
namespace {

constexpr int64_t kBlock = 768;
// Rows of the stage lie 64 bytes past a multiple of a page: equal offsets would share a cache set.
constexpr int64_t kPitch = kBlock + 16;
constexpr int64_t kMaxSlots = 64;
template <class Element>
constexpr int64_t kRegister = 64 / sizeof(Element);  // columns: whole registers of any processor

// --- one instance of the tiles for each generation of processors ---------------------------------

namespace baseline {
#define PAMA_TILE_TARGET
#include "cpu/gram_tile.inc"
}  // namespace baseline
#if defined(PAMA_X86)
namespace v3 {
#undef PAMA_TILE_TARGET
#define PAMA_TILE_TARGET __attribute__((target("arch=x86-64-v3")))
#include "cpu/gram_tile.inc"
}  // namespace v3
namespace v4 {
#undef PAMA_TILE_TARGET
#define PAMA_TILE_TARGET __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#include "cpu/gram_tile.inc"
}  // namespace v4
#endif
#undef PAMA_TILE_TARGET

// PAMA_CPU_LEVEL=1..4 caps the x86-64 level, so that a test can run what older processors run.
const Processor& processor() {
  static const Processor chosen = [] {
    const char* cap = std::getenv("PAMA_CPU_LEVEL");
    const int level = cap ? std::atoi(cap) : 4;
#if defined(PAMA_X86)
    __builtin_cpu_init();
    if (level >= 4 && __builtin_cpu_supports("x86-64-v4")) return v4::processor_of<4, 64, 4>();
    if (level >= 3 && __builtin_cpu_supports("x86-64-v3")) return v3::processor_of<3, 32, 2>();
#endif
    (void)level;
    return baseline::processor_of<1, 16, 2>();
  }();
  return chosen;
}

// --- a slot --------------------------------------------------------------------------------------

// `count` elements of a gradient as `Real`, of which float64 is never narrowed.
template <class Real>
PAMA_CLONES void read(DType dtype, const void* from, int64_t count, Real* to) {
  with_real(dtype, [=](auto element) PAMA_INLINED {
    const auto* x = static_cast<const decltype(element)*>(from);
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<Real>(number(x[k]));
  });
}

// What is read after column `column` of parameter p, of which columns up to `last` are read: the
// block that follows in it, or else the start of the next parameter.
void find_next(const GradientList& grads, int64_t p, int64_t column, int64_t last, Next& next) {
  if (column == last) {
    if (++p == grads.parameters) return void(next.rows.clear());
    column = 0, last = grads.size[p];
  }
  const int64_t size = size_of(grads.dtype[p]);
  next.rows.clear();
  for (int64_t i = 0; i < grads.objectives; ++i) {
    next.rows.push_back(static_cast<const char*>(grads.at(i, p)) + column * size);
  }
  next.bytes = std::min(last - column, kBlock) * size;
}

// Columns as `Real` that do not lie in memory as such, gathered until they are worth a block.
template <class Real>
class Stage {
 public:
  Stage(const GradientList& grads, const Sums& sums)
      : grads_(grads), sums_(sums), n_(grads.objectives) {}

  // Appends columns [first, last) of parameter p; a block that is full is added to the sums.
  void append(int64_t p, int64_t first, int64_t last) {
    if (first == last) return;
    if (data_.empty()) {
      data_.resize(n_ * kPitch);
      for (int64_t i = 0; i < n_; ++i) rows_.push_back(data_.data() + i * kPitch);
    }
    const int64_t size = size_of(grads_.dtype[p]);
    while (first < last) {
      const int64_t count = std::min(last - first, kBlock - columns_);
      for (int64_t i = 0; i < n_; ++i) {
        Real* to = data_.data() + i * kPitch + columns_;
        const char* from = static_cast<const char*>(grads_.at(i, p));
        read(grads_.dtype[p], from + first * size, count, to);
      }
      first += count;
      columns_ += count;
      if (columns_ == kBlock) {
        find_next(grads_, p, first, last, next_);
        flush();
      }
    }
  }

  // Adds the staged columns, rounded up to whole registers by columns of zeros.
  void flush() {
    if (columns_ == 0) return;
    const int64_t columns = (columns_ + kRegister<Real> - 1) / kRegister<Real> * kRegister<Real>;
    for (int64_t i = 0; i < n_; ++i) {
      std::fill(data_.data() + i * kPitch + columns_, data_.data() + i * kPitch + columns, Real(0));
    }
    columns_ = 0;
    add_block(processor(), Block<Real>{rows_.data(), n_, columns, next_}, sums_);
    next_.rows.clear();
  }

 private:
  const GradientList& grads_;
  const Sums& sums_;
  int64_t n_, columns_ = 0;
  std::vector<Real> data_;
  std::vector<const Real*> rows_;
  Next next_;
};

// One thread's work: columns of the list, walked in order.
class Slot {
 public:
  Slot(const GradientList& grads, const Sums& sums)
      : grads_(grads), sums_(sums), stages_({grads, sums}, {grads, sums}) {}

  // Columns [first, last) of parameter p: whole registers where they lie, the rest through the
  // stage.
  void add(int64_t p, int64_t first, int64_t last) {
    with_real(grads_.dtype[p], [&](auto element) {
      using Element = decltype(element);
      if constexpr (!std::is_same_v<Element, Half>) {  // which no tile reads
        const int64_t whole = first + (last - first) / kRegister<Element> * kRegister<Element>;
        if (first < whole) add_whole<Element>(p, first, whole);
        first = whole;
      }
      std::get<Stage<RealOf<Element>>>(stages_).append(p, first, last);
    });
  }

  void finish() {
    std::get<0>(stages_).flush();
    std::get<1>(stages_).flush();
  }

 private:
  template <class Element>
  void add_whole(int64_t p, int64_t first, int64_t last) {
    std::vector<const Element*> rows;
    for (int64_t i = 0; i < grads_.objectives; ++i) {
      rows.push_back(static_cast<const Element*>(grads_.at(i, p)) + first);
    }
    Next next;
    while (first < last) {
      const int64_t columns = std::min(last - first, kBlock);
      first += columns;
      find_next(grads_, p, first, last, next);
      const Block<Element> block{rows.data(), grads_.objectives, columns, next};
      add_block(processor(), block, sums_);
      for (const Element*& row : rows) row += columns;
    }
  }

  const GradientList& grads_;
  const Sums& sums_;
  std::tuple<Stage<float>, Stage<double>> stages_;
};

// --- the op --------------------------------------------------------------------------------------

void run(const Tensor&, const GradientList& grads, const std::vector<int64_t>& objectives,
         double* gram, int64_t size_of_gram) {
  const int64_t n = grads.objectives;
  std::vector<int64_t> start(grads.parameters + 1, 0);
  std::partial_sum(grads.size.begin(), grads.size.end(), start.begin() + 1);
  const int64_t total = start.back();
  // 1 MB of sums for all slots, up to n = 128.
  const int64_t size = Sums::size(n);
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 17) / size, 4, kMaxSlots);
  const int64_t slots = std::clamp<int64_t>(total / (8 * kBlock), 1, most);
  const int64_t width = (total + slots - 1) / slots;
  std::vector<double> memory(slots * size, 0.0);
  const auto sums_of = [&](int64_t slot) { return Sums{n, memory.data() + slot * size}; };
  torch::stable::parallel_for(0, slots, 1, [&](int64_t first_slot, int64_t last_slot) {
    for (int64_t s = first_slot; s < last_slot; ++s) {
      const Sums sums = sums_of(s);
      Slot slot(grads, sums);
      const int64_t begin = s * width, end = std::min((s + 1) * width, total);
      int64_t p = std::upper_bound(start.begin(), start.end(), begin) - start.begin() - 1;
      // A border within a tensor goes to the next block of it, which keeps the rows aligned.
      const auto border = [&](int64_t parameter, int64_t column) {
        const int64_t inside = std::max<int64_t>(column - start[parameter], 0);
        return std::min((inside + kBlock - 1) / kBlock * kBlock, grads.size[parameter]);
      };
      for (; p < grads.parameters && start[p] < end; ++p) {
        slot.add(p, border(p, begin), border(p, end));
      }
      slot.finish();
    }
  });
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      const Sums whole = sums_of(0);
      for (int64_t s = 1; s < slots; ++s) {
        const double* part = sums_of(s).at(i, j);
        whole.add(i, j, part[0]);
        whole.at(i, j)[Sums::kTile] += part[Sums::kTile];
      }
      const double entry = whole.value(i, j);
      const int64_t row = objectives[i], column = objectives[j];
      gram[row * size_of_gram + column] += entry;
      if (i != j) gram[column * size_of_gram + row] += entry;
    }
  }
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("gram", TORCH_BOX(&gram<run>));
  m.impl("gram_accumulate", TORCH_BOX(&gram_accumulate<run>));
}

}  // namespace
}  // namespace tiles

int gram_level() { return tiles::processor().level; }

}  // namespace pama
