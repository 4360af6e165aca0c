"""Every property of weightings.py: a hypothesis test for a yes, a counter-example for a no.

On the CPU kernels: that the others agree with them is tested elsewhere.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import exactly
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    assert_non_conflicting,
    assert_on_simplex,
    assert_zero_only_when_stationary,
    combined_length,
    gap_bound,
    sum_of_lengths,
)
from strategies import GRADIENT_FAMILIES, gradients, gram_matrices, gram_of, normal
from weightings import PROPERTIES, TABLE, Weighting, claiming

import pama_ops as po

U = 2.0**-53
# Far from changes of rank and from Pareto stationarity, where some solutions jump.
REGULAR = ["gaussian", "common", "rank-deficient common", "zero rows", "condition 1e6"]
DOUBLE = {"device": torch.device("cpu"), "dtypes": [torch.float64], "max_rows": 8}


def each(rows: list[Weighting]):
    return pytest.mark.parametrize("weighting", rows, ids=lambda row: row.name)


def test_every_weighting_has_its_row():
    assert sorted(row.name for row in TABLE) == sorted(po.reference.WEIGHTINGS)


def test_the_docs_show_the_table():
    text = (Path(__file__).parent.parent / "docs" / "weightings.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    head, _, *rows = rows
    assert head == ["weighting", "what x is", *PROPERTIES, "source", "cost"]
    assert all(map(all, rows))
    assert {name.strip("`"): row[1:-2] for name, *row in rows} == {
        row.name: ["yes" if row.claims(x) else "no" for x in PROPERTIES] for row in TABLE
    }


# --- yes ----------------------------------------------------------------------------------------


@each(claiming("on the simplex"))
@given(gram=gram_matrices(torch.device("cpu")))
def test_on_the_simplex(weighting, gram):
    assert_on_simplex(weighting.solve(gram))


@each(claiming("scale-free"))
@given(gram=gram_matrices(**DOUBLE), exponent=st.sampled_from([-200, -2, 2, 200]))
def test_scale_free(weighting, gram, exponent):
    """To the bit, as scaling G by 2^(2k) rounds nothing: weights keep their proportions."""
    weights, scaled = weighting.solve(gram), weighting.solve(gram * 2.0**exponent)
    largest = float(weights.abs().max())
    if largest == 0:
        assert not bool(scaled.any())
        return
    assert torch.equal(scaled / float(scaled.abs().max()), weights / largest)


@each(claiming("non-conflicting"))
@given(gram=gram_matrices(torch.device("cpu")))
def test_non_conflicting(weighting, gram):
    assert_non_conflicting(gram, weighting.solve(gram))


@each(claiming("zero only when stationary"))
@given(gram=gram_matrices(**DOUBLE))
def test_zero_only_when_stationary(weighting, gram):
    assert_zero_only_when_stationary(gram, weighting.solve(gram), weighting.attenuation(gram))


@each(claiming("equivariant"))
@given(gram=gram_matrices(**DOUBLE, families=REGULAR), order=st.permutations(range(8)))
def test_equivariant(weighting, gram, order):
    """On the combined gradient: weights of dependent gradients are not unique."""
    n = len(gram)
    order = torch.tensor([k for k in order if k < n])
    weights = weighting.solve(gram)
    moved = torch.empty_like(weights)
    moved[order] = weighting.solve(gram[order][:, order])
    size = max(sum_of_lengths(gram, weights), sum_of_lengths(gram, moved))
    distance = combined_length(gram, moved - weights)
    assert distance <= weighting.apart(gram, weights) * size, distance / size


@each(claiming("continuous"))
@settings(max_examples=60)
@given(family=st.sampled_from(GRADIENT_FAMILIES), n=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_continuous(weighting, family, n, seed):
    """min_norm: ‖x − x'‖² <= δ (‖x‖ + ‖x'‖), if no gradient moves by more than δ.

    Some y with ‖y − x‖ <= δ is in the other hull, so ⟨x', y⟩ >= ‖x'‖² and
    ⟨x', x⟩ >= ‖x'‖² − δ ‖x'‖; add the same with both exchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    j = gradients(family, n, generator)
    move = normal(j.shape, generator=generator, dtype=torch.float64)
    move = move / exactly.norm(move).max()
    x = combination(weighting, j)
    largest = float(exactly.norm(j).max())
    for k in range(0, 13, 2):
        delta = float(f"1e-{k}") * largest
        other = combination(weighting, j + delta * move)
        bound = (delta * float(exactly.norm(x) + exactly.norm(other))) ** 0.5
        # Each is its optimum but for rounding, G's own included: 4 n products in a sum.
        rounding = 2 * (largest + delta) * (gap_bound(gram_of(j)) + 8 * n * U) ** 0.5
        assert float(exactly.norm(x - other)) <= bound + rounding


def combination(weighting: Weighting, j: torch.Tensor) -> torch.Tensor:
    return exactly.times(j.T, weighting.solve(gram_of(j)))


# --- no -----------------------------------------------------------------------------------------


@each(claiming("on the simplex", claim=False))
def test_not_on_the_simplex(weighting):
    weights = weighting.solve(weighting.counter_examples["on the simplex"])
    assert bool((weights < -0.1).any()) or abs(float(weights.sum()) - 1) > 0.01


@each(claiming("non-conflicting", claim=False))
def test_conflicting(weighting):
    gram = weighting.counter_examples["non-conflicting"]
    with pytest.raises(AssertionError, match="conflict"):
        assert_non_conflicting(gram, weighting.solve(gram))


@each(claiming("equivariant", claim=False))
def test_not_equivariant(weighting):
    """For one seed. (With a new seed each time, the distribution is equivariant.)"""
    j = weighting.counter_examples["equivariant"]
    x = [combination(weighting, j[list(order)]) for order in itertools.permutations(range(3))]
    assert max(float((y - x[0]).norm()) for y in x) > 0.1


@each(claiming("zero only when stationary", claim=False))
def test_zero_though_not_stationary(weighting):
    gram = weighting.counter_examples["zero only when stationary"]
    weights = weighting.solve(gram)
    # `config` multiplies by a sum of n terms that cancel, each to 64 n u as elsewhere.
    assert combined_length(gram, weights) <= 64 * len(gram) ** 2 * U * float(gram.trace()) ** 0.5
    with pytest.raises(AssertionError, match="not stationary"):
        assert_zero_only_when_stationary(gram, weights * 0, 1.0)


@each(claiming("continuous", claim=False))
def test_not_continuous(weighting):
    moving = weighting.counter_examples["continuous"]
    limit = combination(weighting, moving(0.0))
    for t in (1e-2, 1e-4, 1e-6):
        j = moving(t)
        assert float((j - moving(0.0)).norm()) <= 2 * t
        assert float((combination(weighting, j) - limit).norm()) > 0.1


def test_no_property_is_disclaimed_without_a_test():
    tested = {"on the simplex", "equivariant", "non-conflicting", "zero only when stationary",
              "continuous"}  # fmt: skip
    assert {name for row in TABLE for name in row.counter_examples} == tested
