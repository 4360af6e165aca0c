// The value loss of each objective: a block sums the squared errors of a sequence's chunk, one more
// block for each objective adds those up. The derivative is element by element.
#include "core/tokens/normalizer.h"
#include "core/tokens/value_error.h"
#include "cuda/reduce.cuh"
#include "cuda/token_chunks.cuh"
#include "tensors/value_loss.h"

namespace pama {
namespace {

struct ValueSums {
  double squares, tokens;
};

PAMA_INLINE ValueSums operator+(const ValueSums& a, const ValueSums& b) {
  return {a.squares + b.squares, a.tokens + b.tokens};
}

// errors[k] of the tokens in the mask.
__device__ __forceinline__ void value_errors(const ValueInputs& args, const Part& part,
                                             const Tokens& tokens, ValueError* errors) {
  double value[kChunkTokens], target[kChunkTokens], old[kChunkTokens];
  load_tokens(args.values, part, tokens, value);
  load_tokens(args.returns, part, tokens, target);
  const bool clips = args.old_values.data != nullptr;
  if (clips) load_tokens(args.old_values, part, tokens, old);
#pragma unroll
  for (int k = 0; k < kChunkTokens; ++k) {
    errors[k] = clips ? value_error(value[k], target[k], old[k], args.clip)
                      : value_error(value[k], target[k]);
  }
}

__global__ void __launch_bounds__(kBlock)
    value_loss_kernel(const __grid_constant__ ValueInputs args, int64_t chunks,
                      ValueSums* partials) {
  wait_for_inputs();
  const Part part = block_part(args.sequences, chunks);
  ValueSums sums{};
  for_tokens(args.mask, part, [&](const Tokens& tokens) {
    ValueError errors[kChunkTokens];
    value_errors(args, part, tokens, errors);
#pragma unroll
    for (int k = 0; k < kChunkTokens; ++k) {
      if (!tokens.unmasked[k]) continue;
      sums.squares += errors[k].error * errors[k].error;
      sums.tokens += 1;
    }
  });
  sums = block_reduce(sums, std::plus<>());
  if (threadIdx.x == 0) partials[part.index()] = sums;
}

// A block for each objective.
__global__ void __launch_bounds__(kBlock)
    value_finish_kernel(const __grid_constant__ ValueLoss args, int64_t chunks,
                        const ValueSums* partials) {
  wait_for_inputs();
  const int64_t n = blockIdx.x, count = args.inputs.sequences.count * chunks;
  ValueSums sums{};
  for (int64_t i = threadIdx.x; i < count; i += kBlock) sums = sums + partials[n * count + i];
  sums = block_reduce(sums, std::plus<>());
  if (threadIdx.x != 0) return;
  const double tokens = sums.tokens > 1 ? sums.tokens : 1;
  const double scale = 1 / divisor_of(args.normalizer, args.divisor, tokens);
  store(args.loss, n, sums.tokens > 0 ? 0.5 * sums.squares * scale : 0);
  if (n == 0) store(args.scale, 0, scale);
}

__global__ void __launch_bounds__(kBlock)
    value_backward_kernel(const __grid_constant__ ValueSlope args, int64_t chunks) {
  wait_for_inputs();
  const Part part = block_part(args.inputs.sequences, chunks);
  const double weight = load(args.grad, part.objective * args.grad.token) * load(args.scale, 0);
  for_tokens(args.inputs.mask, part, [&](const Tokens& tokens) {
    ValueError errors[kChunkTokens];
    value_errors(args.inputs, part, tokens, errors);
    double slope[kChunkTokens];
#pragma unroll
    for (int k = 0; k < kChunkTokens; ++k) slope[k] = weight * errors[k].slope;
    store_tokens(args.out, part, tokens, slope);
  });
}

// --- launching ----------------------------------------------------------------------------------

void forward(const Tensor& on, const ValueLoss& loss) {
  launch_sums(on, kBlock, loss.inputs.sequences, value_loss_kernel, loss.inputs,
              value_finish_kernel, loss);
}

void backward(const Tensor& on, const ValueSlope& slope) {
  launch_parts(on, kBlock, slope.inputs.sequences, value_backward_kernel, slope);
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("value_loss", TORCH_BOX(&value_loss<forward>));
  m.impl("value_loss_backward", TORCH_BOX(&value_loss_backward<backward>));
}

}  // namespace
}  // namespace pama
