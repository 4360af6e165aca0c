// Blocks of rows into sums of products of all pairs, by tiles (gram_tile.inc).
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/portable.h"

namespace pama::gram {

inline constexpr int kColumns = 4;     // of a whole tile
inline constexpr int64_t kChain = 16;  // fused multiply-adds between promotions to float64

// What one generation of processors works in.
template <class RealType, int kBytes>
struct Registers {
  using Real = RealType;
  static constexpr int64_t kLanes = kBytes / sizeof(Real);
  typedef Real Vector __attribute__((vector_size(kBytes)));
  typedef Real InMemory __attribute__((vector_size(kBytes), aligned(alignof(Real)), may_alias));
  typedef double Wide __attribute__((vector_size(kBytes)));
  static constexpr int kWideLanes = kBytes / sizeof(double);
};

// The next block's rows, fetched into the cache while this block is worked on: with more rows than
// the processor's own prefetcher follows, each would start cold at each block.
struct Ahead {
  const char* rows[4];
  int count;
  int64_t bytes;  // of each row
};

// Sums of float64 with their rounding errors (Neumaier): what a block adds is never lost, however
// many blocks there are.
struct Sums {
  int64_t n;
  double *sum, *error;  // [n][n], the upper triangle

  PAMA_INLINE void add(int64_t i, int64_t j, double x) const {
    double &s = sum[i * n + j], &e = error[i * n + j];
    const double total = s + x, virtual_x = total - s;
    e += (s - (total - virtual_x)) + (x - virtual_x);
    s = total;
  }
};

// Rows of one block, what each is the gradient of, and where they go on.
template <class Real>
struct Block {
  const Real* const* rows;
  const int64_t* objective;  // ascending
  int64_t count, columns;    // a multiple of the lanes
  int64_t next;              // columns of the block that follows in the same rows
};

// Tiles of every shape, compiled for one generation of processors.
template <class Real>
using Tile = void (*)(const Real* const* a, const Real* const* b, int64_t columns,
                      const Ahead& ahead, double (*sum)[kColumns]);

template <class Real>
struct Tiles {
  int64_t rows;                             // of a whole tile
  Tile<Real> shape[3][kColumns][kColumns];  // [shift][rows - 1][columns - 1]
};

struct Processor {
  Tiles<float> floats;
  Tiles<double> doubles;
};

inline constexpr int kShifts[] = {0, 2, -kColumns};  // on the diagonal, half below it, above it

// All pairs of the block's rows, tile by tile. Each tile fetches its share of the next block.
template <class Real>
void add_block(const Tiles<Real>& tiles, const Block<Real>& block, const Sums& sums) {
  const int64_t m = block.count, groups = (m + kColumns - 1) / kColumns;
  int64_t count = 0;
  for (int64_t i = 0; i < m; i += tiles.rows) count += groups - i / kColumns;
  const int64_t share = std::min<int64_t>((m + count - 1) / count, 4);
  int64_t fetched = 0;
  double sum[kColumns][kColumns];
  for (int64_t i = 0; i < m; i += tiles.rows) {
    const int64_t rows = std::min(tiles.rows, m - i);
    for (int64_t j = i / kColumns * kColumns; j < m; j += kColumns) {
      const int64_t columns = std::min<int64_t>(kColumns, m - j);
      Ahead ahead{{}, 0, block.next * static_cast<int64_t>(sizeof(Real))};
      while (ahead.count < share && fetched < m && block.next > 0) {
        ahead.rows[ahead.count++] =
            reinterpret_cast<const char*>(block.rows[fetched++] + block.columns);
      }
      const int shift = i == j ? 0 : i > j ? 1 : 2;
      tiles.shape[shift][rows - 1][columns - 1](block.rows + i, block.rows + j, block.columns,
                                                ahead, sum);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          if (j + c >= i + r) {
            sums.add(block.objective[i + r], block.objective[j + c], sum[r][c]);
          }
        }
      }
    }
  }
}

}  // namespace pama::gram
