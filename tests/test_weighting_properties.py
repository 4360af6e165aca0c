"""Every cell of the table of claims.py: a hypothesis test for a yes, a counter-example for a no.

On the CPU kernels: that the others agree with them is tested elsewhere.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import claims
import exactly
import pytest
import torch
from claims import claiming, weighting
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    assert_non_conflicting,
    assert_on_simplex,
    assert_zero_only_when_stationary,
    combined_length,
    gap_bound,
    is_null_combination,
    sum_of_lengths,
)
from strategies import GRADIENT_FAMILIES, gradients, gram_matrices, gram_of, normal

import pama_ops as po

U = 2.0**-53
# Far from changes of rank and from Pareto stationarity, where some solutions jump.
REGULAR = ["gaussian", "common", "rank-deficient common", "zero rows", "condition 1e6"]
DOUBLE = {"device": torch.device("cpu"), "dtypes": [torch.float64], "max_rows": 8}


def each(names: list[str]):
    return pytest.mark.parametrize("name", names)


def test_every_weighting_has_its_row():
    assert set(claims.CLAIMS) == set(po.reference.WEIGHTINGS)


def test_the_docs_show_the_table():
    text = (Path(__file__).parent.parent / "docs" / "weightings.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    head = next(i for i, row in enumerate(rows) if row[1:] == claims.PROPERTIES)
    shown = {row[0].strip("`"): row[1:] for row in rows[head + 2 :]}
    want = {
        name: ["yes" if claim else "no" for claim in row] for name, row in claims.CLAIMS.items()
    }
    assert shown == want
    described = {row[0].strip("`") for row in rows[:head]}
    assert set(want) <= described


# --- yes ----------------------------------------------------------------------------------------


@each(claiming("on the simplex"))
@given(gram=gram_matrices(torch.device("cpu")))
def test_on_the_simplex(name, gram):
    assert_on_simplex(weighting(name)(gram))


@each(claiming("scale-free"))
@given(gram=gram_matrices(**DOUBLE), exponent=st.sampled_from([-200, -2, 2, 200]))
def test_scale_free(name, gram, exponent):
    """To the bit, as scaling G by 2^(2k) rounds nothing: weights keep their proportions."""
    weights, scaled = weighting(name)(gram), weighting(name)(gram * 2.0**exponent)
    largest = float(weights.abs().max())
    if largest == 0:
        assert not bool(scaled.any())
        return
    assert torch.equal(scaled / float(scaled.abs().max()), weights / largest)


@each(claiming("non-conflicting"))
@given(gram=gram_matrices(torch.device("cpu")))
def test_non_conflicting(name, gram):
    assert_non_conflicting(gram, weighting(name)(gram))


@each(claiming("zero only when stationary"))
@given(gram=gram_matrices(**DOUBLE))
def test_zero_only_when_stationary(name, gram):
    assert_zero_only_when_stationary(gram, weighting(name)(gram), attenuation(name, gram))


def attenuation(name: str, gram: torch.Tensor) -> float:
    """The least ‖x‖² / ‖w‖₁² against ‖d‖², d the shortest vector of the convex hull.

    Nonnegative weights: Σ w_i g_i / ‖w‖₁ is in the hull, so 1. aligned_mtl: x = √σ V Λ^(−½) Vᵀ p
    in weights has ‖x‖² = σ ‖Vᵀp‖² >= σ/λ_max pᵀGp, and ‖w‖₁ <= √n ‖p‖₂ = 1.
    """
    if name != "aligned_mtl":
        return 1.0
    values, _ = exactly.eigen(gram)
    # An eigenvalue within rounding of the cut may be kept or not: take the least that may be.
    cut = len(gram) * 2.0**-53 * values[-1]
    kept = values[values > cut]
    return float(kept[0] / values[-1]) if len(kept) else 0.0


@each(claiming("equivariant"))
@given(gram=gram_matrices(**DOUBLE, families=REGULAR), order=st.permutations(range(8)))
def test_equivariant(name, gram, order):
    """On the combined gradient: weights of dependent gradients are not unique."""
    n = len(gram)
    order = torch.tensor([k for k in order if k < n])
    weights = weighting(name)(gram)
    moved = torch.empty_like(weights)
    moved[order] = weighting(name)(gram[order][:, order])
    size = max(sum_of_lengths(gram, weights), sum_of_lengths(gram, moved))
    distance = combined_length(gram, moved - weights)
    assert distance <= equivariance_bound(name, gram, weights) * size, distance / size


def equivariance_bound(name: str, gram: torch.Tensor, weights: torch.Tensor) -> float:
    """How far two solutions to rounding may be apart, in units of Σ |w_i| ‖g_i‖."""
    n = len(gram)
    gap = 16 * (16 + 8 * n) * 2 * U  # of a solution's objective, see assert_cone_optimal
    if name in ("min_norm", "gapo", "dualproj", "upgrad"):
        # Strongly convex in x: ‖x − x*‖² <= gap, for each of upgrad's n problems, twice.
        return 2 * n * gap**0.5
    used = gram.diagonal() > 0
    norm = gram.diagonal()[used].sqrt()
    if not bool(used.any()) or not bool(weights.any()):
        return 0.0
    if name == "cagrad":
        # Within a ball of radius r <= size, ‖x − x*‖² <= 8 r · gap / ‖d‖: half the square over
        # 4 r is the depth of the midpoint, which could ascend that much along d. Where d = 0,
        # a zero gradient makes every direction optimal: nothing is claimed but x's own length.
        d = combined_length(gram, po.min_norm(gram))
        return 2 * (8 * gap * float(norm.max()) / d) ** 0.5 if d > 0 else 2.0
    if name in ("nash_mtl", "fairgrad"):
        if is_null_combination(gram, weights):
            return 2 * (16 * n * U) ** 0.5  # twice as far from 0 as that test allows
        # D G D + I, the Hessian in relative changes of w (D = diag w), is at least I.
        return (
            2
            * gap
            * n
            * float(exactly.dot(weights.abs(), exactly.times(gram.abs(), weights.abs())))
        )
    # Eigenvectors turn by rounding over the least eigenvalue that counts.
    scaled = gram if name == "aligned_mtl" else gram[used][:, used] / norm[:, None] / norm
    values, vectors = exactly.eigen(scaled)
    kept = values > 1e-10 * values[-1]
    condition = float(values[-1] / values[kept][0])
    cancelled = 1.0
    if name == "imtl_g":  # Σ of the unscaled weights
        cancelled = float(exactly.total(weights.abs()))
    elif name == "config":  # what is in the range of 1, and the length Σ ‖g_i‖ cos_i
        inside = float((vectors[:, kept].sum(0) ** 2).sum()) / len(values)
        cancelled = float(norm.sum()) / combined_length(gram, weights) / inside
    return 64 * n * U * condition * cancelled


@each(claiming("continuous"))
@settings(max_examples=60)
@given(family=st.sampled_from(GRADIENT_FAMILIES), n=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_continuous(name, family, n, seed):
    """min_norm: ‖x − x'‖² <= δ (‖x‖ + ‖x'‖), if no gradient moves by more than δ.

    Some y with ‖y − x‖ <= δ is in the other hull, so ⟨x', y⟩ >= ‖x'‖² and
    ⟨x', x⟩ >= ‖x'‖² − δ ‖x'‖; add the same with both exchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    j = gradients(family, n, generator)
    move = normal(j.shape, generator=generator, dtype=torch.float64)
    move = move / exactly.norm(move).max()
    x = combination(name, j)
    largest = float(exactly.norm(j).max())
    for k in range(0, 13, 2):
        delta = float(f"1e-{k}") * largest
        other = combination(name, j + delta * move)
        bound = (delta * float(exactly.norm(x) + exactly.norm(other))) ** 0.5
        # Each is its optimum but for rounding, G's own included: 4 n products in a sum.
        rounding = 2 * (largest + delta) * (gap_bound(gram_of(j)) + 8 * n * U) ** 0.5
        assert float(exactly.norm(x - other)) <= bound + rounding


def combination(name: str, j: torch.Tensor) -> torch.Tensor:
    return exactly.times(j.T, weighting(name)(gram_of(j)))


# --- no -----------------------------------------------------------------------------------------


@each(claiming("on the simplex", claim=False))
def test_not_on_the_simplex(name):
    weights = weighting(name)(claims.OFF_THE_SIMPLEX[name])
    assert bool((weights < -0.1).any()) or abs(float(weights.sum()) - 1) > 0.01


@each(claiming("non-conflicting", claim=False))
def test_conflicting(name):
    gram = claims.CONFLICTING[name]
    with pytest.raises(AssertionError, match="conflict"):
        assert_non_conflicting(gram, weighting(name)(gram))


@each(claiming("equivariant", claim=False))
def test_not_equivariant(name):
    """For one seed. (With a new seed each time, the distribution is equivariant.)"""
    j = claims.THREE_CONFLICTS
    x = [combination(name, j[list(order)]) for order in itertools.permutations(range(3))]
    assert max(float((y - x[0]).norm()) for y in x) > 0.1


@each(claiming("zero only when stationary", claim=False))
def test_zero_though_not_stationary(name):
    gram = claims.ZERO[name]
    weights = weighting(name)(gram)
    # `config` multiplies by a sum of n terms that cancel, each to 64 n u as elsewhere.
    assert combined_length(gram, weights) <= 64 * len(gram) ** 2 * U * float(gram.trace()) ** 0.5
    with pytest.raises(AssertionError, match="not stationary"):
        assert_zero_only_when_stationary(gram, weights * 0, 1.0)


@each(claiming("continuous", claim=False))
def test_not_continuous(name):
    limit = combination(name, claims.JUMPS[name](0.0))
    for t in (1e-2, 1e-4, 1e-6):
        j = claims.JUMPS[name](t)
        assert float((j - claims.JUMPS[name](0.0)).norm()) <= 2 * t
        assert float((combination(name, j) - limit).norm()) > 0.1


def test_no_property_is_disclaimed_without_a_test():
    tested = {"on the simplex", "equivariant", "non-conflicting", "zero only when stationary",
              "continuous"}  # fmt: skip
    assert {p for p in claims.PROPERTIES if claiming(p, claim=False)} == tested
