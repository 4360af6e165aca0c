"""The mathematics of the library in plain float64 PyTorch.

Every kernel is tested against these pages, and they are what runs where no kernel was compiled.
They are written to be read, not to be fast. Arguments are those of the dispatcher ops in
`_ops.py`; results are float64 (integers and booleans excepted).

Layouts: token arrays are [N, B, T] or [B, T]; with `cu_seqlens` [N, total] or [total].
"""

import types
import typing

from pama_ops.reference.cone import cagrad as cagrad
from pama_ops.reference.cone import dualproj as dualproj
from pama_ops.reference.cone import upgrad as upgrad
from pama_ops.reference.fair import fairgrad as fairgrad
from pama_ops.reference.fair import nash_mtl as nash_mtl
from pama_ops.reference.gradients import combine as combine
from pama_ops.reference.gradients import combine_into as combine_into
from pama_ops.reference.gradients import gram as gram
from pama_ops.reference.gradients import gram_accumulate as gram_accumulate
from pama_ops.reference.losses import K1 as K1
from pama_ops.reference.losses import K2 as K2
from pama_ops.reference.losses import K3 as K3
from pama_ops.reference.losses import SEQUENCE_MEAN_TOKEN_MEAN as SEQUENCE_MEAN_TOKEN_MEAN
from pama_ops.reference.losses import SEQUENCE_MEAN_TOKEN_SUM as SEQUENCE_MEAN_TOKEN_SUM
from pama_ops.reference.losses import TOKEN_MEAN as TOKEN_MEAN
from pama_ops.reference.losses import TOKEN_SUM as TOKEN_SUM
from pama_ops.reference.losses import kl_divergence as kl_divergence
from pama_ops.reference.losses import kl_divergence_backward as kl_divergence_backward
from pama_ops.reference.losses import ppo_loss as ppo_loss
from pama_ops.reference.losses import ppo_loss_backward as ppo_loss_backward
from pama_ops.reference.losses import value_loss as value_loss
from pama_ops.reference.losses import value_loss_backward as value_loss_backward
from pama_ops.reference.pama import BATCH as BATCH
from pama_ops.reference.pama import GRAM as GRAM
from pama_ops.reference.pama import SEQUENCE as SEQUENCE
from pama_ops.reference.pama import TOKEN as TOKEN
from pama_ops.reference.pama import of_own_tokens as of_own_tokens
from pama_ops.reference.pama import pama_combine as pama_combine
from pama_ops.reference.pama import pama_statistics as pama_statistics
from pama_ops.reference.simplex import duality_gap as duality_gap
from pama_ops.reference.simplex import gapo as gapo
from pama_ops.reference.simplex import min_norm as min_norm
from pama_ops.reference.simplex import pama_weights as pama_weights
from pama_ops.reference.spectral import aligned_mtl as aligned_mtl
from pama_ops.reference.spectral import config as config
from pama_ops.reference.spectral import imtl_g as imtl_g
from pama_ops.reference.surgery import gradvac as gradvac
from pama_ops.reference.surgery import pcgrad as pcgrad
from pama_ops.reference.surgery import random_order as random_order
from pama_ops.reference.tokens import gae as gae
from pama_ops.reference.tokens import group_informative as group_informative
from pama_ops.reference.tokens import group_normalize as group_normalize
from pama_ops.reference.tokens import merge_moments as merge_moments
from pama_ops.reference.tokens import whiten_apply as whiten_apply
from pama_ops.reference.tokens import whiten_moments as whiten_moments
from pama_ops.reference.weighting import TAKES as TAKES
from pama_ops.reference.weighting import WEIGHTINGS as WEIGHTINGS
from pama_ops.reference.weighting import Takes as Takes

# What is imported under its own name is exported. A type checker knows that by the `as`, and would
# take a computed list for an empty one; help() and `import *` go by the list.
if not typing.TYPE_CHECKING:
    __all__ = sorted(
        name
        for name, x in globals().items()
        if not (name.startswith("_") or isinstance(x, types.ModuleType))
    )
