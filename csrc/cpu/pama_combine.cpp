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

void check_preference(const std::optional<Tensor>& preference) {
  if (!preference) return;
  const View view = view_of(*preference);
  double total = 0;
  bool good = true;
  for (int64_t i = 0; i < preference->size(0); ++i) {
    const double p = load(view, i * view.token);
    good &= p >= 0;
    total += p;
  }
  if (!good || !(total > 0) || !std::isfinite(total)) {
    throw std::invalid_argument(
        "preference must be nonnegative and finite with a positive sum, got values that are not");
  }
}

struct Combine {
  Batch batch;
  const Preference& preference;
  View advantages, weights, optimum;
};

// --- token ---------------------------------------------------------------------------------------

template <class Real>
struct TokenTile {
  explicit TokenTile(int64_t n)
      : advantage(n * kTile),
        part(n * kTile),
        weight(n * kTile),
        values(n),
        solution(n),
        reals(PamaWeights<SerialTeam>::reals(n)) {}

  rows::Selection tokens;
  std::vector<Real> advantage, part, weight;  // [used objectives][kTile]
  Real log_ratio[kTile];
  Real least[kTile], low[kTile], high[kTile];  // rank; smallest and largest part
  Real share[kTile], poison[kTile];            // of a tied objective; NaN if a part is not finite
  Real combined[kTile], optimum[kTile], dropped[kTile];
  std::vector<double> values, solution, reals;  // of one token that straddles 0
};

template <class Real>
PAMA_INLINE void load_token_tile(const Combine& job, int64_t b, int64_t t, int64_t length,
                                 TokenTile<Real>& tile) {
  const Batch& batch = job.batch;
  const Sequences& s = batch.sequences;
  const View &from = batch.advantages, &ratio = batch.log_ratio;
  rows::select(batch.mask, s.first(batch.mask, 0, b) + t * batch.mask.token, length, tile.tokens);
  if (ratio.data) {
    rows::gather(ratio, s.first(ratio, 0, b) + t * ratio.token, tile.tokens, tile.log_ratio);
  }
  const int64_t count = tile.tokens.count;
  // Exact in float32: a float32 exceeds the bound if it exceeds the largest float32 below it.
  const Real above = static_cast<Real>(batch.rule.log_high),
             below = static_cast<Real>(batch.rule.log_low);
  const Real high = above > batch.rule.log_high ? std::nextafter(above, Real(-HUGE_VAL)) : above;
  const Real low = below < batch.rule.log_low ? std::nextafter(below, Real(HUGE_VAL)) : below;
  for (size_t k = 0; k < job.preference.used.size(); ++k) {
    Real* a = tile.advantage.data() + k * kTile;
    Real* part = tile.part.data() + k * kTile;
    rows::gather(from, s.first(from, job.preference.used[k], b) + t * from.token, tile.tokens, a);
    if (batch.rule.noon) {
      for (int64_t j = 0; j < count; ++j) a[j] = a[j] <= 0 ? Real(0) : a[j];
    }
    if (batch.rule.ratio_weighted && ratio.data) {
      for (int64_t j = 0; j < count; ++j) {
        part[j] = static_cast<Real>(active_part(batch.rule, a[j], tile.log_ratio[j]));
      }
    } else if (ratio.data) {
      for (int64_t j = 0; j < count; ++j) {
        const Real l = tile.log_ratio[j];
        const bool flat = a[j] < 0 ? l < low : l > high;
        part[j] = flat ? Real(0) : l != l ? l : a[j];
      }
    }
  }
}

// Theorem 1 on every token of the tile that does not straddle 0: the weight goes to the objectives
// of least rank |part| / preference.
template <class Real>
PAMA_INLINE void choose_by_token(const Combine& job, const Real* part, TokenTile<Real>& tile) {
  const Preference& p = job.preference;
  const int64_t used = static_cast<int64_t>(p.used.size()), count = tile.tokens.count;
  Real tied[kTile];
  for (int64_t j = 0; j < count; ++j) {
    tile.least[j] = tile.low[j] = Real(HUGE_VAL);
    tile.high[j] = Real(-HUGE_VAL);
    tile.share[j] = tile.poison[j] = tied[j] = 0;
    tile.combined[j] = tile.optimum[j] = 0;
  }
  for (int64_t k = 0; k < used; ++k) {
    const Real *x = part + k * kTile, q = static_cast<Real>(p.relative[k]);
    for (int64_t j = 0; j < count; ++j) {
      const Real rank = p.uniform ? std::abs(x[j]) : std::abs(x[j]) / q;
      tile.least[j] = rank < tile.least[j] ? rank : tile.least[j];
      tile.low[j] = x[j] < tile.low[j] ? x[j] : tile.low[j];
      tile.high[j] = x[j] > tile.high[j] ? x[j] : tile.high[j];
      tile.poison[j] += x[j] - x[j];
    }
  }
  for (int64_t k = 0; k < used; ++k) {
    const Real *x = part + k * kTile, q = static_cast<Real>(p.relative[k]);
    const Real offset = static_cast<Real>(p.offset[k]);
    for (int64_t j = 0; j < count; ++j) {
      const bool tie = (p.uniform ? std::abs(x[j]) : std::abs(x[j]) / q) == tile.least[j];
      tile.share[j] += tie ? Real(1) : Real(0);
      tied[j] += tie ? offset : Real(0);
    }
  }
  for (int64_t j = 0; j < count; ++j)
    tile.share[j] = (1 - tied[j]) / tile.share[j] + tile.poison[j];
  for (int64_t k = 0; k < used; ++k) {
    const Real *x = part + k * kTile, q = static_cast<Real>(p.relative[k]);
    const Real offset = static_cast<Real>(p.offset[k]);
    Real* w = tile.weight.data() + k * kTile;
    for (int64_t j = 0; j < count; ++j) {
      const bool tie = (p.uniform ? std::abs(x[j]) : std::abs(x[j]) / q) == tile.least[j];
      w[j] = tie ? offset + tile.share[j] : tile.poison[j];
    }
  }
}

// The exact projection, for tokens with advantages on both sides of 0.
template <class Real>
void choose_straddling(const Combine& job, const Real* part, TokenTile<Real>& tile) {
  const Preference& p = job.preference;
  const int64_t used = static_cast<int64_t>(p.used.size());
  PamaWeights<SerialTeam> solver({}, static_cast<int>(used), {tile.reals.data(), nullptr});
  for (int64_t j = 0; j < tile.tokens.count; ++j) {
    if (!(tile.low[j] < 0 && tile.high[j] > 0)) continue;
    for (int64_t k = 0; k < used; ++k) tile.values[k] = part[k * kTile + j];
    solver.solve(tile.values.data(), p.relative.data(), tile.solution.data());
    for (int64_t k = 0; k < used; ++k) {
      tile.weight[k * kTile + j] = static_cast<Real>(tile.solution[k]);
    }
  }
}

template <class Real>
PAMA_INLINE void combine_tile(const Combine& job, int64_t b, int64_t t, const Real* part,
                              TokenTile<Real>& tile) {
  const Preference& p = job.preference;
  const Sequences& s = job.batch.sequences;
  const int64_t used = static_cast<int64_t>(p.used.size()), count = tile.tokens.count;
  for (int64_t k = 0; k < used; ++k) {
    const Real *w = tile.weight.data() + k * kTile, *x = part + k * kTile;
    const Real* a = tile.advantage.data() + k * kTile;
    for (int64_t j = 0; j < count; ++j) {
      tile.combined[j] += w[j] == 0 ? Real(0) : w[j] * a[j];
      tile.optimum[j] += w[j] * x[j];
    }
    rows::scatter(job.weights, s.first(job.weights, p.used[k], b) + t, tile.tokens, w);
  }
  if (!job.batch.rule.noon) {
    for (int64_t j = 0; j < count; ++j) {
      const bool straddles = tile.low[j] < 0 && tile.high[j] > 0;
      tile.optimum[j] = straddles ? tile.poison[j] : tile.optimum[j];
    }
  }
  rows::scatter(job.advantages, s.first(job.advantages, 0, b) + t, tile.tokens, tile.combined);
  rows::scatter(job.optimum, s.first(job.optimum, 0, b) + t, tile.tokens, tile.optimum);
  for (int64_t n = 0, k = 0; n < s.objectives; ++n) {
    if (k < used && p.used[k] == n) {
      ++k;
    } else {
      rows::scatter(job.weights, s.first(job.weights, n, b) + t, tile.tokens, tile.poison);
    }
  }
}

template <class Real>
PAMA_INLINE void combine_tokens(const Combine& job, int64_t b, TokenTile<Real>& tile) {
  const int64_t size = job.batch.sequences.size(b);
  // I(A) is A itself where no ratio is given.
  const Real* part = (job.batch.log_ratio.data ? tile.part : tile.advantage).data();
  for (int64_t t = 0; t < size; t += kTile) {
    load_token_tile(job, b, t, std::min(kTile, size - t), tile);
    choose_by_token(job, part, tile);
    if (!job.batch.rule.noon) choose_straddling(job, part, tile);
    combine_tile(job, b, t, part, tile);
  }
}

PAMA_CLONES void combine_tokens_float(const Combine& job, int64_t b, TokenTile<float>& tile) {
  combine_tokens(job, b, tile);
}

PAMA_CLONES void combine_tokens_double(const Combine& job, int64_t b, TokenTile<double>& tile) {
  combine_tokens(job, b, tile);
}

// --- one weight vector a sequence, or one for all ------------------------------------------------

PAMA_CLONES void mean_parts(const Batch& batch, int64_t b, Tile& tile, double* means) {
  const int64_t size = batch.sequences.size(b), n = batch.sequences.objectives;
  int64_t total = 0;
  std::fill_n(means, n, 0.0);
  for (int64_t t = 0; t < size; t += kTile) {
    tile.load(batch, b, t, std::min(kTile, size - t));
    total += tile.tokens.count;
    for (int64_t i = 0; i < n; ++i) {
      const double* part = tile.part_of(batch, i);
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < tile.tokens.count; ++j) sum += part[j];
      means[i] += sum;
    }
  }
  for (int64_t i = 0; i < n; ++i) means[i] /= static_cast<double>(std::max<int64_t>(total, 1));
  means[n] = static_cast<double>(total);
}

PAMA_CLONES void combine_sequence(const Combine& job, int64_t b, const double* weights,
                                  Tile& tile) {
  const Batch& batch = job.batch;
  const Sequences& s = batch.sequences;
  const View& from = batch.advantages;
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    rows::select(batch.mask, s.first(batch.mask, 0, b) + t * batch.mask.token,
                 std::min(kTile, size - t), tile.tokens);
    double *a = tile.advantage.data(), *combined = tile.part.data();
    const int64_t count = tile.tokens.count;
    std::fill_n(combined, count, 0.0);
    for (int64_t i = 0; i < s.objectives; ++i) {
      const double w = weights[i];
      if (w == 0) continue;
      rows::gather(from, s.first(from, i, b) + t * from.token, tile.tokens, a);
      if (batch.rule.noon) {
        for (int64_t j = 0; j < count; ++j) combined[j] += w * (a[j] <= 0 ? 0.0 : a[j]);
      } else {
        for (int64_t j = 0; j < count; ++j) combined[j] += w * a[j];
      }
    }
    rows::scatter(job.advantages, s.first(job.advantages, 0, b) + t, tile.tokens, combined);
  }
}

void combine_by_sequence(const Combine& job) {
  const Sequences& s = job.batch.sequences;
  const int64_t n = s.objectives;
  for_sequences(s, [&](int64_t first, int64_t end) {
    Tile tile(n);
    std::vector<double> means(n + 1), weights(n), reals(PamaWeights<SerialTeam>::reals(n));
    PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {reals.data(), nullptr});
    for (int64_t b = first; b < end; ++b) {
      mean_parts(job.batch, b, tile, means.data());
      double optimum = 0;
      std::fill(weights.begin(), weights.end(), 0.0);
      if (means[n] > 0) {
        optimum = solver.solve(means.data(), job.preference.raw.data(), weights.data());
      }
      for (int64_t i = 0; i < n; ++i) store(job.weights, i * s.count + b, weights[i]);
      store(job.optimum, b, optimum);
      combine_sequence(job, b, weights.data(), tile);
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
    store(job.optimum, 0,
          solver.solve(problem.data() + 1, job.preference.raw.data(), weights.data()));
  }
  for (int64_t i = 0; i < n; ++i) store(job.weights, i, weights[i]);
  for_sequences(s, [&](int64_t first, int64_t end) {
    Tile tile(1);
    for (int64_t b = first; b < end; ++b) combine_sequence(job, b, weights.data(), tile);
  });
}

// --- the op --------------------------------------------------------------------------------------

// Shape of the weights without their leading N: that of the problem's batch.
std::vector<int64_t> batch_shape(const Tensor& advantages, const Sequences& s,
                                 Reduction reduction) {
  if (reduction == Reduction::kSequence) return {s.count};
  if (reduction != Reduction::kToken) return {};
  const auto sizes = advantages.sizes();
  return {sizes.begin() + 1, sizes.end()};
}

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
  std::vector<int64_t> shape = batch_shape(advantages, s, reduction);
  Tensor optimum =
      new_empty(advantages, reduction == Reduction::kGram ? std::vector<int64_t>{0} : shape, dtype);
  shape.insert(shape.begin(), s.objectives);
  Tensor weights = new_empty(advantages, shape, dtype);
  Tensor combined = new_empty(advantages, tokens, dtype);
  Tensor active = new_empty(advantages, {s.objectives}, ScalarType::Bool);
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
      TokenTile<float> tile(static_cast<int64_t>(p.used.size()));
      for (int64_t b = first; b < end; ++b) combine_tokens_float(job, b, tile);
    });
  } else {
    for_sequences(s, [&](int64_t first, int64_t end) {
      TokenTile<double> tile(static_cast<int64_t>(p.used.size()));
      for (int64_t b = first; b < end; ++b) combine_tokens_double(job, b, tile);
    });
  }
  return {combined, weights, optimum, active};
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) { m.impl("pama_combine", TORCH_BOX(&pama_combine)); }

}  // namespace
}  // namespace pama
