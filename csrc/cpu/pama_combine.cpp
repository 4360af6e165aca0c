// The combined advantages, by the weights that each reduction chooses.
//
// `token` chooses weights at every token, so its loops run over tokens inside and objectives
// outside and vectorise for any n. With a uniform preference they only compare and select, which
// float32 does exactly, at twice the lanes of float64. Tokens whose advantages straddle 0 (never
// with Noon) go to the solver one by one.
#include "core/min_norm.h"
#include "core/pama_weights.h"
#include "cpu/pama_batch.h"

namespace pama {
namespace {

// The objectives that count: those that are active, with their preferences.
struct Preference {
  std::vector<double> raw;       // 0: dropped
  std::vector<int64_t> used;     // the others
  std::vector<double> relative;  // of the used, to the largest
  std::vector<double> offset;    // of the used, to their sum; 0 for a uniform preference
  bool uniform = true;

  Preference(const double* statistics, const std::optional<Tensor>& preference, int64_t n)
      : raw(n, 1.0) {
    if (preference) {
      const View view = view_of(*preference);
      for (int64_t i = 0; i < n; ++i) raw[i] = load(view, i * view.token);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (statistics[i] == 0) raw[i] = 0;
    }
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

struct Combine {
  Batch batch;
  const Preference& preference;
  View advantages, weights, optimum;
};

// --- token ---------------------------------------------------------------------------------------

// 64 bytes of lanes; the compiler splits them on processors with shorter registers.
template <class Real>
struct Lanes {
  typedef Real Vector __attribute__((vector_size(64)));
  typedef Real InMemory __attribute__((vector_size(64), aligned(alignof(Real)), may_alias));
  static constexpr int64_t kCount = 64 / sizeof(Real);
  static constexpr DType kDType = sizeof(Real) == 4 ? DType::kFloat : DType::kDouble;
};

// A tile, and what is made of it. With a uniform preference weights are found by comparing alone.
template <class Real>
struct TokenTile : Tile<Real> {
  TokenTile(const Batch& batch, const Preference& preference)
      : Tile<Real>(batch, preference.used),
        weight(this->size() * kTile),
        advantage_at(this->size()),
        part_at(this->size()),
        weight_at(this->size()),
        values(this->size()),
        solution(this->size()),
        reals(PamaWeights<SerialTeam>::reals(this->size())),
        solver({}, static_cast<int>(this->size()), {reals.data(), nullptr}) {
    solver.prefer(preference.relative.data());
  }

  std::vector<Real> weight;  // [used objectives][kTile]
  // Where each objective's A, I(A) and weights lie: in the tile, or in the tensors themselves.
  std::vector<const Real*> advantage_at, part_at;
  std::vector<Real*> weight_at;
  Real combined[kTile], optimum[kTile];
  Real poison[kTile];                           // 0, or NaN if a part is not finite
  std::vector<double> values, solution, reals;  // of one token that straddles 0
  PamaWeights<SerialTeam> solver;
};

// Points at a tile of the tensors where they can be read and written as they are (Noon is then left
// to `choose_by_token`), else at the tile's own arrays, and fills those that are read. False: the
// weights have yet to be written.
template <class Real>
PAMA_INLINE bool place_tile(const Combine& job, int64_t b, int64_t t, int64_t length,
                            TokenTile<Real>& tile) {
  const Batch& batch = job.batch;
  const Sequences& s = batch.sequences;
  const View &a = batch.advantages, &mask = batch.mask, &w = job.weights;
  rows::select(mask, s.first(mask, 0, b) + t * mask.token, length, tile.tokens);
  const bool whole = tile.tokens.all() && length % Lanes<Real>::kCount == 0;
  const bool read =
      whole && !batch.log_ratio.data && a.dtype == Lanes<Real>::kDType && a.token == 1;
  const bool write = whole && w.dtype == Lanes<Real>::kDType;
  if (!read) load_tile(batch, b, t, length, tile);
  for (int64_t k = 0; k < tile.size(); ++k) {
    const int64_t n = tile.objectives[k];
    tile.advantage_at[k] = read ? static_cast<const Real*>(a.data) + s.first(a, n, b) + t
                                : tile.advantage.data() + k * kTile;
    tile.part_at[k] = read ? tile.advantage_at[k] : tile.part + k * kTile;
    tile.weight_at[k] =
        write ? static_cast<Real*>(w.data) + s.first(w, n, b) + t : tile.weight.data() + k * kTile;
  }
  return write;
}

// Theorem 1 on every token of the tile, but for those that straddle 0: the weight goes to the
// objectives of least rank |part| / preference. Lanes are tokens; sums over objectives stay in
// registers.
template <bool kUniform, bool kNoon, class Real>
PAMA_INLINE void choose_by_token(const Preference& p, TokenTile<Real>& tile) {
  using Vector = typename Lanes<Real>::Vector;
  using InMemory = typename Lanes<Real>::InMemory;
  const int64_t used = tile.size();
  const auto at = [](const Real* x) { return reinterpret_cast<const InMemory*>(x); };
  const auto put = [](Real* x) { return reinterpret_cast<InMemory*>(x); };
  const Vector zero{}, one = zero + 1;
  // In place, as no vector may cross a call.
  const auto drop_negative = [&](Vector& x) {
    if (kNoon) x = x <= 0 ? zero : x;
  };
  const auto make_rank = [&](Vector& x, int64_t k) {
    if (!kNoon) x = x < 0 ? -x : x;
    if (!kUniform) x /= static_cast<Real>(p.relative[k]);
  };
  for (int64_t j = 0; j < tile.tokens.count; j += Lanes<Real>::kCount) {
    Vector least = zero + Real(HUGE_VAL), poison = zero, ties = zero, tied = zero;
    for (int64_t k = 0; k < used; ++k) {
      Vector x = *at(tile.part_at[k] + j);
      drop_negative(x);
      poison += x - x;
      make_rank(x, k);
      least = x < least ? x : least;
    }
    for (int64_t k = 0; k < used; ++k) {
      Vector x = *at(tile.part_at[k] + j);
      drop_negative(x);
      make_rank(x, k);
      ties += x == least ? one : zero;
      if (!kUniform) tied += x == least ? zero + static_cast<Real>(p.offset[k]) : zero;
    }
    const Vector share = (1 - tied) / ties + poison;
    Vector combined = zero, optimum = zero;
    for (int64_t k = 0; k < used; ++k) {
      Vector x = *at(tile.part_at[k] + j), a = *at(tile.advantage_at[k] + j);
      drop_negative(x);
      drop_negative(a);
      Vector rank = x;
      make_rank(rank, k);
      const Vector w = rank == least ? share + static_cast<Real>(p.offset[k]) : poison;
      *put(tile.weight_at[k] + j) = w;
      combined += w == 0 ? zero : w * a;
      optimum += w * x;
    }
    *put(tile.combined + j) = combined;
    *put(tile.optimum + j) = optimum;
    *put(tile.poison + j) = poison;
  }
}

// The exact projection, for tokens with advantages on both sides of 0.
template <class Real>
PAMA_INLINE void choose_straddling(TokenTile<Real>& tile) {
  const int64_t used = tile.size();
  for (int64_t j = 0; j < tile.tokens.count; ++j) {
    double low = 0, high = 0;
    for (int64_t k = 0; k < used; ++k) {
      tile.values[k] = tile.part_at[k][j];
      low = std::min(low, tile.values[k]);
      high = std::max(high, tile.values[k]);
    }
    if (!(low < 0 && high > 0) || tile.poison[j] != 0) continue;
    tile.optimum[j] =
        static_cast<Real>(tile.solver.solve(tile.values.data(), tile.solution.data()));
    double combined = 0;
    for (int64_t k = 0; k < used; ++k) {
      tile.weight_at[k][j] = static_cast<Real>(tile.solution[k]);
      if (tile.solution[k] != 0) combined += tile.solution[k] * tile.advantage_at[k][j];
    }
    tile.combined[j] = static_cast<Real>(combined);
  }
}

template <class Real>
PAMA_INLINE void combine_tokens(const Combine& job, int64_t b, TokenTile<Real>& tile) {
  const Sequences& s = job.batch.sequences;
  const Preference& p = job.preference;
  const int64_t size = s.size(b), used = tile.size();
  for (int64_t t = 0; t < size; t += kTile) {
    const bool written = place_tile(job, b, t, std::min(kTile, size - t), tile);
    if (job.batch.rule.noon) {
      p.uniform ? choose_by_token<true, true>(p, tile) : choose_by_token<false, true>(p, tile);
    } else {
      p.uniform ? choose_by_token<true, false>(p, tile) : choose_by_token<false, false>(p, tile);
      choose_straddling(tile);
    }
    for (int64_t n = 0, k = 0; n < s.objectives; ++n) {
      const bool counts = k < used && p.used[k] == n;
      const Real* w = counts ? tile.weight_at[k++] : tile.poison;
      if (counts && written) continue;
      rows::scatter(job.weights, s.first(job.weights, n, b) + t, tile.tokens, w);
    }
    rows::scatter(job.advantages, s.first(job.advantages, 0, b) + t, tile.tokens, tile.combined);
    rows::scatter(job.optimum, s.first(job.optimum, 0, b) + t, tile.tokens, tile.optimum);
  }
}

PAMA_CLONES void combine_tokens_float(const Combine& job, int64_t b, TokenTile<float>& tile) {
  combine_tokens(job, b, tile);
}

PAMA_CLONES void combine_tokens_double(const Combine& job, int64_t b, TokenTile<double>& tile) {
  combine_tokens(job, b, tile);
}

// --- one weight vector a sequence, or one for all ------------------------------------------------

PAMA_CLONES void mean_parts(const Batch& batch, int64_t b, Tile<double>& tile, double* means) {
  const int64_t size = batch.sequences.size(b), n = batch.sequences.objectives;
  int64_t total = 0;
  std::fill_n(means, n, 0.0);
  for (int64_t t = 0; t < size; t += kTile) {
    load_tile(batch, b, t, std::min(kTile, size - t), tile);
    total += tile.tokens.count;
    for (int64_t i = 0; i < n; ++i) {
      const double* part = tile.part + i * kTile;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < tile.tokens.count; ++j) sum += part[j];
      means[i] += sum;
    }
  }
  for (int64_t i = 0; i < n; ++i) means[i] /= static_cast<double>(std::max<int64_t>(total, 1));
  means[n] = static_cast<double>(total);
}

PAMA_CLONES void combine_sequence(const Combine& job, int64_t b, const double* weights) {
  const Batch& batch = job.batch;
  const Sequences& s = batch.sequences;
  const int64_t size = s.size(b);
  rows::Selection tokens;
  double advantage[kTile], combined[kTile];
  for (int64_t t = 0; t < size; t += kTile) {
    const View& mask = batch.mask;
    rows::select(mask, s.first(mask, 0, b) + t * mask.token, std::min(kTile, size - t), tokens);
    std::fill_n(combined, tokens.count, 0.0);
    for (int64_t i = 0; i < s.objectives; ++i) {
      const double w = weights[i];
      if (w == 0) continue;
      load_noon(batch, i, b, t, tokens, advantage);
      for (int64_t j = 0; j < tokens.count; ++j) combined[j] += w * advantage[j];
    }
    rows::scatter(job.advantages, s.first(job.advantages, 0, b) + t, tokens, combined);
  }
}

void combine_by_sequence(const Combine& job) {
  const Sequences& s = job.batch.sequences;
  const int64_t n = s.objectives;
  for_sequences(s, [&](int64_t first, int64_t end) {
    Tile<double> tile(job.batch);
    std::vector<double> means(n + 1), weights(n), reals(PamaWeights<SerialTeam>::reals(n));
    PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {reals.data(), nullptr});
    solver.prefer(job.preference.raw.data());
    for (int64_t b = first; b < end; ++b) {
      mean_parts(job.batch, b, tile, means.data());
      double optimum = 0;
      std::fill(weights.begin(), weights.end(), 0.0);
      if (means[n] > 0) {
        optimum = solver.solve(means.data(), weights.data());
      }
      for (int64_t i = 0; i < n; ++i) store(job.weights, i * s.count + b, weights[i]);
      store(job.optimum, b, optimum);
      combine_sequence(job, b, weights.data());
    }
  });
}

void combine_by_batch(const Combine& job, Reduction reduction, const double* statistics) {
  const Sequences& s = job.batch.sequences;
  const int64_t n = s.objectives;
  const int size = static_cast<int>(n);
  std::vector<double> weights(n),
      problem(statistics + n, statistics + statistics_size(n, reduction));
  if (reduction == Reduction::kGram) {
    std::vector<double> reals(MinNorm<SerialTeam>::reals(n));
    std::vector<int> integers(MinNorm<SerialTeam>::integers(n));
    MinNorm<SerialTeam>({.team = {},
                         .n = size,
                         .gram = problem.data(),
                         .vector = job.preference.raw.data(),
                         .roundoff = 0x1p-53,
                         .options = nullptr,
                         .out = weights.data(),
                         .workspace = {reals.data(), integers.data()}})
        .solve();
  } else {
    std::vector<double> reals(PamaWeights<SerialTeam>::reals(n));
    for (int64_t i = 0; i < n; ++i) problem[1 + i] /= std::max(problem[0], 1.0);
    PamaWeights<SerialTeam> solver({}, size, {reals.data(), nullptr});
    solver.prefer(job.preference.raw.data());
    store(job.optimum, 0, solver.solve(problem.data() + 1, weights.data()));
  }
  for (int64_t i = 0; i < n; ++i) store(job.weights, i, weights[i]);
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) combine_sequence(job, b, weights.data());
  });
}

// --- the op --------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> pama_combine(
    const Tensor& advantages, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& log_ratio, const std::optional<Tensor>& preference,
    const std::optional<Tensor>& cu_seqlens, const Tensor& statistics, int64_t reduction_code,
    double low, double high, bool noon, bool ratio_weighted) {
  const auto reduction = static_cast<Reduction>(reduction_code);
  const bool ragged = cu_seqlens.has_value();
  const Batch batch =
      batch_of(advantages, mask, log_ratio, cu_seqlens, low, high, noon, ratio_weighted);
  const Sequences& s = batch.sequences;
  check_tokens(mask, cu_seqlens, s);
  check_preference(preference);
  const ScalarType dtype = result_dtype(&advantages, log_ratio);
  const std::vector<int64_t> tokens(advantages.sizes().begin() + 1, advantages.sizes().end());
  std::vector<int64_t> shape = pama_problem_shape(advantages, s, reduction);
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
  const Preference p(flags, preference, s.objectives);
  if (p.used.empty()) {
    for (Tensor* x : {&combined, &weights, &optimum}) torch::stable::zero_(*x);
    return {combined, weights, optimum, active};
  }
  const Combine job{batch, p, view_of(combined, ragged), view_of(weights, ragged),
                    view_of(optimum, ragged)};
  if (reduction == Reduction::kSequence) {
    combine_by_sequence(job);
  } else if (reduction != Reduction::kToken) {
    combine_by_batch(job, reduction, flags);
  } else if (dtype == ScalarType::Float && p.uniform && !ratio_weighted) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      TokenTile<float> tile(batch, p);
      for (int64_t b = first; b < end; ++b) combine_tokens_float(job, b, tile);
    });
  } else {
    for_sequences(s, [&](int64_t first, int64_t end) {
      TokenTile<double> tile(batch, p);
      for (int64_t b = first; b < end; ++b) combine_tokens_double(job, b, tile);
    });
  }
  return {combined, weights, optimum, active};
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) { m.impl("pama_combine", TORCH_BOX(&pama_combine)); }

}  // namespace
}  // namespace pama
