// Blocks of columns into sums of products of all pairs, by tiles (gram_tile.inc).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/dtype.h"

namespace pama::tiles {

inline constexpr int kColumns = 4;    // of a whole tile
inline constexpr int64_t kChain = 8;  // fused multiply-adds of a chain
inline constexpr int64_t kChains = 6;

// What an element's products are summed in.
template <class Element>
using RealOf = std::conditional_t<std::is_same_v<Element, double>, double, float>;

// What one generation of processors works in: registers of elements as they lie in memory, and the
// `kParts` vectors of numbers that one of them holds.
template <class ElementType, int kBytes>
struct Registers {
  using Element = ElementType;
  using Real = RealOf<Element>;
  static constexpr int64_t kLanes = kBytes / sizeof(Real);
  static constexpr int kParts = sizeof(Real) / sizeof(Element);
  typedef Real Vector __attribute__((vector_size(kBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
  typedef Bits InMemory __attribute__((aligned(alignof(Element)), may_alias));
};

// What is read after a block, fetched into the cache while the block is worked on: with more rows
// than the processor's own prefetcher follows, each would start cold at each block.
struct Next {
  std::vector<const char*> rows;
  int64_t bytes = 0;  // of each row
};

// A tile's share of it.
struct Ahead {
  const char* rows[4];  // the first is set
  int count;
  int64_t bytes;
};

// sum += x, and the rounding error to `error` (Neumaier): what a block adds is never lost, however
// many blocks there are.
PAMA_INLINE void compensate(double& sum, double& error, double x) {
  const double total = sum + x, virtual_x = total - sum;
  error += (sum - (total - virtual_x)) + (x - virtual_x);
  sum = total;
}

// Sums of all pairs of n rows. They lie as tiles write them: 4 x 4 sums, their errors, the next.
struct Sums {
  static constexpr int64_t kTile = 4 * kColumns;
  int64_t n;
  double* data;

  static int64_t groups(int64_t n) { return (n + kColumns - 1) / kColumns; }
  static int64_t size(int64_t n) { return 2 * kTile * groups(n) * groups(n); }

  double* at(int64_t i, int64_t j) const {
    const int64_t tile = i / 4 * groups(n) + j / kColumns;
    return data + 2 * kTile * tile + i % 4 * kColumns + j % kColumns;
  }
  void add(int64_t i, int64_t j, double x) const { compensate(at(i, j)[0], at(i, j)[kTile], x); }
  double value(int64_t i, int64_t j) const {
    const double sum = at(i, j)[0], error = at(i, j)[kTile];
    return std::isfinite(error) ? sum + error : sum;
  }
};

// Columns of some rows.
template <class Element>
struct Block {
  const Element* const* rows;
  int64_t count, columns;  // whole registers
  const Next& next;
};

// Tiles of every shape, compiled for one generation of processors.
template <class Element>
using Tile = void (*)(const Element* const* a, const Element* const* b, int64_t columns,
                      const Ahead& ahead, double* sums);

template <class Element>
struct Tiles {
  int64_t rows;                                // of a whole tile
  Tile<Element> shape[3][kColumns][kColumns];  // [shift][rows - 1][columns - 1]
};

struct Processor {
  int level;  // the generation of x86-64
  std::tuple<Tiles<float>, Tiles<double>, Tiles<BFloat16>> tiles;
};

inline constexpr int kShifts[] = {0, 2, -kColumns};  // on the diagonal, half below it, above it

// All pairs of the block's rows, tile by tile. Each tile fetches its share of the next block.
template <class Element>
void add_block(const Processor& processor, const Block<Element>& block, const Sums& sums) {
  const auto& tiles = std::get<Tiles<Element>>(processor.tiles);
  const int64_t m = block.count, groups = Sums::groups(m);
  int64_t count = 0;
  for (int64_t i = 0; i < m; i += tiles.rows) count += groups - i / kColumns;
  const std::vector<const char*>& next = block.next.rows;
  const size_t share = std::min<size_t>((next.size() + count - 1) / count, 4);
  size_t fetched = 0;
  for (int64_t i = 0; i < m; i += tiles.rows) {
    const int64_t rows = std::min(tiles.rows, m - i);
    for (int64_t j = i / kColumns * kColumns; j < m; j += kColumns) {
      Ahead ahead{{reinterpret_cast<const char*>(block.rows[i])}, 0, 0};
      for (size_t k = 0; k < share && fetched < next.size(); ++k) {
        ahead.rows[ahead.count++] = next[fetched++];
        ahead.bytes = block.next.bytes;
      }
      const int shift = i == j ? 0 : i > j ? 1 : 2;
      tiles.shape[shift][rows - 1][std::min<int64_t>(kColumns, m - j) - 1](
          block.rows + i, block.rows + j, block.columns, ahead, sums.at(i, j));
    }
  }
}

}  // namespace pama::tiles
