// The value loss of each objective: a block sums the squared errors of a sequence's chunk, one more
// block for each objective adds those up. The derivative is element by element.
#include "core/normalizer.h"
#include "core/value_error.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/tokens.cuh"

namespace pama {
namespace {

struct ValueSums {
  double squares, tokens;
};

struct AddValueSums {
  __device__ ValueSums operator()(const ValueSums& a, const ValueSums& b) const {
    return {a.squares + b.squares, a.tokens + b.tokens};
  }
};

struct ValueArgs {
  Sequences sequences;
  int64_t chunks;
  View values, returns, mask, old_values;
  double clip;
  ValueSums* partials;    // [objective][sequence][chunk]
  View grad, scale, out;  // of the derivative
};

// errors[k] of the tokens in the mask.
__device__ __forceinline__ void value_errors(const ValueArgs& args, const Part& part,
                                             const Tokens& tokens, ValueError* errors) {
  double value[kTokens], target[kTokens], old[kTokens];
  const auto take = [&](const View& view, double* out) {
    const int64_t first = args.sequences.first(view, part.objective, part.sequence);
    load_tokens(view, first + tokens.first * view.token, tokens.unmasked, out);
  };
  take(args.values, value);
  take(args.returns, target);
  const bool clips = args.old_values.data != nullptr;
  if (clips) take(args.old_values, old);
#pragma unroll
  for (int k = 0; k < kTokens; ++k) {
    errors[k] = clips ? value_error(value[k], target[k], old[k], args.clip)
                      : value_error(value[k], target[k]);
  }
}

__global__ void __launch_bounds__(kBlock)
    value_loss_kernel(const __grid_constant__ ValueArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  ValueSums sums{};
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    ValueError errors[kTokens];
    value_errors(args, part, tokens, errors);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      if (!tokens.unmasked[k]) continue;
      sums.squares += errors[k].error * errors[k].error;
      sums.tokens += 1;
    }
  });
  sums = block_reduce(sums, AddValueSums{});
  if (threadIdx.x == 0) {
    args.partials[(part.objective * s.count + part.sequence) * args.chunks + part.chunk] = sums;
  }
}

struct ValueFinishArgs {
  const ValueSums* partials;
  int64_t count;  // partials of an objective
  View normalizer, loss, scale;
  double divisor;
};

// A block for each objective.
__global__ void __launch_bounds__(kBlock)
    value_finish_kernel(const __grid_constant__ ValueFinishArgs args) {
  wait_for_inputs();
  const int64_t n = blockIdx.x;
  const AddValueSums add;
  ValueSums sums{};
  for (int64_t i = threadIdx.x; i < args.count; i += kBlock) {
    sums = add(sums, args.partials[n * args.count + i]);
  }
  sums = block_reduce(sums, add);
  if (threadIdx.x != 0) return;
  const double tokens = sums.tokens > 1 ? sums.tokens : 1;
  const double scale = 1 / divisor_of(args.normalizer, args.divisor, tokens);
  store(args.loss, n, sums.tokens > 0 ? 0.5 * sums.squares * scale : 0);
  if (n == 0) store(args.scale, 0, scale);
}

__global__ void __launch_bounds__(kBlock)
    value_backward_kernel(const __grid_constant__ ValueArgs args) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, args.chunks);
  const double weight = load(args.grad, part.objective * args.grad.token) * load(args.scale, 0);
  const int64_t to = s.first(args.out, part.objective, part.sequence);
  for_tokens(s, args.mask, part, args.chunks, [&](const Tokens& tokens) {
    ValueError errors[kTokens];
    value_errors(args, part, tokens, errors);
    double slope[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) slope[k] = weight * errors[k].slope;
    store_tokens(args.out, to + tokens.first, tokens, slope);
  });
}

// --- launching ----------------------------------------------------------------------------------

ValueArgs arguments(const Tensor& values, const Tensor& returns, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& old_values,
                    const std::optional<Tensor>& cu_seqlens, double clip) {
  const bool ragged = cu_seqlens.has_value();
  const Sequences sequences = sequences_of(values, cu_seqlens);
  return {.sequences = sequences,
          .chunks = chunks_of(sequences),
          .values = view_of(values, ragged),
          .returns = view_of(returns, ragged),
          .mask = view_of(mask, ragged),
          .old_values = view_of(old_values, ragged),
          .clip = clip,
          .partials = nullptr,
          .grad = {},
          .scale = {},
          .out = {}};
}

std::tuple<Tensor, Tensor> value_loss(const Tensor& values, const Tensor& returns,
                                      const std::optional<Tensor>& mask,
                                      const std::optional<Tensor>& old_values,
                                      const std::optional<Tensor>& normalizer,
                                      const std::optional<Tensor>& cu_seqlens, double clip,
                                      double divisor) {
  check_value_loss(values, returns, mask, old_values, normalizer, cu_seqlens);
  const Launcher launch(values);
  ValueArgs args = arguments(values, returns, mask, old_values, cu_seqlens, clip);
  const int64_t objectives = args.sequences.objectives;
  const int64_t blocks = args.sequences.count * args.chunks;
  Tensor partials = allocate(values, {objectives, blocks, 2}, ScalarType::Double);
  args.partials = static_cast<ValueSums*>(partials.mutable_data_ptr());
  launch(value_loss_kernel, objectives * blocks, kBlock, 0, args);
  Tensor loss = allocate(values, {objectives}, result_dtype(&values, &returns, old_values));
  Tensor scale = allocate(values, {}, ScalarType::Double);
  const ValueFinishArgs finish{args.partials, blocks,         view_of(normalizer),
                               view_of(loss), view_of(scale), divisor};
  launch(value_finish_kernel, objectives, kBlock, 0, finish);
  return {loss, scale};
}

Tensor value_loss_backward(const Tensor& grad, const Tensor& scale, const Tensor& values,
                           const Tensor& returns, const std::optional<Tensor>& mask,
                           const std::optional<Tensor>& old_values,
                           const std::optional<Tensor>& cu_seqlens, double clip) {
  check_value_loss(values, returns, mask, old_values, std::nullopt, cu_seqlens);
  check_value_backward(grad, scale, values);
  const Launcher launch(values);
  Tensor out = allocate(values, values.sizes(), result_dtype(&values));
  ValueArgs args = arguments(values, returns, mask, old_values, cu_seqlens, clip);
  args.grad = view_of(grad);
  args.scale = view_of(scale);
  args.out = view_of(out, cu_seqlens.has_value());
  const Sequences& s = args.sequences;
  launch(value_backward_kernel, s.objectives * s.count * args.chunks, kBlock, 0, args);
  return out;
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("value_loss", TORCH_BOX(&value_loss));
  m.impl("value_loss_backward", TORCH_BOX(&value_loss_backward));
}

}  // namespace
}  // namespace pama
