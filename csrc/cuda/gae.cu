#include "cuda/launch.h"
#include "kernels/gae.cuh"

namespace pama {
namespace {

std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values,
                               const std::optional<Tensor>& mask,
                               const std::optional<Tensor>& last_values,
                               const std::optional<Tensor>& cu_seqlens, double gamma,
                               double lambda) {
  check_gae(rewards, values, mask, last_values, cu_seqlens);
  const Launcher launch(rewards);
  const bool ragged = cu_seqlens.has_value();
  const Sequences sequences = sequences_of(rewards, cu_seqlens);
  const ScalarType dtype = result_dtype(&rewards, &values, last_values);
  Tensor advantages = allocate(rewards, rewards.sizes(), dtype);
  Tensor returns = allocate(rewards, rewards.sizes(), dtype);
  if (rewards.numel() == 0) return {advantages, returns};  // of any number of objectives
  View last = view_of(last_values);
  last.objective = last.sequence;  // [N, B]
  const GaeArgs args{
      sequences, view_of(rewards, ragged),    view_of(values, ragged),  view_of(mask, ragged),
      last,      view_of(advantages, ragged), view_of(returns, ragged), gamma,
      lambda};
  // As many threads as a sequence needs for one tile, of which there are more where it is longer.
  const int64_t mean = sequences.offsets
                           ? ceil_div(sequences.total, std::max<int64_t>(sequences.count, 1))
                           : sequences.length;
  const int64_t warps =
      std::clamp<int64_t>(ceil_div(mean, kWarp * kGaeTokens), 1, kGaeBlock / kWarp);
  const Layout layout =
      layout_of(sequences, {args.rewards, args.values, args.advantages, args.returns}, args.mask);
  with_layout(layout, [&](auto constant) {
    launch(gae_kernel<constant()>, sequences.objectives * sequences.count,
           static_cast<int>(warps * kWarp),
           2 * kGaePacks * warps * static_cast<int64_t>(sizeof(GaeRun)), args);
  });
  return {advantages, returns};
}

PAMA_CUDA_LIBRARY(m) { m.impl("gae", TORCH_BOX(&gae)); }

}  // namespace
}  // namespace pama
