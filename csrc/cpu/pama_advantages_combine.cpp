// The combined advantages, by the weights that each reduction chooses.
#include "cpu/pama_advantages_combine.h"

namespace pama {
namespace {

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
