"""Fused multi-objective training: Pareto weights at the cost of a single objective.

Gradient space (any model): `gram`, `combine`, `pareto_backward`.
Token space (LLM alignment): `gae`, `whiten`, `group_normalize`, `pama_advantages`, `ppo_loss`,
`value_loss`, `kl_divergence`.

Weights: `min_norm`, `pama_weights`, `duality_gap`, `dualproj`, `upgrad`, `cagrad`, `nash_mtl`,
`fairgrad`, `imtl_g`, `aligned_mtl`, `config`, `gapo`, `pcgrad`, `gradvac`.
"""

from pama_ops import _library
from pama_ops.advantages import (
    GAE,
    GroupAdvantages,
    PAMAStep,
    gae,
    group_normalize,
    pama_advantages,
    whiten,
)
from pama_ops.backward import pareto_backward
from pama_ops.gradients import combine, gram, gram_accumulate
from pama_ops.losses import PPOLoss, kl_divergence, ppo_loss, value_loss
from pama_ops.weights import (
    PAMAWeights,
    aligned_mtl,
    cagrad,
    config,
    duality_gap,
    dualproj,
    fairgrad,
    gapo,
    gradvac,
    imtl_g,
    min_norm,
    nash_mtl,
    pama_weights,
    pcgrad,
    upgrad,
)

__version__ = "0.1.0"
__all__ = [
    "GAE",
    "GroupAdvantages",
    "PAMAStep",
    "PAMAWeights",
    "PPOLoss",
    "aligned_mtl",
    "cagrad",
    "combine",
    "config",
    "duality_gap",
    "dualproj",
    "fairgrad",
    "gae",
    "gapo",
    "gradvac",
    "gram",
    "gram_accumulate",
    "group_normalize",
    "imtl_g",
    "kl_divergence",
    "min_norm",
    "nash_mtl",
    "pama_advantages",
    "pama_weights",
    "pareto_backward",
    "pcgrad",
    "ppo_loss",
    "upgrad",
    "value_loss",
    "whiten",
]

_library.load()
