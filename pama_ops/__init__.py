"""Fused multi-objective training: Pareto weights at the cost of a single objective.

Gradient space (any model): `gram`, `combine`, `pareto_backward`.
Token space (LLM alignment): `gae`, `whiten`, `group_normalize`, `pama_advantages`, `ppo_loss`,
`value_loss`, `kl_divergence`.

Weights: `min_norm`, `pama_weights`, `duality_gap`, `dualproj`, `upgrad`, `cagrad`, `nash_mtl`,
`fairgrad`, `imtl_g`, `aligned_mtl`, `config`, `gapo`, `pcgrad`, `gradvac`.
"""

import types
import typing

from pama_ops import _library
from pama_ops.advantages import GAE as GAE
from pama_ops.advantages import GroupAdvantages as GroupAdvantages
from pama_ops.advantages import PAMAStep as PAMAStep
from pama_ops.advantages import gae as gae
from pama_ops.advantages import group_normalize as group_normalize
from pama_ops.advantages import pama_advantages as pama_advantages
from pama_ops.advantages import whiten as whiten
from pama_ops.backward import pareto_backward as pareto_backward
from pama_ops.gradients import combine as combine
from pama_ops.gradients import gram as gram
from pama_ops.gradients import gram_accumulate as gram_accumulate
from pama_ops.losses import PPOLoss as PPOLoss
from pama_ops.losses import kl_divergence as kl_divergence
from pama_ops.losses import ppo_loss as ppo_loss
from pama_ops.losses import value_loss as value_loss
from pama_ops.weights import PAMAWeights as PAMAWeights
from pama_ops.weights import aligned_mtl as aligned_mtl
from pama_ops.weights import cagrad as cagrad
from pama_ops.weights import config as config
from pama_ops.weights import duality_gap as duality_gap
from pama_ops.weights import dualproj as dualproj
from pama_ops.weights import fairgrad as fairgrad
from pama_ops.weights import gapo as gapo
from pama_ops.weights import gradvac as gradvac
from pama_ops.weights import imtl_g as imtl_g
from pama_ops.weights import min_norm as min_norm
from pama_ops.weights import nash_mtl as nash_mtl
from pama_ops.weights import pama_weights as pama_weights
from pama_ops.weights import pcgrad as pcgrad
from pama_ops.weights import upgrad as upgrad

__version__ = "0.1.0"

# What is imported under its own name is exported. A type checker knows that by the `as`, and would
# take a computed list for an empty one; help() and `import *` go by the list.
if not typing.TYPE_CHECKING:
    __all__ = sorted(
        name
        for name, x in globals().items()
        if not (name.startswith("_") or isinstance(x, types.ModuleType))
    )

_library.load()
