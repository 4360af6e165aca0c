#include "cuda/launch.h"
#include "kernels/whiten.cuh"

namespace pama {
namespace {

WhitenArgs arguments(const Tensor& x, const std::optional<Tensor>& mask,
                     const std::optional<Tensor>& cu_seqlens) {
  const bool ragged = cu_seqlens.has_value();
  const Sequences sequences = sequences_of(x, cu_seqlens);
  return {.sequences = sequences,
          .chunks = chunks_of(sequences),
          .x = view_of(x, ragged),
          .mask = view_of(mask, ragged),
          .out = {},
          .partials = nullptr,
          .moments = {},
          .ranks = 0,
          .eps = 0};
}

Tensor whiten_moments(const Tensor& x, const std::optional<Tensor>& mask,
                      const std::optional<Tensor>& cu_seqlens) {
  check_tokens("x", x, mask, cu_seqlens);
  const Launcher launch(x);
  WhitenArgs args = arguments(x, mask, cu_seqlens);
  const int64_t objectives = args.sequences.objectives;
  const int64_t blocks = args.sequences.count * args.chunks;
  Tensor partials = allocate(x, {objectives, blocks, 3}, ScalarType::Double);
  Tensor out = allocate(x, {objectives, 3}, ScalarType::Double);
  args.partials = static_cast<Moments*>(partials.mutable_data_ptr());
  with_layout(layout_of(args.sequences, {args.x}, args.mask), [&](auto layout) {
    launch(whiten_moments_kernel<layout()>, objectives * blocks, kWhitenBlock, 0, args);
  });
  launch(whiten_merge_kernel, objectives, kWhitenBlock, 0, args,
         static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

Tensor whiten_apply(const Tensor& x, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& cu_seqlens, const Tensor& moments, double eps) {
  check_tokens("x", x, mask, cu_seqlens);
  check_moments(moments, x);
  const Launcher launch(x);
  Tensor out = allocate(x, x.sizes(), result_dtype(&x));
  WhitenArgs args = arguments(x, mask, cu_seqlens);
  args.out = view_of(out, cu_seqlens.has_value());
  args.moments = view_of(moments);
  args.ranks = moments.size(0);
  args.eps = eps;
  const Sequences& s = args.sequences;
  with_layout(layout_of(s, {args.x, args.out}, args.mask), [&](auto layout) {
    launch(whiten_apply_kernel<layout()>, s.objectives * s.count * args.chunks, kWhitenBlock, 0,
           args);
  });
  return out;
}

PAMA_CUDA_LIBRARY(m) {
  m.impl("whiten_moments", TORCH_BOX(&whiten_moments));
  m.impl("whiten_apply", TORCH_BOX(&whiten_apply));
}

}  // namespace
}  // namespace pama
