// The combined advantages, by the weights that each reduction chooses.
//
// `token` chooses weights at every token, so its loops run over tokens inside and objectives
// outside and vectorise for any n. With a uniform preference they only compare and select, which
// float32 does exactly, at twice the lanes of float64. Tokens whose advantages straddle 0 (never
// with Noon) go to the solver one by one.
#include <map>

#include "core/min_norm.h"
#include "core/pama_weights.h"
#include "cpu/pama_batch.h"

namespace pama {
namespace {

// The objectives that count in one problem: those that are active, with their preferences.
struct Preference {
  std::vector<double> raw;       // 0: dropped
  std::vector<int64_t> used;     // the others
  std::vector<double> relative;  // of the used, to the largest
  std::vector<double> offset;    // of the used, to their sum; 0 for a uniform preference
  bool uniform = true;

  explicit Preference(std::vector<double> numbers) : raw(std::move(numbers)) {
    const auto n = static_cast<int64_t>(raw.size());
    std::vector<double> all(n);
    relative_preference(SerialTeam{}, static_cast<int>(n), raw.data(), DBL_MIN, all.data());
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!(all[i] > 0)) continue;  // all are NaN where nothing is both active and preferred
      used.push_back(i);
      relative.push_back(all[i]);
      total += all[i];
      uniform &= all[i] == 1;
    }
    for (const double p : relative) offset.push_back(uniform ? 0.0 : p / total);
  }
};

// The preference of each sequence: as a rule few differ, and one problem is set up for all alike.
struct Preferences {
  std::vector<Preference> distinct;
  std::vector<size_t> of;  // by sequence; empty if all share the one
  bool uniform = true;     // of those in play each
  bool any = false;        // whether any objective counts anywhere

  Preferences(const Batch& batch, const double* active) {
    const int64_t n = batch.sequences.objectives;
    const auto column = [&](int64_t b) {
      std::vector<double> raw(n);
      for (int64_t i = 0; i < n; ++i)
        raw[i] = active[i] != 0 ? preferred(batch.preference, i, b) : 0;
      return raw;
    };
    if (!batch.by_sequence) {
      add(column(0));
      return;
    }
    std::map<std::vector<double>, size_t> found;
    of.reserve(batch.sequences.count);
    for (int64_t b = 0; b < batch.sequences.count; ++b) {
      std::vector<double> raw = column(b);
      if (b > 0 && raw == distinct[of.back()].raw) {
        of.push_back(of.back());
        continue;
      }
      const auto [at, is_new] = found.try_emplace(raw, distinct.size());
      of.push_back(at->second);
      if (is_new) add(std::move(raw));
    }
  }

  void add(std::vector<double> raw) {
    distinct.emplace_back(std::move(raw));
    uniform &= distinct.back().uniform;
    any |= !distinct.back().used.empty();
  }

  const Preference& at(int64_t b) const { return distinct[of.empty() ? 0 : of[b]]; }
};

struct Combine {
  Batch batch;
  const Preferences& preferences;
  View advantages, weights, optimum;
};

// --- token ---------------------------------------------------------------------------------------

// A tile, and what is made of it. With a uniform preference weights are found by comparing alone.
template <class Real>
struct TokenTile : Tile<Real> {
  TokenTile(const Batch& batch, const Preference& preference)
      : Tile<Real>(batch, preference.used),
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
  std::vector<Row<Real>> weight;
  Row<Real> combined, optimum;
  std::vector<Real*> weight_at;  // where they are written: there, or in the results
  Real *combined_at, *optimum_at;
  Row<Real> poison;                             // 0, or NaN if a part is not finite
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
PAMA_INLINE void choose_by_token(const Combine& job, const Real* log_ratio, TokenTile<Real>& tile) {
  const Preference& p = tile.preference;
  const int64_t used = tile.size(), count = tile.tokens.count;
  Row<Real> least_row, ties_row, tied_row;
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
      if (weighted<Real>(job.batch)) weight_parts(log_ratio, count, part);
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
  const int64_t count = tile.tokens.count, last = tile.size() - 1;
  const auto row = [last](int64_t k) { return std::min(k, last); };
  const auto counts = [last](int64_t k) { return static_cast<Real>(k <= last ? 1 : 0); };
  const Real *a0 = tile.advantage_at[0], *a1 = tile.advantage_at[row(1)];
  const Real *a2 = tile.advantage_at[row(2)], *a3 = tile.advantage_at[row(3)];
  Real *w0 = tile.weight_at[0], *w1 = tile.weight_at[row(1)];
  Real *w2 = tile.weight_at[row(2)], *w3 = tile.weight_at[row(3)];
  const Real c1 = counts(1), c2 = counts(2), c3 = counts(3);
  // Where they do not count, they add zeros: an advantage that the clip holds flat may be infinite.
  static const Row<Real> zeros{};
  const auto summand = [&](int64_t k) { return k <= last ? tile.advantage_at[k] : zeros.at; };
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
  for (int64_t j = 0; j < tile.tokens.count; ++j) {
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
PAMA_INLINE void combine_tokens(const Combine& job, int64_t b, TokenTile<Real>& tile) {
  const Batch& batch = job.batch;
  const Sequences& s = batch.sequences;
  const Preference& p = tile.preference;
  const int64_t size = s.size(b), used = tile.size();
  for (int64_t t = 0; t < size; t += kTile) {
    const auto weights = [&](int64_t n) { return s.first(job.weights, n, b) + t; };
    const int64_t out = s.first(job.advantages, 0, b) + t;
    const auto at = [&](const View& view, int64_t first) {
      return rows::in_place<Real>(view, first, tile.tokens);
    };
    place_advantages(batch, b, t, std::min(kTile, size - t), tile);
    const Real* log_ratio = place_ratio(batch, b, t, tile);
    // Either all results can be written where they belong, or none.
    const bool placed = rows::in_place<Real>(job.advantages, out, tile.tokens);
    for (int64_t k = 0; k < used; ++k) {
      tile.weight_at[k] = placed ? at(job.weights, weights(p.used[k])) : tile.weight[k].at;
    }
    tile.combined_at = placed ? at(job.advantages, out) : tile.combined.at;
    tile.optimum_at = placed ? at(job.optimum, out) : tile.optimum.at;
    if (p.uniform && batch.rule.noon && used <= kFew && !weighted<Real>(batch)) {
      log_ratio ? choose_among_few<true>(tile) : choose_among_few<false>(tile);
    } else if (std::is_same_v<Real, float> || p.uniform) {
      log_ratio ? choose_by_token<true, true>(job, log_ratio, tile)
                : choose_by_token<true, false>(job, log_ratio, tile);
    } else {
      log_ratio ? choose_by_token<false, true>(job, log_ratio, tile)
                : choose_by_token<false, false>(job, log_ratio, tile);
    }
    if (!batch.rule.noon) choose_straddling(log_ratio != nullptr, tile);
    if (placed) {
      for (int64_t n = 0, k = 0; n < s.objectives; ++n) {
        Real* there = at(job.weights, weights(n));
        if (k < used && p.used[k] == n) {
          ++k;
        } else {
          std::copy_n(tile.poison.at, tile.tokens.count, there);
        }
        rows::clear_around(there, tile.tokens);
      }
      rows::clear_around(tile.combined_at, tile.tokens);
      rows::clear_around(tile.optimum_at, tile.tokens);
    } else {
      for (int64_t n = 0, k = 0; n < s.objectives; ++n) {
        const bool counts = k < used && p.used[k] == n;
        const Real* w = counts ? tile.weight[k++].at : tile.poison.at;
        rows::scatter(job.weights, weights(n), tile.tokens, w);
      }
      rows::scatter(job.advantages, out, tile.tokens, tile.combined.at);
      rows::scatter(job.optimum, out, tile.tokens, tile.optimum.at);
    }
  }
}

PAMA_CLONES void by_token(const Combine& job, int64_t b, TokenTile<float>& tile) {
  combine_tokens(job, b, tile);
}

PAMA_CLONES void by_token(const Combine& job, int64_t b, TokenTile<double>& tile) {
  combine_tokens(job, b, tile);
}

void clear_tokens(const View& view, int64_t first, int64_t count) {
  for (int64_t t = 0; t < count; ++t) store(view, first + t, 0);
}

// A sequence in which no objective counts.
void clear_by_token(const Combine& job, int64_t b) {
  const Sequences& s = job.batch.sequences;
  const int64_t size = s.size(b);
  for (int64_t n = 0; n < s.objectives; ++n) {
    clear_tokens(job.weights, s.first(job.weights, n, b), size);
  }
  clear_tokens(job.advantages, s.first(job.advantages, 0, b), size);
  clear_tokens(job.optimum, s.first(job.optimum, 0, b), size);
}

void combine_by_token(const Combine& job) {
  const auto run = [&](auto real) {
    for_sequences(job.batch.sequences, [&](int64_t first, int64_t end) {
      std::optional<TokenTile<decltype(real)>> tile;
      for (int64_t b = first; b < end; ++b) {
        const Preference& preference = job.preferences.at(b);
        if (preference.used.empty()) {
          clear_by_token(job, b);
          continue;
        }
        if (!tile || &tile->preference != &preference) tile.emplace(job.batch, preference);
        by_token(job, b, *tile);
      }
    });
  };
  job.preferences.uniform ? with_reals(job.batch, run) : run(0.0);
}

// --- one weight vector a sequence, or one for all ------------------------------------------------

template <class Real>
PAMA_INLINE void find_means(const Batch& batch, int64_t b, Tile<Real>& tile, double* means) {
  const int64_t size = batch.sequences.size(b), n = batch.sequences.objectives;
  const int64_t step = tile_length<Real>(batch, size);
  int64_t total = 0;
  std::fill_n(means, n, 0.0);
  for (int64_t t = 0; t < size; t += step) {
    place_parts(batch, b, t, std::min(step, size - t), tile);
    total += tile.tokens.count;
    for (int64_t i = 0; i < n; ++i) means[i] += sum_of_parts(tile, i);
  }
  for (int64_t i = 0; i < n; ++i) means[i] /= static_cast<double>(std::max<int64_t>(total, 1));
  means[n] = static_cast<double>(total);
}

PAMA_CLONES void mean_parts(const Batch& batch, int64_t b, Tile<float>& tile, double* means) {
  find_means(batch, b, tile, means);
}

PAMA_CLONES void mean_parts(const Batch& batch, int64_t b, Tile<double>& tile, double* means) {
  find_means(batch, b, tile, means);
}

// out = before + Σ w a over four rows; `before` may be null.
template <class Real, class Out>
PAMA_INLINE void add_four(const Real* const* a, const double* w, Real floor, int64_t count,
                          const double* before, Out* out) {
  const Real *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
  const double w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
  const auto rest = [before](int64_t j) { return before ? before[j] : 0.0; };
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const double sum = (w0 * after_noon(a0[j], floor) + w1 * after_noon(a1[j], floor)) +
                       (w2 * after_noon(a2[j], floor) + w3 * after_noon(a3[j], floor));
    out[j] = static_cast<Out>(rest(j) + sum);
  }
}

// Σ w a over the rows of one tile that have a weight, four at a time: sums stay in registers.
template <class Real>
PAMA_INLINE void combine_rows(const Tile<Real>& tile, const double* weights, Real* combined) {
  static const Row<Real> zeros{};
  const int64_t count = tile.tokens.count;
  Row<double> sum;
  const double* before = nullptr;
  const Real* a[4];
  double w[4];
  int rows = 0;
  for (int64_t i = 0; i < tile.size(); ++i) {
    if (weights[i] == 0) continue;
    if (rows == 4) {
      add_four(a, w, tile.floor, count, before, sum.at);
      before = sum.at;
      rows = 0;
    }
    a[rows] = tile.advantage_at[i], w[rows++] = weights[i];
  }
  for (; rows < 4; ++rows) a[rows] = zeros.at, w[rows] = 0;
  if (before) {
    add_four(a, w, tile.floor, count, before, combined);
  } else {
    add_four(a, w, tile.floor, count, nullptr, combined);
  }
}

template <class Real>
PAMA_INLINE void combine_tiles(const Combine& job, int64_t b, const double* weights,
                               Tile<Real>& tile) {
  const Sequences& s = job.batch.sequences;
  Row<Real> scratch;
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    place_advantages(job.batch, b, t, std::min(kTile, size - t), tile);
    const int64_t first = s.first(job.advantages, 0, b) + t;
    Real* there = rows::in_place<Real>(job.advantages, first, tile.tokens);
    combine_rows(tile, weights, there ? there : scratch.at);
    if (there) {
      rows::clear_around(there, tile.tokens);
    } else {
      rows::scatter(job.advantages, first, tile.tokens, scratch.at);
    }
  }
}

PAMA_CLONES void combine_sequence(const Combine& job, int64_t b, const double* weights,
                                  Tile<float>& tile) {
  combine_tiles(job, b, weights, tile);
}

PAMA_CLONES void combine_sequence(const Combine& job, int64_t b, const double* weights,
                                  Tile<double>& tile) {
  combine_tiles(job, b, weights, tile);
}

void combine_by_sequence(const Combine& job) {
  const Sequences& s = job.batch.sequences;
  const int64_t n = s.objectives;
  with_reals(job.batch, [&](auto real) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      Tile<decltype(real)> tile(job.batch);
      std::vector<double> means(n + 1), weights(n), reals(PamaWeights<SerialTeam>::reals(n));
      PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {reals.data(), nullptr});
      const Preference* preference = nullptr;
      for (int64_t b = first; b < end; ++b) {
        if (preference != &job.preferences.at(b)) {
          preference = &job.preferences.at(b);
          solver.prefer(preference->raw.data());
        }
        mean_parts(job.batch, b, tile, means.data());
        double optimum = 0;
        std::fill(weights.begin(), weights.end(), 0.0);
        if (means[n] > 0 && !preference->used.empty())
          optimum = solver.solve(means.data(), weights.data());
        for (int64_t i = 0; i < n; ++i) store(job.weights, i * s.count + b, weights[i]);
        store(job.optimum, b, optimum);
        combine_sequence(job, b, weights.data(), tile);
      }
    });
  });
}

// One problem for the whole batch, of one preference. Returns the optimum.
double solve_batch(const Preference& preference, Reduction reduction, const double* statistics,
                   double* weights) {
  const auto n = static_cast<int64_t>(preference.raw.size());
  const int size = static_cast<int>(n);
  std::fill_n(weights, n, 0.0);
  if (preference.used.empty()) return 0;
  std::vector<double> problem(statistics + n, statistics + statistics_size(n, reduction));
  if (reduction == Reduction::kGram) {
    std::vector<double> reals(MinNorm<SerialTeam>::reals(n));
    std::vector<int> integers(MinNorm<SerialTeam>::integers(n));
    MinNorm<SerialTeam>({.team = {},
                         .n = size,
                         .gram = problem.data(),
                         .vector = preference.raw.data(),
                         .rtol = 0x1p-52,
                         .options = nullptr,
                         .out = weights,
                         .workspace = {reals.data(), integers.data()}})
        .solve();
    return 0;
  }
  std::vector<double> reals(PamaWeights<SerialTeam>::reals(n));
  for (int64_t i = 0; i < n; ++i) problem[1 + i] /= std::max(problem[0], 1.0);
  PamaWeights<SerialTeam> solver({}, size, {reals.data(), nullptr});
  solver.prefer(preference.raw.data());
  return solver.solve(problem.data() + 1, weights);
}

void combine_by_batch(const Combine& job, Reduction reduction, const double* statistics) {
  const Sequences& s = job.batch.sequences;
  const Preferences& preferences = job.preferences;
  const int64_t n = s.objectives, kinds = static_cast<int64_t>(preferences.distinct.size());
  std::vector<double> weights(kinds * n), optimum(kinds);
  parallel_for(0, kinds, std::max<int64_t>(4096 / (n * n * n), 1), [&](int64_t first, int64_t end) {
    for (int64_t k = first; k < end; ++k) {
      optimum[k] =
          solve_batch(preferences.distinct[k], reduction, statistics, weights.data() + k * n);
    }
  });
  // Of each sequence if they differ, or of all.
  const int64_t problems = job.batch.by_sequence ? s.count : 1;
  const auto kind = [&](int64_t b) { return preferences.of.empty() ? 0 : preferences.of[b]; };
  for (int64_t b = 0; b < problems; ++b) {
    for (int64_t i = 0; i < n; ++i) store(job.weights, i * problems + b, weights[kind(b) * n + i]);
    if (reduction == Reduction::kBatch) store(job.optimum, b, optimum[kind(b)]);
  }
  with_reals(job.batch, [&](auto real) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      Tile<decltype(real)> tile(job.batch);
      for (int64_t b = first; b < end; ++b) {
        combine_sequence(job, b, weights.data() + kind(b) * n, tile);
      }
    });
  });
}

// --- the op --------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> pama_combine(
    const Tensor& advantages, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& log_ratio, const std::optional<Tensor>& preference,
    const std::optional<Tensor>& cu_seqlens, const Tensor& statistics, int64_t reduction_code,
    double low, double high, bool noon, bool ratio_weighted) {
  check_pama(advantages, mask, log_ratio, preference, cu_seqlens, reduction_code);
  check_pama_combine(advantages, statistics, reduction_code);
  const auto reduction = static_cast<Reduction>(reduction_code);
  const bool ragged = cu_seqlens.has_value();
  const Batch batch = batch_of(advantages, mask, log_ratio, preference, cu_seqlens, low, high, noon,
                               ratio_weighted);
  const Sequences& s = batch.sequences;
  check_token_values(mask, cu_seqlens, s);
  check_preference(preference);
  const ScalarType dtype = result_dtype(&advantages, log_ratio);
  const std::vector<int64_t> tokens(advantages.sizes().begin() + 1, advantages.sizes().end());
  std::vector<int64_t> shape = pama_problem_shape(advantages, s, reduction, preference);
  Tensor optimum =
      allocate(advantages, reduction == Reduction::kGram ? std::vector<int64_t>{0} : shape, dtype);
  shape.insert(shape.begin(), s.objectives);
  Tensor weights = allocate(advantages, shape, dtype);
  Tensor combined = allocate(advantages, tokens, dtype);
  Tensor active = allocate(advantages, {s.objectives}, ScalarType::Bool);
  const double* flags = static_cast<const double*>(statistics.const_data_ptr());
  for (int64_t i = 0; i < s.objectives; ++i) {
    static_cast<bool*>(active.mutable_data_ptr())[i] = flags[i] != 0;
  }
  const Preferences preferences(batch, flags);
  // Without a sequence to walk there may still be rows without tokens, which have weights of 0.
  if (!preferences.any || (reduction == Reduction::kSequence && s.count == 0)) {
    for (Tensor* x : {&combined, &weights, &optimum}) torch::stable::zero_(*x);
    return {combined, weights, optimum, active};
  }
  const Combine job{batch, preferences, view_of(combined, ragged), view_of(weights, ragged),
                    view_of(optimum, ragged)};
  if (reduction == Reduction::kSequence) {
    combine_by_sequence(job);
  } else if (reduction == Reduction::kToken) {
    combine_by_token(job);
  } else {
    combine_by_batch(job, reduction, flags);
  }
  return {combined, weights, optimum, active};
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) { m.impl("pama_combine", TORCH_BOX(&pama_combine)); }

}  // namespace
}  // namespace pama
