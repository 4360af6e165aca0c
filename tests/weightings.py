"""The weightings, a row each: what every test of all weightings knows of one.

What a weighting takes beside the matrix stands in the library (reference.TAKES and the public
function's signature) and is read from there. docs/weightings.md shows the properties, and
tests/test_weighting_properties.py proves each: by what hypothesis draws, or by the counter-example.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import exactly
import torch
from properties import (
    apart_if_aligned,
    apart_if_equally_inclined,
    apart_if_equally_projected,
    apart_if_strongly_convex,
    apart_in_a_ball,
    apart_of_fair_gains,
    attenuation_if_aligned,
)
from torch import Tensor

import pama_ops as po

PROPERTIES = [
    "on the simplex",
    "equivariant",
    "scale-free",
    "non-conflicting",
    "zero only when stationary",
    "continuous",
]


@dataclass(frozen=True, eq=False)
class Weighting:
    """A row. With nothing beside its function, it has all PROPERTIES and takes G alone."""

    function: Callable[..., Tensor]
    # A counter-example for each of PROPERTIES that it does not have: a Gram matrix; gradients for
    # "equivariant"; gradients J(t) that converge as t → 0 for "continuous".
    counter_examples: dict[str, Any] = field(default_factory=dict)
    # How far apart two solutions may be, by properties.py; wanted of what is equivariant.
    apart: Callable[[Tensor, Tensor], float] | None = None
    # See assert_zero_only_when_stationary. Of nonnegative weights it is 1, as x / ‖w‖₁ is in the
    # convex hull.
    attenuation: Callable[[Tensor], float] = lambda _gram: 1.0
    # The power of s that the weights of s · G are multiplied by, which may be 0 where they combine
    # Pareto stationary gradients to 0.
    degree: float = 0.0
    fixed_at_zero: bool = False
    # The op's scalars, as many as reference.TAKES has of them.
    options: Sequence[float] = ()
    # Draws the op's vector for each of a batch of n objectives, where reference.TAKES has one.
    vector: Callable[[tuple[int, ...], int, torch.Generator], Tensor] | None = None
    # Arguments of the public function under which its tests see more than under its defaults.
    arguments: dict[str, Any] = field(default_factory=dict)
    # TorchJD's aggregator of the same weights, from torchjd.aggregation.
    torchjd: Callable[[ModuleType], Any] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    def claims(self, name: str) -> bool:
        return name not in self.counter_examples

    @property
    def takes_preference(self) -> bool:
        return po.reference.TAKES[self.name].preference

    def accepts(self, option: str) -> bool:
        """Whether the public function has such a parameter."""
        return option in inspect.signature(self.function).parameters

    def vector_for(
        self, lead: tuple[int, ...], n: int, generator: torch.Generator
    ) -> Tensor | None:
        """What the op cannot do without beside the matrix: a vector, or nothing."""
        return None if self.vector is None else self.vector(lead, n, generator)

    @property
    def solve(self) -> Callable[..., Tensor]:
        """The public function, with one seed where it takes a seed."""
        return seeded(self.function) if self.accepts("seed") else self.function


def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with one seed, on whichever device the matrix is."""

    @functools.wraps(function)
    def weighting(gram: Tensor, **options: object) -> Tensor:
        seed = torch.tensor(0, device=getattr(gram, "device", "cpu"))
        return function(gram, seed=seed, **options)

    return weighting


def claiming(name: str, claim: bool = True) -> list[Weighting]:
    """The weightings that claim this property, or those that do not."""
    return [row for row in TABLE if row.claims(name) is claim]


# --- counter-examples -----------------------------------------------------------------------------


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def with_cosines(*norms: float) -> Tensor:
    """The Gram matrix of three independent gradients with IMTL-G's weights ∝ ±1 / norm: + − +.

    The unit Gram matrix has cosines 3/4, 1/4, 3/4, so that Ĝ⁻¹ 1 ∝ (1, −1, 1).
    """
    s = torch.tensor(norms, dtype=torch.float64)
    return matrix([1, 0.75, 0.25], [0.75, 1, 0.75], [0.25, 0.75, 1]) * s[:, None] * s


def lopsided(norm: float) -> Tensor:
    """Three gradients (1, 0), three (7, 24)/25, and norm · (7, −24)/25, as their Gram matrix: all
    have a positive first part, so the seven are not Pareto stationary, and least squares for equal
    cosines fails the last, by r = −36/25 / (1 + 821/625 · 1/3) against 1."""
    c, s = 7 / 25, 24 / 25
    return exactly.gram(matrix(*[[1.0, 0.0]] * 3, *[[c, s]] * 3, [c * norm, -s * norm]))


def lopsided_norm() -> float:
    """The norm for which the cosines of `lopsided`, weighted by norms, add up to 0."""
    c, k = 7 / 25, 3
    r = 2 * (c - 1) / (1 + (1 + 4 * c * c) / k)
    return (2 * k + r * (1 - 2 * c)) / -(1 + r)


TWO = exactly.gram(matrix([-4, 1, 1], [6, 1, 1]))
UNIT = torch.eye(2, dtype=torch.float64)
# The mean gradient conflicts with the second by more than half its own length.
LONG_AND_SHORT = matrix([200, -14], [-14, 1])
# Which of three conflicts gradient surgery meets first depends on the order.
THREE_CONFLICTS = matrix([-2, -1], [1, -2], [1, 2])


def opposing(t: float) -> Tensor:
    """Opposite for all t > 0; at 0 the second has no direction."""
    return matrix([1, 0], [-t, 0])


def shrinking(t: float) -> Tensor:
    """The second is weighed by 1 / t, or both are made as long as the least singular value, t."""
    return matrix([1, 0], [0, t])


def stationary_at_zero(t: float) -> Tensor:
    return matrix([1, t], [-1, t], [0, 1])


# --- what the ops take in place of a preference ---------------------------------------------------


def seeds(lead: tuple[int, ...], n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2**62, (*lead, 1), generator=generator)


def seeds_and_cosines(lead: tuple[int, ...], n: int, generator: torch.Generator) -> Tensor:
    bits = seeds(lead, n, generator).view(torch.float64)
    targets = torch.rand((*lead, n * n), generator=generator, dtype=torch.float64) / 2
    return torch.cat([bits, targets], -1)


# --- the table ------------------------------------------------------------------------------------

TABLE = [
    Weighting(
        po.min_norm,
        apart=apart_if_strongly_convex,
        torchjd=lambda jd: jd.MGDA(epsilon=1e-9, max_iters=100000),
    ),
    Weighting(
        po.upgrad,
        counter_examples={"on the simplex": TWO, "continuous": opposing},
        apart=apart_if_strongly_convex,
        torchjd=lambda jd: jd.UPGrad(),
    ),
    Weighting(
        po.dualproj,
        counter_examples={"on the simplex": TWO, "continuous": opposing},
        apart=apart_if_strongly_convex,
        torchjd=lambda jd: jd.DualProj(),
    ),
    Weighting(
        po.cagrad,
        counter_examples={
            "on the simplex": TWO,
            "non-conflicting": LONG_AND_SHORT,
            "continuous": stationary_at_zero,
        },
        apart=apart_in_a_ball,
        options=[0.4],
        torchjd=lambda jd: jd.CAGrad(c=0.5),
    ),
    Weighting(
        po.nash_mtl,
        counter_examples={"on the simplex": UNIT, "continuous": shrinking},
        apart=apart_of_fair_gains,
        degree=-0.5,
        fixed_at_zero=True,
    ),
    Weighting(
        po.fairgrad,
        counter_examples={"on the simplex": UNIT, "continuous": shrinking},
        apart=apart_of_fair_gains,
        degree=-0.5,
        fixed_at_zero=True,
        options=[2.0],
    ),
    Weighting(
        po.imtl_g,
        counter_examples={
            "on the simplex": with_cosines(1, 0.25, 1),
            "non-conflicting": with_cosines(1, 0.25, 1),  # Σ of the unscaled weights is negative
            "zero only when stationary": with_cosines(1, 0.5, 1),
            "continuous": shrinking,
        },
        apart=apart_if_equally_projected,
        torchjd=lambda jd: jd.IMTLG(),
    ),
    Weighting(
        po.aligned_mtl,
        counter_examples={
            "on the simplex": TWO,
            "non-conflicting": LONG_AND_SHORT,
            "continuous": shrinking,
        },
        apart=apart_if_aligned,
        attenuation=attenuation_if_aligned,
        options=[0.0],
        torchjd=lambda jd: jd.AlignedMTL(),
    ),
    Weighting(
        po.config,
        counter_examples={
            "on the simplex": TWO,
            "non-conflicting": lopsided(1.0),
            "zero only when stationary": lopsided(lopsided_norm()),
            "continuous": opposing,
        },
        apart=apart_if_equally_inclined,
        torchjd=lambda jd: jd.ConFIG(),
    ),
    Weighting(
        po.gapo,
        counter_examples={"on the simplex": TWO, "continuous": opposing},
        apart=apart_if_strongly_convex,
        degree=-0.5,
        options=[2.0],
    ),
    Weighting(
        po.pcgrad,
        counter_examples={
            "on the simplex": TWO,
            "equivariant": THREE_CONFLICTS,
            "non-conflicting": exactly.gram(THREE_CONFLICTS),
            "continuous": opposing,
        },
        vector=seeds,
        torchjd=lambda jd: jd.PCGrad(),
    ),
    Weighting(
        po.gradvac,
        counter_examples={
            "on the simplex": TWO,
            "equivariant": THREE_CONFLICTS,
            "non-conflicting": exactly.gram(THREE_CONFLICTS),
            "continuous": opposing,
        },
        vector=seeds_and_cosines,
        arguments={"target": 0.25},
    ),
]
