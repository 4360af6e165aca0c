"""What weightings from a Gram matrix share, and the list of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHTINGS: dict[str, Callable[..., Tensor]] = {}


class Takes(NamedTuple):
    """What a weighting takes beside the matrix, as kTakes, kOptions and vector() in csrc/core say.

    Attributes:
        options: how many scalars.
        preference: whether a preference or None.
        vector: of n objectives, how many numbers the vector has that it cannot do without; None:
            it takes none.
    """

    options: int = 0
    preference: bool = False
    vector: Callable[[int], int] | None = None


TAKES: dict[str, Takes] = {}


def weighting(
    options: int = 0, *, preference: bool = False, vector: Callable[[int], int] | None = None
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Makes a function (gram, preference, options, rtol) -> weights the default of its op."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = function.__name__
        WEIGHTINGS[name], TAKES[name] = function, Takes(options, preference, vector)
        return function

    return register


def tolerance(gram: Tensor, rtol: float | None) -> float:
    """The relative error of a Gram matrix's entries: None stands for the eps of its dtype."""
    return torch.finfo(gram.dtype).eps if rtol is None else rtol


def relative(
    preference: Tensor | None, like: Tensor, least: float = torch.finfo(torch.float64).tiny
) -> Tensor:
    """A preference, or one for each matrix, relative to its largest entry: a uniform one is 1.
    Entries below `least` are 0, as in csrc/core/weightings/preference.h.
    """
    if preference is None:
        return like.new_ones(like.shape[-1])
    p = preference.detach().to(torch.float64)
    p = p / p.amax(-1, keepdim=True)
    return torch.where(p >= least, p, 0.0)


def share(preference: Tensor | None, like: Tensor) -> Tensor:
    """A preference with sum 1."""
    p = relative(preference, like)
    return p / p.sum(-1, keepdim=True)


def each(gram: Tensor, solve: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """`solve` on each matrix, brought to a scale of about 1 by a power of 4; NaN if not finite.

    `solve` gets the scaled matrix, with products of 0 where a gradient's square is, and of each of
    `vectors` the matrix's own, or the one for all; its result is what the weights are.
    """
    g = gram.detach().to(torch.float64)
    n = g.shape[-1]
    w = g.new_full(g.shape[:-1], math.nan).reshape(-1, n)
    mine = [x.expand(g.shape[:-1]).reshape(-1, n) for x in vectors]
    for b, m in enumerate(g.reshape(-1, n, n)):
        m = torch.where(m == m.T, m, m / 2 + m.T / 2)
        if bool(m.isfinite().all()):
            used = m.diagonal() > 0
            scaled = torch.where(used & used[:, None], m / unit_of(m) ** 2, 0.0)
            w[b] = solve(scaled, *(x[b] for x in mine))
    return w.reshape(g.shape[:-1])


def unit_of(m: Tensor) -> float:
    """A power of 2 near the root of the largest entry."""
    largest = float(m.abs().amax())
    return 2.0 ** math.floor((math.frexp(largest)[1] - 1) / 2) if largest > 0 else 1.0
