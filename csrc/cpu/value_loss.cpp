// The value loss of each objective and its derivative. A thread takes whole sequences; the sums of
// squared errors of sequences are added in order.
#include "tensors/value_loss.h"

#include "core/tokens/normalizer.h"
#include "core/tokens/value_error.h"
#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

// Calls body(n, tile, error, out) on the tiles of a sequence, for each objective n: error(j) is
// that of the tile's token j, and out[j] room for what is made of it. Returns the number of tokens.
template <class Body>
PAMA_INLINE double for_errors(const ValueInputs& loss, int64_t b, const Body& body) {
  Tile tile(loss.sequences, b);
  alignas(64) double values[kTile], targets[kTile], olds[kTile];
  double *value = values, *target = targets, *old = olds;
  const double clip = loss.clip;
  double tokens = 0;
  while (tile.next(loss.mask)) {
    tokens += static_cast<double>(tile.count);
    for (int64_t n = 0; n < loss.sequences.objectives; ++n) {
      gather(loss.values, n, tile, value);
      gather(loss.returns, n, tile, target);
      if (loss.old_values.data) {
        gather(loss.old_values, n, tile, old);
        const auto error = [=](int64_t j) PAMA_INLINED {
          return value_error(value[j], target[j], old[j], clip);
        };
        body(n, tile, error, value);
      } else {
        const auto error = [=](int64_t j) PAMA_INLINED { return value_error(value[j], target[j]); };
        body(n, tile, error, value);
      }
    }
  }
  return tokens;
}

// squares[n]: the sum of squared errors of sequence b. Returns the number of unmasked tokens.
PAMA_CLONES double value_sequence(const ValueInputs& loss, int64_t b, double* squares) {
  const auto body = [=](int64_t n, const Tile& tile, const auto& error, double*) PAMA_INLINED {
    squares[n] += sum_of(tile.count, [=](int64_t j) PAMA_INLINED {
      const double e = error(j).error;
      return e * e;
    });
  };
  return for_errors(loss, b, body);
}

// weight[n]: what a token's slope counts.
PAMA_CLONES void value_sequence_slope(const ValueSlope& job, int64_t b, const double* weight) {
  for_errors(job.inputs, b,
             [=, &job](int64_t n, const Tile& tile, const auto& error, double* slope) PAMA_INLINED {
               const double scale = weight[n];
#pragma omp simd
               for (int64_t j = 0; j < tile.count; ++j) slope[j] = scale * error(j).slope;
               scatter(job.out, n, tile, slope);
             });
}

void forward(const Tensor&, const ValueLoss& job) {
  const Sequences& s = job.inputs.sequences;
  check_tokens(s, job.inputs.mask);
  check_normalizer(job.normalizer);
  std::vector<double> squares(s.count * s.objectives), tokens(s.count);
  for_each_sequence(s, [&](int64_t b) {
    tokens[b] = value_sequence(job.inputs, b, squares.data() + b * s.objectives);
  });
  double count = 0;
  for (const double of_sequence : tokens) count += of_sequence;
  const double scale = 1 / divisor_of(job.normalizer, job.divisor, std::max(count, 1.0));
  store(job.scale, 0, scale);
  for (int64_t n = 0; n < s.objectives; ++n) {
    double sum = 0;
    for (int64_t b = 0; b < s.count; ++b) sum += squares[b * s.objectives + n];
    store(job.loss, n, count > 0 ? 0.5 * sum * scale : 0);
  }
}

void backward(const Tensor&, const ValueSlope& job) {
  const Sequences& s = job.inputs.sequences;
  check_tokens(s, job.inputs.mask);
  std::vector<double> weight(s.objectives);
  for (int64_t n = 0; n < s.objectives; ++n) {
    weight[n] = load(job.grad, n * job.grad.token) * load(job.scale, 0);
  }
  for_each_sequence(s, [&](int64_t b) { value_sequence_slope(job, b, weight.data()); });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("value_loss", TORCH_BOX(&value_loss<forward>));
  m.impl("value_loss_backward", TORCH_BOX(&value_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
