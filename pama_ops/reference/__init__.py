"""The mathematics of the library in plain float64 PyTorch.

Every kernel is tested against these pages, and they are what runs where no kernel was compiled.
They are written to be read, not to be fast. Arguments are those of the dispatcher ops in
`_schemas.py`; results are float64 (integers and booleans excepted).

Layouts: token arrays are [N, B, T] or [B, T]; with `cu_seqlens` [N, total] or [total].
"""

from pama_ops.reference.cone import cagrad, dualproj, upgrad
from pama_ops.reference.fair import fairgrad, nash_mtl
from pama_ops.reference.gradients import combine, combine_into, gram, gram_accumulate
from pama_ops.reference.losses import (
    K1,
    K2,
    K3,
    SEQUENCE_MEAN_TOKEN_MEAN,
    SEQUENCE_MEAN_TOKEN_SUM,
    TOKEN_MEAN,
    TOKEN_SUM,
    kl_divergence,
    kl_divergence_backward,
    ppo_loss,
    ppo_loss_backward,
    value_loss,
    value_loss_backward,
)
from pama_ops.reference.pama import (
    BATCH,
    GRAM,
    SEQUENCE,
    TOKEN,
    of_own_tokens,
    pama_combine,
    pama_statistics,
)
from pama_ops.reference.simplex import duality_gap, gapo, min_norm, pama_weights
from pama_ops.reference.spectral import aligned_mtl, config, imtl_g
from pama_ops.reference.surgery import gradvac, pcgrad, random_order
from pama_ops.reference.tokens import (
    gae,
    group_informative,
    group_normalize,
    merge_moments,
    whiten_apply,
    whiten_moments,
)
from pama_ops.reference.weighting import TAKES, WEIGHTINGS, Takes

__all__ = [
    "BATCH",
    "GRAM",
    "K1",
    "K2",
    "K3",
    "SEQUENCE",
    "SEQUENCE_MEAN_TOKEN_MEAN",
    "SEQUENCE_MEAN_TOKEN_SUM",
    "TAKES",
    "TOKEN",
    "TOKEN_MEAN",
    "TOKEN_SUM",
    "WEIGHTINGS",
    "Takes",
    "aligned_mtl",
    "cagrad",
    "combine",
    "combine_into",
    "config",
    "duality_gap",
    "dualproj",
    "fairgrad",
    "gae",
    "gapo",
    "gradvac",
    "gram",
    "gram_accumulate",
    "group_informative",
    "group_normalize",
    "imtl_g",
    "kl_divergence",
    "kl_divergence_backward",
    "merge_moments",
    "min_norm",
    "nash_mtl",
    "of_own_tokens",
    "pama_combine",
    "pama_statistics",
    "pama_weights",
    "pcgrad",
    "ppo_loss",
    "ppo_loss_backward",
    "random_order",
    "upgrad",
    "value_loss",
    "value_loss_backward",
    "whiten_apply",
    "whiten_moments",
]
