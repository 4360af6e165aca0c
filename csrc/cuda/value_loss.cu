#include "cuda/launch.h"
#include "kernels/value_loss.cuh"

namespace pama {
namespace {

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
