// The value loss of each objective and its derivative. A thread takes whole sequences; the sums of
// squared errors of sequences are added in order.
#include "tensors/value_loss.h"

#include "core/tokens/normalizer.h"
#include "core/tokens/value_error.h"
#include "cpu/checks.h"
#include "cpu/token_tiles.h"

namespace pama {
namespace {

struct ValueTile {
  Selection selection;
  alignas(64) double value[kTile], target[kTile], old[kTile];
};

// Finds the unmasked tokens from t on.
PAMA_INLINE void select(const ValueInputs& loss, int64_t b, int64_t t, int64_t size,
                        ValueTile& tile) {
  const View& mask = loss.mask;
  select(mask, loss.sequences.first(mask, 0, b) + t * mask.token, std::min(kTile, size - t),
         tile.selection);
}

PAMA_INLINE void gather(const ValueInputs& loss, int64_t n, int64_t b, int64_t t, ValueTile& tile) {
  const auto first = [&](const View& view) {
    return loss.sequences.first(view, n, b) + t * view.token;
  };
  gather(loss.values, first(loss.values), tile.selection, tile.value);
  gather(loss.returns, first(loss.returns), tile.selection, tile.target);
  if (loss.old_values.data) {
    gather(loss.old_values, first(loss.old_values), tile.selection, tile.old);
  }
}

// squares[n]: the sum of squared errors of sequence b. Returns the number of unmasked tokens.
PAMA_CLONES double value_sequence(const ValueInputs& loss, int64_t b, double* squares) {
  const Sequences& s = loss.sequences;
  const double clip = loss.clip;
  ValueTile tile;
  double tokens = 0;
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    select(loss, b, t, size, tile);
    const int64_t count = tile.selection.count;
    tokens += static_cast<double>(count);
    for (int64_t n = 0; n < s.objectives; ++n) {
      gather(loss, n, b, t, tile);
      const double *value = tile.value, *target = tile.target, *old = tile.old;
      const auto square = [](const ValueError& e) { return e.error * e.error; };
      if (loss.old_values.data) {
        squares[n] += sum_of(count, [&](int64_t j) {
          return square(value_error(value[j], target[j], old[j], clip));
        });
      } else {
        squares[n] +=
            sum_of(count, [&](int64_t j) { return square(value_error(value[j], target[j])); });
      }
    }
  }
  return tokens;
}

// weight[n]: what a token's slope counts.
PAMA_CLONES void value_sequence_slope(const ValueSlope& job, int64_t b, const double* weight) {
  const ValueInputs& loss = job.inputs;
  const Sequences& s = loss.sequences;
  const double clip = loss.clip;
  ValueTile tile;
  const int64_t size = s.size(b);
  for (int64_t t = 0; t < size; t += kTile) {
    select(loss, b, t, size, tile);
    const int64_t count = tile.selection.count;
    for (int64_t n = 0; n < s.objectives; ++n) {
      gather(loss, n, b, t, tile);
      double *value = tile.value, *target = tile.target, *old = tile.old;
      const double scale = weight[n];
      if (loss.old_values.data) {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
          value[j] = scale * value_error(value[j], target[j], old[j], clip).slope;
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
          value[j] = scale * value_error(value[j], target[j]).slope;
        }
      }
      scatter(job.out, s.first(job.out, n, b) + t, tile.selection, value);
    }
  }
}

void forward(const Tensor&, const ValueLoss& job) {
  const Sequences& s = job.inputs.sequences;
  check_tokens(s, job.inputs.mask);
  check_normalizer(job.normalizer);
  std::vector<double> squares(s.count * s.objectives), tokens(s.count);
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) {
      tokens[b] = value_sequence(job.inputs, b, squares.data() + b * s.objectives);
    }
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
  for_sequences(s, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; ++b) value_sequence_slope(job, b, weight.data());
  });
}

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  m.impl("value_loss", TORCH_BOX(&value_loss<forward>));
  m.impl("value_loss_backward", TORCH_BOX(&value_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
