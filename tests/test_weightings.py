"""What every weighting owes its caller, one row of the table each."""

from __future__ import annotations

import math
import re

import exactly
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    assert_independent_of_thread_count,
    assert_non_conflicting,
    assert_on_simplex,
    is_null_combination,
    unit_roundoff,
)
from strategies import DTYPES, arrange, gram_matrices, normal
from weightings import TABLE, Weighting

from pama_ops import _ops


@pytest.fixture(params=TABLE, ids=lambda row: row.name)
def weighting(request: pytest.FixtureRequest) -> Weighting:
    return request.param


def batch_of(n: int, lead: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    j = normal((*lead, n, 2 * n), generator=generator, dtype=torch.float64) + 0.5
    return (exactly.gram(j) / n).to(dtype)


@settings(max_examples=40)
@given(data=st.data())
def test_weighting_has_the_properties_it_claims(backend, weighting, data):
    gram = data.draw(gram_matrices(backend.device, max_rows=8))
    weights = weighting.solve(gram)
    assert weights.dtype == gram.dtype
    assert weights.shape == gram.shape[:-1]
    if weighting.claims("on the simplex"):
        assert_on_simplex(weights)
    if weighting.claims("non-conflicting"):
        assert_non_conflicting(gram, weights)
    if gram.dtype == torch.float64:
        for exponent in (-300, 300):
            scaled = weighting.solve(gram * 2.0**exponent)
            at_zero = weighting.fixed_at_zero and is_null_combination(gram, weights)
            degree = 0.0 if at_zero else weighting.degree
            assert torch.equal(scaled, weights * 2.0 ** (exponent * degree))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3), (1, 2, 1, 2, 1, 2, 1, 2)])
def test_weighting_solves_each_matrix_of_a_batch(backend, weighting, dtype, lead):
    gram = batch_of(4, lead, dtype).to(backend.device)
    got = weighting.solve(gram)
    assert got.shape == (*lead, 4)
    assert got.dtype == dtype
    assert got.is_contiguous()
    for g, w in zip(gram.reshape(-1, 4, 4), got.reshape(-1, 4), strict=True):
        assert torch.equal(weighting.solve(g), w)
        # float64 inside: the narrow result is the wide one, rounded.
        wide = weighting.solve(g.double())
        if dtype in DTYPES[:2]:
            torch.testing.assert_close(
                w.double(), wide, rtol=1.01 * unit_roundoff(dtype), atol=1e-15
            )


def test_weighting_takes_any_strides(backend, weighting):
    gram = batch_of(3, (4,), torch.float32).to(backend.device)
    want = weighting.solve(gram)
    wide = torch.zeros((8, 7, 9), device=backend.device)
    wide[::2, 1::2, ::3] = gram
    for other in (gram.mT, gram.permute(1, 2, 0).contiguous().permute(2, 0, 1),
                  arrange(gram, "sliced"), wide[::2, 1::2, ::3]):  # fmt: skip
        assert torch.equal(weighting.solve(other), want)
    expanded = gram[:1].expand(4, 3, 3)
    assert torch.equal(weighting.solve(expanded), want[:1].expand(4, 3))


def test_weighting_is_independent_of_thread_count(weighting):
    gram = batch_of(6, (700,), torch.float64)
    assert_independent_of_thread_count(lambda: weighting.solve(gram))


def test_weighting_of_one_bad_matrix_leaves_the_others(backend, weighting):
    gram = batch_of(4, (3,), torch.float64).to(backend.device)
    want = weighting.solve(gram)
    gram[1, 2, 2] = torch.nan
    got = weighting.solve(gram)
    assert bool(got[1].isnan().all())
    assert torch.equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_weighting_takes_a_matrix_symmetric_to_rounding_and_no_other(backend, weighting, dtype):
    gram = batch_of(4, (2,), dtype).to(backend.device)
    eps = torch.finfo(dtype).eps
    nearly = gram * (1 + 8 * eps * torch.ones(4, 4, device=backend.device).triu(1).to(dtype))
    even = (nearly.double() + nearly.mT.double()) / 2
    want = weighting.solve(even).to(dtype)
    torch.testing.assert_close(weighting.solve(nearly), want, rtol=4 * eps, atol=eps)
    skewed = gram.clone()
    skewed[1, 0, 3] += 0.5
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="gram must be symmetric to rounding, got"):
        weighting.solve(skewed, **by_itself)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighting_takes_inner_products_and_nothing_else(backend, weighting, dtype):
    """To rounding, also of another dtype before this one: bfloat16's products, float16's range."""
    by_itself = {} if backend.checks_values else {"check_values": True}

    def matrix(*rows: list[float]) -> torch.Tensor:
        return torch.tensor(rows, dtype=dtype, device=backend.device)

    for bad, says in (
        (matrix([1, 0], [0, -1]), "-1 at [1, 1]"),
        (matrix([1, 1.0625], [1.0625, 1]), "1.0625 at [1, 0] of squares 1 and 1"),
        (matrix([4, 0, 0], [0, 1, -2.5], [0, -2.5, 4]), "-2.5 at [2, 1] of squares 4 and 1"),
        (matrix([0, 0.5], [0.5, 1]), "0.5 at [1, 0] of squares 1 and 0"),
        (matrix([torch.nan, 0, 0], [0, 1, 2], [0, 2, 1]), "2 at [2, 1] of squares 1 and 1"),
    ):
        for gram, where in (
            (bad, ""),
            (torch.stack([torch.eye(len(bad)).to(bad), bad]), " of matrix 1"),
        ):
            words = "gram must be inner products, none beyond the root of its two squares, got "
            with pytest.raises(ValueError, match=re.escape(words + says + where) + "$"):
                weighting.solve(gram, **by_itself)
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    root = 2.0 ** math.ceil(math.log2(least) / 2)
    for good in (
        matrix([1, 1.0078125], [1.0078125, 1]),
        matrix([2.0**-14, 2.0**-8], [2.0**-8, 1]),
        matrix([0, root / 2], [root / 2, 1]),  # a square below the dtype's range
        matrix([0, least], [least, 1024 * least]),
    ):
        assert bool(weighting.solve(good, **by_itself).isfinite().all())
    for element in (torch.inf, torch.nan):
        gram = matrix([1, element], [element, 1])
        assert not bool(weighting.solve(gram, **by_itself).isfinite().all())


BAD = [
    ([[1.0]], TypeError, "gram must be a torch.Tensor, got list"),
    (torch.eye(2).long(), TypeError, "gram must have a floating-point dtype, got torch.int64"),
    (
        torch.eye(2).cfloat(),
        TypeError,
        "gram must have a floating-point dtype, got torch.complex64",
    ),
    (torch.ones(2, 3), ValueError, r"gram must have the shape \[..., n, n\] .* got \[2, 3\]"),
    (torch.ones(4), ValueError, r"gram must have the shape \[..., n, n\] .* got \[4\]"),
    (torch.tensor(1.0), ValueError, r"gram must have the shape \[..., n, n\] .* got \[\]"),
    (torch.ones(3, 0, 0), ValueError, r"gram .* n >= 1, got \[3, 0, 0\]"),
]


@pytest.mark.parametrize(("gram", "error", "message"), BAD)
def test_weighting_names_a_bad_gram(backend, weighting, gram, error, message):
    gram = gram.to(backend.device) if isinstance(gram, torch.Tensor) else gram
    with pytest.raises(error, match=message):
        weighting.solve(gram)


@pytest.mark.parametrize(
    ("preference", "error", "message"),
    [
        ([1.0, 1.0], ValueError, r"preference must have the 3 entries .* got \[1.0, 1.0\]"),
        ([1.0, -1.0, 1.0], ValueError, "preference must be nonnegative"),
        ([0.0, 0.0, 0.0], ValueError, "preference must be .* with a positive sum"),
        ([torch.nan, 1.0, 1.0], ValueError, "preference must be nonnegative and finite"),
        ([None, 1.0, 1.0], TypeError, r"preference\[0\] must be a number, got NoneType"),
        (2.0, TypeError, "preference must be a tensor or a sequence, got float"),
        (torch.ones(2), ValueError, r"preference must have the shape \[3\] .* got \[2\]"),
        (torch.ones(3).int(), TypeError, "preference must have a floating-point dtype"),
    ],
)
def test_weighting_names_a_bad_preference(backend, weighting, preference, error, message):
    if not weighting.takes_preference:
        return
    if isinstance(preference, torch.Tensor):
        preference = preference.to(backend.device)
    with pytest.raises(error, match=message):
        weighting.solve(torch.eye(3, device=backend.device), preference=preference)


@pytest.mark.parametrize("p", [[1.0, -1.0], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
def test_weighting_checks_the_values_of_a_preference(backend, weighting, p):
    if not weighting.takes_preference:
        return
    by_itself = {} if backend.checks_values else {"check_values": True}
    p = torch.tensor(p, device=backend.device)
    with pytest.raises(ValueError, match="preference must be nonnegative and finite"):
        weighting.solve(torch.eye(2, device=backend.device), preference=p, **by_itself)


def test_an_op_takes_a_preference_for_each_matrix(backend, weighting):
    """As `min_norm(ignore_zero=True)` hands it on."""
    if not weighting.takes_preference:
        return
    gram = batch_of(3, (2, 2), torch.float64).to(backend.device)
    p = torch.tensor([[[3.0, 1, 2], [1, 0, 0]], [[1, 1, 1], [0, 2, 5]]], device=backend.device)
    op, options = getattr(_ops, weighting.name), list(weighting.options)
    each = zip(gram.reshape(4, 3, 3), p.reshape(4, 3), strict=True)
    want = torch.stack([op(g, q, options, None) for g, q in each]).view(2, 2, 3)
    assert torch.equal(op(gram, p, options, None), want)
    if backend.checks_values:
        for bad in (-1.0, torch.nan, torch.inf, 0.0):
            p[0, 1, 0] = bad
            with pytest.raises(ValueError, match="preference must be nonnegative and finite"):
                op(gram, p, options, None)
    if backend.name != "default":
        with pytest.raises(ValueError, match=r"preference must have the shape"):
            op(gram[0, 0, :1, :1], p[0, 0, 0], options, None)


def test_weighting_refuses_a_gradient(backend, weighting):
    gram = torch.eye(2, device=backend.device, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"pama_ops.{weighting.name} is not differentiable"):
        weighting.solve(gram).sum().backward()


def test_weighting_passes_opcheck(weighting):
    op = getattr(_ops, weighting.name)
    vector = weighting.vector_for((), 4, torch.Generator())
    beside = torch.rand(4) if weighting.takes_preference else vector
    torch.library.opcheck(op, (batch_of(4, (2,), torch.float32), beside, weighting.options))
    torch.library.opcheck(op, (batch_of(4, (), torch.float64), vector, weighting.options))


def test_weighting_compiles_whole(weighting):
    compiled = torch.compile(weighting.solve, fullgraph=True, backend="aot_eager")
    gram = batch_of(4, (3,), torch.float32)
    assert torch.equal(compiled(gram), weighting.solve(gram))
