// The combined advantages, by the weights that each reduction chooses: here those of `sequence`,
// `batch` and `gram`, one vector for each sequence, or one for all.
#include "cpu/pama_advantages_combine.h"

#include "core/weightings/min_norm.h"

namespace pama {
namespace {

// sums[0]: the tokens of sequence b, sums[1 + i]: the mean I(A) of each objective.
template <class Real>
PAMA_CLONES void mean_parts(int64_t b, PamaTile<Real>& tile, double* sums) {
  const int64_t n = tile.size(), most = tile_length(tile);
  std::fill_n(sums, 1 + n, 0.0);
  tile.enter(b);
  while (next_parts(tile, most)) add_sums(tile, sums);
  for (int64_t i = 0; i < n; ++i) sums[1 + i] /= std::max(sums[0], 1.0);
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
PAMA_INLINE void combine_rows(const PamaTile<Real>& tile, const double* weights, Real* combined) {
  const int64_t count = tile.count;
  TileTokens<double> sum;
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
  for (; rows < 4; ++rows) a[rows] = kZeros<Real>.at, w[rows] = 0;
  add_four(a, w, tile.floor, count, before, combined);
}

template <class Real>
PAMA_CLONES void combine_sequence(const Combine& job, int64_t b, const double* weights,
                                  PamaTile<Real>& tile) {
  TileTokens<Real> scratch;
  tile.enter(b);
  while (tile.next(job.inputs.mask)) {
    place_advantages(tile);
    Real* combined = results_at(job.advantages, 0, tile, scratch.at);
    combine_rows(tile, weights, combined);
    finish(job.advantages, 0, tile, combined);
  }
}

// One problem for the whole batch, of one preference. Returns the optimum.
double solve_batch(const Combine& job, const Preference& preference, double* weights) {
  const Reduction reduction = job.inputs.reduction;
  const double* statistics = job.inputs.statistics;
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

void combine_by_sequence(const Combine& job) {
  const Sequences& s = job.inputs.sequences;
  const int64_t n = s.objectives;
  with_reals(job.inputs, [&](auto real) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      PamaTile<decltype(real)> tile(job.inputs);
      std::vector<double> means(1 + n), weights(n), reals(PamaWeights<SerialTeam>::reals(n));
      PamaWeights<SerialTeam> solver({}, static_cast<int>(n), {reals.data(), nullptr});
      const Preference* preference = nullptr;
      for (int64_t b = first; b < end; ++b) {
        if (preference != &job.preferences.at(b)) {
          preference = &job.preferences.at(b);
          solver.prefer(preference->raw.data());
        }
        mean_parts(b, tile, means.data());
        double optimum = 0;
        std::fill(weights.begin(), weights.end(), 0.0);
        if (means[0] > 0 && !preference->used.empty())
          optimum = solver.solve(means.data() + 1, weights.data());
        for (int64_t i = 0; i < n; ++i) store(job.weights, i * s.count + b, weights[i]);
        store(job.optimum, b, optimum);
        combine_sequence(job, b, weights.data(), tile);
      }
    });
  });
}

void combine_by_batch(const Combine& job) {
  const Sequences& s = job.inputs.sequences;
  const Preferences& preferences = job.preferences;
  const int64_t n = s.objectives, kinds = static_cast<int64_t>(preferences.distinct.size());
  std::vector<double> weights(kinds * n), optimum(kinds);
  parallel_for(0, kinds, std::max<int64_t>(4096 / (n * n * n), 1), [&](int64_t first, int64_t end) {
    for (int64_t k = first; k < end; ++k) {
      optimum[k] = solve_batch(job, preferences.distinct[k], weights.data() + k * n);
    }
  });
  // Of each sequence if they differ, or of all.
  const int64_t problems = job.inputs.by_sequence ? s.count : 1;
  for (int64_t b = 0; b < problems; ++b) {
    const size_t k = preferences.which(b);
    for (int64_t i = 0; i < n; ++i) store(job.weights, i * problems + b, weights[k * n + i]);
    if (job.inputs.reduction == Reduction::kBatch) store(job.optimum, b, optimum[k]);
  }
  with_reals(job.inputs, [&](auto real) {
    for_sequences(s, [&](int64_t first, int64_t end) {
      PamaTile<decltype(real)> tile(job.inputs);
      for (int64_t b = first; b < end; ++b) {
        combine_sequence(job, b, weights.data() + preferences.which(b) * n, tile);
      }
    });
  });
}

void run(const Tensor&, const PamaCombination& job) {
  check_batch(job.inputs);
  for (int64_t i = 0; i < job.inputs.sequences.objectives; ++i) {
    job.active[i] = job.inputs.statistics[i] != 0;
  }
  const Preferences preferences(job.inputs);
  const Combine combine{job, preferences};
  switch (job.inputs.reduction) {
    case Reduction::kToken:
      return combine_by_token(combine);
    case Reduction::kSequence:
      return combine_by_sequence(combine);
    default:
      return combine_by_batch(combine);
  }
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("pama_combine", TORCH_BOX(&pama_combine<run>));
}

}  // namespace
}  // namespace pama
