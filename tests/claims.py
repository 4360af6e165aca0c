"""What each weighting claims, and a counter-example for each claim it does not make.

docs/weightings.md shows this table, and tests/test_weighting_properties.py proves every cell.
"""

from __future__ import annotations

from collections.abc import Callable

import exactly
import torch
from torch import Tensor

import pama_ops as po

Weighting = Callable[[Tensor], Tensor]

PROPERTIES = [
    "on the simplex",
    "equivariant",
    "scale-free",
    "non-conflicting",
    "zero only when stationary",
    "continuous",
]

# In the order of PROPERTIES.
CLAIMS: dict[str, tuple[bool, ...]] = {
    "min_norm": (True, True, True, True, True, True),
    "upgrad": (False, True, True, True, True, False),
    "dualproj": (False, True, True, True, True, False),
    "cagrad": (False, True, True, False, True, False),
    "nash_mtl": (False, True, True, True, True, False),
    "fairgrad": (False, True, True, True, True, False),
    "imtl_g": (False, True, True, False, False, False),
    "aligned_mtl": (False, True, True, False, True, False),
    "config": (False, True, True, False, False, False),
    "gapo": (False, True, True, True, True, False),
    "pcgrad": (False, False, True, False, True, False),
    "gradvac": (False, False, True, False, True, False),
}


def claiming(name: str, claim: bool = True) -> list[str]:
    """The weightings that claim this property, or those that do not."""
    column = PROPERTIES.index(name)
    return [weighting for weighting, row in CLAIMS.items() if row[column] is claim]


def weighting(name: str) -> Weighting:
    """With its default options; gradient surgery with one seed."""
    function: Weighting = getattr(po, name)
    if name in ("pcgrad", "gradvac"):
        return lambda gram: function(gram, seed=torch.tensor(0))
    return function


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- counter-examples: gradients, or a Gram matrix of some ---------------------------------------


def with_cosines(*norms: float) -> Tensor:
    """The Gram matrix of three independent gradients with IMTL-G's weights ∝ ±1 / norm: + − +.

    The unit Gram matrix has cosines 3/4, 1/4, 3/4, so that Ĝ⁻¹ 1 ∝ (1, −1, 1).
    """
    s = torch.tensor(norms, dtype=torch.float64)
    return matrix([1, 0.75, 0.25], [0.75, 1, 0.75], [0.25, 0.75, 1]) * s[:, None] * s


def lopsided(norm: float) -> Tensor:
    """Three gradients (1, 0), three (7, 24)/25, and norm · (7, −24)/25: all have a positive first
    part, so the seven are not Pareto stationary, and least squares for equal cosines fails the
    last, by r = −36/25 / (1 + 821/625 · 1/3) against 1."""
    c, s = 7 / 25, 24 / 25
    return matrix(*[[1.0, 0.0]] * 3, *[[c, s]] * 3, [c * norm, -s * norm])


def lopsided_norm() -> float:
    """The norm for which the cosines of `lopsided`, weighted by norms, add up to 0."""
    c, k = 7 / 25, 3
    r = 2 * (c - 1) / (1 + (1 + 4 * c * c) / k)
    return (2 * k + r * (1 - 2 * c)) / -(1 + r)


TWO = matrix([-4, 1, 1], [6, 1, 1])
# The mean gradient conflicts with the second by more than half its own length.
LONG_AND_SHORT = matrix([200, -14], [-14, 1])

# Which of three conflicts gradient surgery meets first depends on the order.
THREE_CONFLICTS = matrix([-2, -1], [1, -2], [1, 2])

OFF_THE_SIMPLEX: dict[str, Tensor] = {
    **dict.fromkeys(claiming("on the simplex", claim=False), exactly.gram(TWO)),
    "nash_mtl": torch.eye(2, dtype=torch.float64),
    "fairgrad": torch.eye(2, dtype=torch.float64),
    "imtl_g": with_cosines(1, 0.25, 1),
}

CONFLICTING: dict[str, Tensor] = {
    "cagrad": LONG_AND_SHORT,
    "aligned_mtl": LONG_AND_SHORT,
    "imtl_g": with_cosines(1, 0.25, 1),  # Σ of the unscaled weights is negative
    "config": exactly.gram(lopsided(1.0)),
    "pcgrad": exactly.gram(THREE_CONFLICTS),
    "gradvac": exactly.gram(THREE_CONFLICTS),
}

# Zero, and yet not Pareto stationary.
ZERO: dict[str, Tensor] = {
    "imtl_g": with_cosines(1, 0.5, 1),
    "config": exactly.gram(lopsided(lopsided_norm())),
}


def shrinking(t: float) -> Tensor:
    return matrix([1, 0], [0, t])


# Gradients J(t) with J(t) → J(0) whose combination does not follow.
JUMPS: dict[str, Callable[[float], Tensor]] = {
    # Opposite for all t > 0; at 0 the second has no direction.
    **dict.fromkeys(claiming("continuous", claim=False), lambda t: matrix([1, 0], [-t, 0])),
    "nash_mtl": shrinking,  # weighs the second by 1 / t
    "fairgrad": shrinking,
    "imtl_g": shrinking,
    "aligned_mtl": shrinking,  # as long as its least singular value, t
    "cagrad": lambda t: matrix([1, t], [-1, t], [0, 1]),  # Pareto stationary at 0 alone
}
