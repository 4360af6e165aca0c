"""Weights of the objectives from an n x n Gram matrix or from n values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pama_ops import reference


class PAMAWeights(NamedTuple):
    weights: Tensor
    optimum: Tensor


def min_norm(gram: Tensor, *, preference: Tensor | Sequence[float] | None = None) -> Tensor:
    return reference.min_norm(gram, preference).to(gram.dtype)


def pama_weights(
    values: Tensor, *, preference: Tensor | Sequence[float] | None = None
) -> PAMAWeights:
    return PAMAWeights(*reference.pama_weights(values, preference))
