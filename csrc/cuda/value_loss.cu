// The value loss of each objective: a block sums the squared errors of a sequence's chunk, one more
// block for each objective adds those up. The derivative is element by element.
#include "core/tokens/normalizer.h"
#include "core/tokens/value_error.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/token_chunks.cuh"
#include "tensors/value_loss.h"

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

// errors[k] of the tokens in the mask.
__device__ __forceinline__ void value_errors(const ValueInputs& args, const Part& part,
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

// `partials`: [objective][sequence][chunk].
__global__ void __launch_bounds__(kBlock)
    value_loss_kernel(const __grid_constant__ ValueInputs args, int64_t chunks,
                      ValueSums* partials) {
  wait_for_inputs();
  const Sequences& s = args.sequences;
  const Part part = block_part(s, chunks);
  ValueSums sums{};
  for_tokens(s, args.mask, part, chunks, [&](const Tokens& tokens) {
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
    partials[(part.objective * s.count + part.sequence) * chunks + part.chunk] = sums;
  }
}

// A block for each objective, of which each has `count` partial sums.
__global__ void __launch_bounds__(kBlock)
    value_finish_kernel(const __grid_constant__ ValueLoss args, int64_t count,
                        const ValueSums* partials) {
  wait_for_inputs();
  const int64_t n = blockIdx.x;
  const AddValueSums add;
  ValueSums sums{};
  for (int64_t i = threadIdx.x; i < count; i += kBlock) sums = add(sums, partials[n * count + i]);
  sums = block_reduce(sums, add);
  if (threadIdx.x != 0) return;
  const double tokens = sums.tokens > 1 ? sums.tokens : 1;
  const double scale = 1 / divisor_of(args.normalizer, args.divisor, tokens);
  store(args.loss, n, sums.tokens > 0 ? 0.5 * sums.squares * scale : 0);
  if (n == 0) store(args.scale, 0, scale);
}

__global__ void __launch_bounds__(kBlock)
    value_backward_kernel(const __grid_constant__ ValueSlope args, int64_t chunks) {
  wait_for_inputs();
  const Sequences& s = args.inputs.sequences;
  const Part part = block_part(s, chunks);
  const double weight = load(args.grad, part.objective * args.grad.token) * load(args.scale, 0);
  const int64_t to = s.first(args.out, part.objective, part.sequence);
  for_tokens(s, args.inputs.mask, part, chunks, [&](const Tokens& tokens) {
    ValueError errors[kTokens];
    value_errors(args.inputs, part, tokens, errors);
    double slope[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) slope[k] = weight * errors[k].slope;
    store_tokens(args.out, to + tokens.first, tokens, slope);
  });
}

// --- launching ----------------------------------------------------------------------------------

void forward(const Tensor& on, const ValueLoss& loss) {
  const Launcher launch(on);
  const Sequences& s = loss.inputs.sequences;
  const int64_t chunks = chunks_of(s), blocks = s.count * chunks;
  Tensor partials = allocate(on, {s.objectives, blocks, 2}, ScalarType::Double);
  ValueSums* sums = data_of<ValueSums>(partials);
  launch(value_loss_kernel, s.objectives * blocks, kBlock, 0, loss.inputs, chunks, sums);
  launch(value_finish_kernel, s.objectives, kBlock, 0, loss, blocks, sums);
}

void backward(const Tensor& on, const ValueSlope& slope) {
  const Sequences& s = slope.inputs.sequences;
  const int64_t chunks = chunks_of(s);
  const Launcher launch(on);
  launch(value_backward_kernel, s.objectives * s.count * chunks, kBlock, 0, slope, chunks);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("value_loss", TORCH_BOX(&value_loss<forward>));
  m.impl("value_loss_backward", TORCH_BOX(&value_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
