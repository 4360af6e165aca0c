from __future__ import annotations

import operator
from fractions import Fraction

import exactly
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_rounds
from strategies import draw_gradients, gram_matrices, gram_of, normal

import pama_ops as po


@given(data=st.data())
def test_duality_gap_is_its_definition(backend, data):
    gram = data.draw(gram_matrices(backend.device, dtypes=[torch.float64, torch.float32]))
    n = gram.shape[-1]
    numbers = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    assert_is_its_definition(gram, torch.tensor(numbers, dtype=torch.float64, device=gram.device))


def test_duality_gap_of_more_rows_than_lanes_is_its_definition(backend, many_rows):
    gram = gram_of(draw_gradients("common", many_rows)).to(backend.device)
    assert_is_its_definition(gram, po.imtl_g(gram))


def assert_is_its_definition(gram: torch.Tensor, weights: torch.Tensor) -> None:
    n = len(weights)
    got = po.duality_gap(gram, weights)
    rows = [[Fraction(x) for x in row] for row in gram.double().tolist()]
    w = [Fraction(x) for x in weights.tolist()]

    def along(row: list[Fraction], v: list[Fraction]) -> Fraction:
        return sum(map(operator.mul, row, v))

    slope = [along(row, w) for row in rows]
    largest = max(along([abs(x) for x in row], [abs(x) for x in w]) for row in rows)
    # Below the normal numbers, rounding is absolute.
    size = float(largest * (1 + sum(map(abs, w)))) + torch.finfo(torch.float64).smallest_normal
    want = torch.tensor(float(along(w, slope) - min(slope)), dtype=torch.float64)
    assert_rounds(got, want, size, 2 * n + 2)
    assert got.dtype == gram.dtype


@pytest.mark.parametrize(
    "weights",
    [[2.225073858507203e-309, 5e-324, 1e-310], [1.365395e-318, 1.4e-322, 3.0257199500406e-311]],
)
def test_duality_gap_of_subnormal_weights_is_its_definition(backend, weights):
    gram = gram_of(draw_gradients("common", len(weights))).to(backend.device)
    numbers = torch.tensor(weights, dtype=torch.float64)
    assert_is_its_definition(gram, numbers.to(backend.device))


@given(data=st.data())
def test_duality_gap_bounds_the_distance_to_the_optimum(backend, data):
    gram = data.draw(
        gram_matrices(backend.device, families=["gaussian", "common"], dtypes=[torch.float64])
    )
    n = gram.shape[-1]
    numbers = data.draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n))
    w = torch.tensor(numbers, dtype=torch.float64, device=backend.device)
    w = w / w.sum()
    best = po.min_norm(gram)
    excess = exactly.dot(w, exactly.times(gram, w)) - exactly.dot(best, exactly.times(gram, best))
    rounding = 8 * n * 2.0**-53 * gram.diagonal().max()
    assert float(excess) <= 2 * float(po.duality_gap(gram, w) + rounding)


def test_duality_gap_goes_over_a_batch_of_any_strides(backend):
    generator = torch.Generator().manual_seed(0)
    j = normal((2, 3, 4, 5), generator=generator, dtype=torch.float64)
    gram = gram_of(j).to(backend.device)
    weights = torch.rand((4, 3, 2), generator=generator).to(backend.device).permute(2, 1, 0)
    got = po.duality_gap(gram, weights)
    assert got.shape == (2, 3)
    each = [
        po.duality_gap(gram[i, k].contiguous(), weights[i, k]) for i in range(2) for k in range(3)
    ]
    if backend.name == "default":  # torch's product rounds a batch as it likes
        torch.testing.assert_close(got.flatten(), torch.stack(each), rtol=1e-13, atol=1e-13)
    else:
        assert torch.equal(got.flatten(), torch.stack(each))


def test_duality_gap_of_what_is_not_finite_is_nan(backend):
    gram = torch.eye(3, device=backend.device)
    weights = torch.tensor([1.0, 0.0, 0.0], device=backend.device)
    for x in (torch.nan, torch.inf):
        gram[1, 2] = gram[2, 1] = x
        assert po.duality_gap(gram, weights).isnan()
    assert po.duality_gap(torch.eye(3, device=backend.device), weights * torch.nan).isnan()


@pytest.mark.parametrize(
    ("gram", "weights", "error", "message"),
    [
        (torch.eye(2), [0.5, 0.5], TypeError, "weights must be a torch.Tensor, got list"),
        (
            torch.eye(2),
            torch.ones(3),
            ValueError,
            r"weights must have the shape \[2\] .* got \[3\]",
        ),
        (torch.eye(2), torch.ones(1, 2), ValueError, r"weights must have the shape \[2\]"),
        (torch.eye(2), torch.ones(2).long(), TypeError, "weights must have a floating-point dtype"),
        (torch.ones(2, 3), torch.ones(2), ValueError, r"gram must have the shape \[..., n, n\]"),
    ],
)
def test_duality_gap_names_the_bad_argument(backend, gram, weights, error, message):
    if isinstance(weights, torch.Tensor):
        weights = weights.to(backend.device)
    with pytest.raises(error, match=message):
        po.duality_gap(gram.to(backend.device), weights)
