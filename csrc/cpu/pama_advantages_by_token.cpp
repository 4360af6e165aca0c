// `token`: weights are chosen at every token, so loops run over tokens inside and objectives
// outside and vectorise for any n. With a uniform preference they only compare and select, which
// float32 does exactly, at twice the lanes of float64. Tokens whose advantages straddle 0 (never
// with Noon) go to the solver one by one.
#include "cpu/pama_advantages_combine.h"

namespace pama {
namespace {

// A tile, and what is made of it. With a uniform preference weights are found by comparing alone.
template <class Real>
struct TokenTile : PamaTile<Real> {
  TokenTile(const PamaInputs& batch, const Preference& preference)
      : PamaTile<Real>(batch, preference.used),
        preference(preference),
        weight(this->size()),
        weight_at(this->size()),
        values(this->size()),
        solution(this->size()),
        reals(PamaWeights<SerialTeam>::reals(this->size())),
        solver({}, static_cast<int>(this->size()), {reals.data(), nullptr}) {
    solver.prefer(preference.relative.data());
  }

  const Preference& preference;
  std::vector<TileTokens<Real>> weight;
  TileTokens<Real> combined, optimum;
  std::vector<Real*> weight_at;  // where they are written: there, or in the results
  Real *combined_at, *optimum_at;
  TileTokens<Real> poison;                      // 0, or NaN if a part is not finite
  std::vector<double> values, solution, reals;  // of one token that straddles 0
  PamaWeights<SerialTeam> solver;
};

template <bool kUniform, class Real>
PAMA_INLINE Real rank_of(Real part, Real preference) {
  return kUniform ? std::abs(part) : std::abs(part) / preference;
}

// Theorem 1 on every token of the tile, but for those that straddle 0: the weight goes to the
// objectives of least rank |part| / preference. Plain loops over tokens, which the compiler makes
// vectors of for each generation of processors; what they leave for the next stays in the L1 cache.
// (Vector types would be split into scalars before the clones for the generations are made.)
//
// The first pass leaves the rows in the tile: rows of a tensor lie powers of two apart as a rule
// and share a cache set, and three passes over them where they lie took up to four times as long.
template <bool kUniform, bool kRatio, class Real>
PAMA_INLINE void choose_by_token(const Real* log_ratio, TokenTile<Real>& tile) {
  const Preference& p = tile.preference;
  const int64_t used = tile.size(), count = tile.count;
  TileTokens<Real> least_row, ties_row, tied_row;
  Real *least = least_row.at, *ties = ties_row.at, *tied = tied_row.at;
  Real *poison = tile.poison.at, *combined = tile.combined_at, *optimum = tile.optimum_at;
  const Real floor = tile.floor;
  std::fill_n(least, count, Real(HUGE_VAL));
  for (Real* x : {poison, ties, tied, combined, optimum}) std::fill_n(x, count, Real(0));
  for (int64_t k = 0; k < used; ++k) {
    const Real* from = tile.advantage_at[k];
    Real *advantage = tile.advantage[k].at, *part = tile.parts[k].at;
    const Real preference = static_cast<Real>(p.relative[k]);
    if (kRatio) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const Real a = after_noon(from[j], floor);
        advantage[j] = a;
        part[j] = part_of(tile, j, a);
      }
      if (tile.weighted()) weight_parts(log_ratio, count, part);
      from = part;
    }
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const Real a = kRatio ? from[j] : after_noon(from[j], floor);
      const Real r = rank_of<kUniform>(a, preference);
      if (!kRatio) part[j] = a;
      poison[j] += a * 0;
      least[j] = r < least[j] ? r : least[j];
    }
  }
  for (int64_t k = 0; k < used; ++k) {
    const Real* part = tile.parts[k].at;
    const Real preference = static_cast<Real>(p.relative[k]);
    const Real offset = static_cast<Real>(p.offset[k]);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const bool tie = rank_of<kUniform>(part[j], preference) == least[j];
      ties[j] += tie ? Real(1) : Real(0);
      if (!kUniform) tied[j] += tie ? offset : Real(0);
    }
  }
  Real* share = ties;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    // Preferences that sum to 1 may do so only to rounding, and no weight is negative.
    const Real rest = kUniform ? Real(1) : std::max(1 - tied[j], Real(0));
    share[j] = rest / ties[j] + poison[j];
  }
  for (int64_t k = 0; k < used; ++k) {
    const Real *part = tile.parts[k].at, *advantage = tile.advantage[k].at;
    Real* weight = tile.weight_at[k];
    const Real preference = static_cast<Real>(p.relative[k]);
    const Real offset = static_cast<Real>(p.offset[k]);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const Real chosen = share[j] + offset;
      const Real w = rank_of<kUniform>(part[j], preference) == least[j] ? chosen : poison[j];
      weight[j] = w;
      optimum[j] += w * part[j];
      // Where A is not finite but I(A) is, that is 0, of least rank, and w is positive.
      if (kRatio) combined[j] += w * advantage[j];
    }
  }
  if (!kRatio) std::copy_n(optimum, count, combined);  // I(A) is A
}

// The same with Noon, a uniform preference and at most kFew objectives: in one pass, in registers.
// Rows that lack repeat the last one, but do not count.
constexpr int64_t kFew = 4;

template <bool kRatio, class Real>
PAMA_INLINE void choose_among_few(TokenTile<Real>& tile) {
  const int64_t count = tile.count, last = tile.size() - 1;
  const auto row = [last](int64_t k) { return std::min(k, last); };
  const auto counts = [last](int64_t k) { return static_cast<Real>(k <= last ? 1 : 0); };
  const Real *a0 = tile.advantage_at[0], *a1 = tile.advantage_at[row(1)];
  const Real *a2 = tile.advantage_at[row(2)], *a3 = tile.advantage_at[row(3)];
  Real *w0 = tile.weight_at[0], *w1 = tile.weight_at[row(1)];
  Real *w2 = tile.weight_at[row(2)], *w3 = tile.weight_at[row(3)];
  const Real c1 = counts(1), c2 = counts(2), c3 = counts(3);
  // Where they do not count, they add zeros: an advantage that the clip holds flat may be infinite.
  const auto summand = [&](int64_t k) {
    return k <= last ? tile.advantage_at[k] : kZeros<Real>.at;
  };
  const Real *b1 = summand(1), *b2 = summand(2), *b3 = summand(3);
  const Real* upper = tile.upper.at;
  Real *poison = tile.poison.at, *combined = tile.combined_at, *optimum = tile.optimum_at;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const Real x0 = after_noon(a0[j], Real(0)), x1 = after_noon(a1[j], Real(0));
    const Real x2 = after_noon(a2[j], Real(0)), x3 = after_noon(a3[j], Real(0));
    const Real verdict = kRatio ? upper[j] : Real(kLive);
    const auto part = [verdict](Real x) { return verdict == kLive ? x : verdict; };
    const Real p0 = part(x0), p1 = part(x1), p2 = part(x2), p3 = part(x3);
    const Real poisoned = p0 * 0 + p1 * 0 + (p2 * 0 + p3 * 0);
    const Real low = p1 < p0 ? p1 : p0, other = p3 < p2 ? p3 : p2;
    const Real least = other < low ? other : low;
    const bool t0 = p0 == least, t1 = p1 == least, t2 = p2 == least, t3 = p3 == least;
    const Real ties = ((t0 ? Real(1) : Real(0)) + (t1 ? c1 : Real(0))) +
                      ((t2 ? c2 : Real(0)) + (t3 ? c3 : Real(0)));
    const Real share = 1 / ties + poisoned;
    const Real s0 = t0 ? share : poisoned, s1 = t1 ? share : poisoned;
    const Real s2 = t2 ? share : poisoned, s3 = t3 ? share : poisoned;
    w0[j] = s0, w1[j] = s1, w2[j] = s2, w3[j] = s3;
    poison[j] = poisoned;
    optimum[j] = least + poisoned;
    const auto kept = [](Real x) { return after_noon(x, Real(0)); };
    combined[j] = kRatio ? (s0 * x0 + s1 * kept(b1[j])) + (s2 * kept(b2[j]) + s3 * kept(b3[j]))
                         : least + poisoned;
  }
}

// The exact projection, for tokens with advantages on both sides of 0.
template <class Real>
PAMA_INLINE void choose_straddling(bool ratio, TokenTile<Real>& tile) {
  const int64_t used = tile.size();
  for (int64_t j = 0; j < tile.count; ++j) {
    double low = 0, high = 0;
    for (int64_t k = 0; k < used; ++k) {
      tile.values[k] = tile.parts[k].at[j];
      low = std::min(low, tile.values[k]);
      high = std::max(high, tile.values[k]);
    }
    if (!(low < 0 && high > 0) || tile.poison.at[j] != 0) continue;
    tile.optimum_at[j] =
        static_cast<Real>(tile.solver.solve(tile.values.data(), tile.solution.data()));
    double combined = 0;
    for (int64_t k = 0; k < used; ++k) {
      const double w = tile.solution[k];
      tile.weight_at[k][j] = static_cast<Real>(w);
      if (w != 0) combined += w * (ratio ? tile.advantage[k].at[j] : tile.parts[k].at[j]);
    }
    tile.combined_at[j] = static_cast<Real>(combined);
  }
}

template <class Real>
PAMA_CLONES void by_token(const Combine& job, int64_t b, TokenTile<Real>& tile) {
  const PamaInputs& batch = job.inputs;
  const Preference& p = tile.preference;
  const int64_t used = tile.size();
  tile.enter(b);
  while (tile.next(batch.mask)) {
    place_advantages(tile);
    const Real* log_ratio = place_ratio(tile);
    for (int64_t k = 0; k < used; ++k) {
      tile.weight_at[k] = results_at(job.weights, p.used[k], tile, tile.weight[k].at);
    }
    tile.combined_at = results_at(job.advantages, 0, tile, tile.combined.at);
    tile.optimum_at = results_at(job.optimum, 0, tile, tile.optimum.at);
    const bool few = used > 0 && used <= kFew;
    if (p.uniform && batch.rule.noon && few && !tile.weighted()) {
      log_ratio ? choose_among_few<true>(tile) : choose_among_few<false>(tile);
    } else if (std::is_same_v<Real, float> || p.uniform) {
      log_ratio ? choose_by_token<true, true>(log_ratio, tile)
                : choose_by_token<true, false>(log_ratio, tile);
    } else {
      log_ratio ? choose_by_token<false, true>(log_ratio, tile)
                : choose_by_token<false, false>(log_ratio, tile);
    }
    if (!batch.rule.noon) choose_straddling(log_ratio != nullptr, tile);
    for (int64_t n = 0, k = 0; n < batch.sequences.objectives; ++n) {
      const bool counts = k < used && p.used[k] == n;
      finish(job.weights, n, tile, counts ? tile.weight_at[k++] : tile.poison.at);
    }
    finish(job.advantages, 0, tile, tile.combined_at);
    finish(job.optimum, 0, tile, tile.optimum_at);
  }
}

}  // namespace

void combine_by_token(const Combine& job) {
  const auto run = [&](auto real) {
    for_sequences(job.inputs.sequences, [&](int64_t first, int64_t end) {
      std::optional<TokenTile<decltype(real)>> tile;
      for (int64_t b = first; b < end; ++b) {
        const Preference& preference = job.preferences.at(b);
        if (!tile || &tile->preference != &preference) tile.emplace(job.inputs, preference);
        by_token(job, b, *tile);
      }
    });
  };
  job.preferences.uniform ? with_reals(job.inputs, run) : run(0.0);
}

}  // namespace pama
