"""What weightings from a Gram matrix share, and the list of them."""

from __future__ import annotations

import functools
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
    """Makes a function (gram, vector, options, rtol) -> weights the default of its op."""

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


def matrices(gram: Tensor) -> Tensor:
    """Each matrix of a stack [..., n, n] in float64, symmetric to the bit: [m, n, n]."""
    g = gram.detach().to(torch.float64).reshape(-1, *gram.shape[-2:])
    return torch.where(g == g.mT, g, g / 2 + g.mT / 2)


def unit_of(m: Tensor) -> float:
    """A power of 2 near the root of the largest entry."""
    largest = float(m.abs().amax())
    return 2.0 ** math.floor((math.frexp(largest)[1] - 1) / 2) if largest > 0 else 1.0


class Problem(NamedTuple):
    """A Gram matrix of a stack, and what its weights depend on.

    Attributes:
        gram: of a scale of about 1, with products of 0 where a gradient's square is.
        unit: the power of 2 by whose square it was divided.
        preference: with sum 1; uniform if none was given.
        options: the weighting's scalars.
        rtol: the relative error of the entries.
    """

    gram: Tensor
    unit: float
    preference: Tensor
    options: list[float]
    rtol: float


def of_each_matrix(solve: Callable[[Problem], Tensor]) -> Callable[..., Tensor]:
    """`solve` as a function of a stack of matrices; NaN for those that are not finite."""

    @functools.wraps(solve)
    def weights(
        gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
    ) -> Tensor:
        w = gram.new_full(gram.shape[:-1], math.nan, dtype=torch.float64)
        p = relative(preference, w)
        shares = (p / p.sum(-1, keepdim=True)).expand(w.shape).reshape(-1, w.shape[-1])
        for row, m, share in zip(w.view(shares.shape), matrices(gram), shares, strict=True):
            if bool(m.isfinite().all()):
                used, unit = m.diagonal() > 0, unit_of(m)
                scaled = torch.where(used & used[:, None], m / unit**2, 0.0)
                row[:] = solve(Problem(scaled, unit, share, options, tolerance(gram, rtol)))
        return w

    return weights
