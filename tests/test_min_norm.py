from __future__ import annotations

from fractions import Fraction

import exactly
import hard_matrices
import pytest
import second_solver
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    assert_non_conflicting,
    assert_on_simplex,
    assert_optimal,
    gap_bound,
    unit_roundoff,
)
from rational_solver import optimum, rational, value
from strategies import (
    DTYPES,
    GRADIENT_FAMILIES,
    gradients,
    gram_matrices,
    gram_of,
    indefinite,
    normal,
    preferences,
)
from strategies import draw_gradients as draw
from strategies import matrix_on as on

import pama_ops as po

CASES = settings(max_examples=60)


def test_min_norm_of_published_values(backend):
    """TorchJD's test values for J = [[-4, 1, 1], [6, 1, 1]]."""
    got = po.min_norm(on(backend, [18, -22], [-22, 38]))
    torch.testing.assert_close(got, on(backend, 0.6, 0.4), rtol=0, atol=4 * 2.0**-53)


@CASES
@given(data=st.data())
def test_min_norm_is_on_the_simplex_and_optimal(backend, data):
    gram = data.draw(gram_matrices(backend.device))
    weights = po.min_norm(gram)
    assert weights.dtype == gram.dtype
    assert weights.is_contiguous()
    assert_on_simplex(weights)
    assert_non_conflicting(gram, weights)
    # Rounding to float32 and below may leave G indefinite; then a local minimum is what there is,
    # and its gap can exceed rounding only where rows equal to that rounding stand for each other.
    assert_optimal(gram, weights)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
@pytest.mark.parametrize("n", [16, 40])
def test_min_norm_of_many_rows_is_optimal(backend, family, n):
    if backend.name in ("emulated", "default") and n > 16:
        n = 20  # these back ends are slow; 20 lanes of a warp and 40 take the same paths
    generator = torch.Generator().manual_seed(n)
    for dtype in DTYPES[:2]:
        j = gradients(family, n, generator)
        gram = gram_of(j).to(dtype).to(backend.device)
        weights = po.min_norm(gram)
        assert_on_simplex(weights)
        assert_non_conflicting(gram, weights)
        assert_optimal(gram, weights)


def test_min_norm_of_more_rows_than_lanes_is_optimal(backend, many_rows):
    gram = gram_of(draw("common", many_rows)).to(backend.device)
    weights = po.min_norm(torch.stack([gram, 2 * gram]))
    assert_optimal(gram, weights[0])
    assert torch.equal(weights[0], weights[1])


def test_min_norm_of_256_rows_is_optimal():
    generator = torch.Generator().manual_seed(0)
    for family in ("gaussian", "rank-deficient", "duplicated", "near-stationary 1e-6"):
        gram = gram_of(gradients(family, 256, generator))
        assert_optimal(gram, po.min_norm(gram))


@settings(max_examples=40)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_min_norm_is_the_rational_optimum_on_integers(backend, rows):
    j = torch.tensor(rows, dtype=torch.float64)
    gram = j @ j.mT  # exact
    weights = po.min_norm(gram.to(backend.device)).cpu()
    exact = rational(gram.tolist())
    best, got = optimum(exact), value(exact, [Fraction(x) for x in weights.tolist()])
    if best == 0:  # f − f* <= 2 gap
        assert float(got) <= 2 * gap_bound(gram) * float(gram.diagonal().max())
    else:
        assert float((got - best) / best) <= 1e-9
    for i in range(len(rows)):
        for k in range(i):
            if rows[i] == rows[k]:
                assert weights[i] == weights[k]


@pytest.mark.parametrize(
    ("family", "relative"),
    [
        ("gaussian", 1e-9),
        ("condition 1e6", 1e-9),
        ("condition 1e10", 1e-9),
        ("condition 1e12", 1e-6),
        ("twelve decades", 1e-9),
        ("near-stationary 1e-3", 1e-9),
    ],
)
@pytest.mark.parametrize("n", [2, 4, 7, 12])
def test_min_norm_is_accurate_where_the_optimum_is_small(backend, family, relative, n):
    generator = torch.Generator().manual_seed(n)
    for _ in range(3):
        gram = gram_of(gradients(family, n, generator))
        weights = po.min_norm(gram.to(backend.device)).tolist()
        exact = rational(gram.tolist())
        best = optimum(exact, [i for i in range(n) if weights[i] > 0])
        got = value(exact, [Fraction(x) for x in weights])
        assert float((got - best) / best) <= relative


@pytest.mark.parametrize("apart", [1e-6, 1e-10, 1e-13])
def test_min_norm_tells_rows_apart_that_are_nearly_equal(backend, apart):
    """By symmetry the weights are equal, but only a method that sees slopes differ finds them."""
    got = po.min_norm(on(backend, [1, 1 - apart], [1 - apart, 1]))
    # Each of the three differences of elements of G is rounded by u64 at most, relative to `apart`.
    torch.testing.assert_close(got, on(backend, 0.5, 0.5), rtol=4 * 2.0**-53 / apart, atol=0)


@settings(max_examples=15)
@given(n=st.integers(2, 12), d=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_min_norm_agrees_with_cvxpy(backend, n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    j = normal((n, d), generator=generator, dtype=torch.float64)
    gram = gram_of(j)
    weights = po.min_norm(gram.to(backend.device)).cpu()
    slack = 2 * gap_bound(gram) * float(gram.diagonal().max())
    second_solver.assert_no_longer(j, weights, second_solver.shortest(j), slack)


@CASES
@given(data=st.data())
def test_min_norm_with_a_preference_rises_in_its_proportion(backend, data):
    families = ["gaussian", "common", "rank-deficient", "near-stationary 1e-3"]
    gram = data.draw(
        gram_matrices(backend.device, families=families, dtypes=[torch.float64], max_rows=7)
    )
    n = gram.shape[-1]
    p = torch.tensor(data.draw(preferences(n)), dtype=torch.float64)
    weights = po.min_norm(gram, preference=p.to(backend.device)).cpu()
    assert_on_simplex(weights)
    assert bool((weights[p == 0] == 0).all())
    # The weights solve the problem of the rows divided by p, so that <g_i, x> >= p_i · constant,
    # with equality on the support.
    used = p > 0
    q = p[used] / p.max()
    divided = gram.cpu()[used][:, used] / (q[:, None] * q)
    assert_optimal(divided, weights[used] * q / (weights[used] * q).sum())


def test_min_norm_with_a_preference_on_orthonormal_gradients_is_the_preference(backend):
    got = po.min_norm(on(backend, [1, 0], [0, 1]), preference=[0.9, 0.1])
    torch.testing.assert_close(got, on(backend, 0.9, 0.1), rtol=4 * 2.0**-53, atol=0)


@pytest.mark.parametrize("family", ["gaussian", "duplicated", "near-stationary 1e-8"])
def test_min_norm_with_a_uniform_preference_is_that_without(backend, family):
    gram = gram_of(gradients(family, 7, torch.Generator().manual_seed(3))).to(backend.device)
    assert torch.equal(po.min_norm(gram, preference=[1 / 7] * 7), po.min_norm(gram))


def test_min_norm_drops_objectives_without_preference(backend):
    gram = on(backend, [1, torch.nan, 0], [torch.nan, 5, 1], [0, 1, 3])
    got = po.min_norm(gram, preference=[2.0, 0.0, 2.0])
    torch.testing.assert_close(got, on(backend, 0.75, 0, 0.25), rtol=4 * 2.0**-53, atol=0)
    assert bool(po.min_norm(gram, preference=[1.0, 1e-9, 1.0]).isnan().all())
    # A preference too small to divide by is one of 0.
    eye = torch.eye(3, dtype=torch.float64, device=backend.device)
    assert po.min_norm(eye, preference=[1.0, 1e-200, 1.0]).tolist() == [0.5, 0.0, 0.5]


def test_min_norm_gives_zero_gradients_all_the_weight(backend):
    gram = torch.diag(on(backend, 1, 0, 0, 2))
    assert po.min_norm(gram).tolist() == [0, 0.5, 0.5, 0]
    assert po.min_norm(gram, preference=[1, 1, 3, 1]).tolist() == [0, 0.25, 0.75, 0]
    zero = torch.zeros((4, 4), dtype=torch.float64, device=backend.device)
    assert po.min_norm(zero).tolist() == [0.25] * 4
    assert po.min_norm(zero, preference=[1.0, 0.0, 3.0, 4.0]).tolist() == [0.125, 0, 0.375, 0.5]


@settings(max_examples=30)
@given(data=st.data())
def test_min_norm_shares_evenly_among_equal_rows(backend, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    distinct, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    j = normal((distinct, 6), generator=generator, dtype=torch.float64)
    which = torch.randint(0, distinct, (n,), generator=generator)
    dtype = data.draw(st.sampled_from(DTYPES))
    gram = gram_of(j)[which][:, which].to(dtype)
    weights = po.min_norm(gram.to(backend.device)).cpu()
    for i in range(n):
        assert bool((weights[which == which[i]] == weights[i]).all())
    # Rows that differ by a rounding or two count as equal.
    noise = 1 + unit_roundoff(dtype) * normal((n, n), generator=generator, dtype=torch.float64)
    noise = noise.triu() + noise.triu(1).mT
    weights = po.min_norm((gram.double() * noise.clamp(0, 1)).to(dtype).to(backend.device)).cpu()
    close = 8 * unit_roundoff(dtype)
    if dtype in (torch.float64, torch.float32) and distinct == 1:
        torch.testing.assert_close(weights.double(), weights.new_full((n,), 1 / n).double(),
                                   rtol=close, atol=0)  # fmt: skip


@settings(max_examples=30)
@given(data=st.data())
def test_min_norm_is_permutation_equivariant(backend, data):
    families = ["gaussian", "common", "condition 1e6", "twelve decades", "zero rows"]
    gram = data.draw(
        gram_matrices(backend.device, families=families, dtypes=[torch.float64], max_rows=8)
    )
    order = torch.tensor(data.draw(st.permutations(range(gram.shape[-1]))), device=backend.device)
    weights, permuted = po.min_norm(gram), po.min_norm(gram[order][:, order])
    apart = (weights[order] - permuted).cpu()
    # Two points of gaps at most the bound are this near in the metric of G: ‖x − x*‖² <= 2 gap.
    g = gram[order][:, order].cpu()
    bound = 4 * 2 * gap_bound(gram) * g.diagonal().max()
    assert float(exactly.dot(apart, exactly.times(g, apart))) <= bound
    # Where the minimiser is unique, so are the weights, as far as the condition lets one tell.
    condition = exactly.condition(g)
    if condition < 1e8:
        assert float(apart.abs().max()) <= 8 * len(g) * 2.0**-53 * condition


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_min_norm_is_scale_free(backend, family):
    generator = torch.Generator().manual_seed(5)
    gram = gram_of(gradients(family, 6, generator)).to(backend.device)
    weights = po.min_norm(gram)
    for exponent in (-500, -100, 100, 500):  # a power of two is exact
        assert torch.equal(po.min_norm(gram * 2.0**exponent), weights)
    for scale in (1e-30, 1e30):  # rounds G, so the minimiser too
        scaled = po.min_norm(gram * scale)
        assert_optimal(gram, scaled)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_min_norm_of_what_is_not_finite_is_nan(backend, bad, n):
    for i, j in {(0, 0), (n - 1, 0), (n - 1, n - 1)}:
        gram = torch.eye(n, dtype=torch.float64, device=backend.device)
        gram[i, j] = gram[j, i] = bad
        zero = gram * (1 - torch.eye(n, device=backend.device)) if i != j else gram
        for g in (gram, zero.float() if n > 1 else gram):
            assert bool(po.min_norm(g).isnan().all())


def test_min_norm_ends_on_matrices_that_are_no_gram_matrices(backend):
    generator = torch.Generator().manual_seed(0)
    for n in (2, 5, 9):
        for _ in range(20):
            power = torch.randint(-150, 150, (1,), generator=generator).double()
            g = indefinite(n, generator) * 10.0**power
            assert_on_simplex(po.min_norm(g.to(backend.device)))


def test_min_norm_of_one_objective_is_one(backend):
    for x in (3.0, 0.0, 5e-324, 1e308):
        assert po.min_norm(on(backend, [x])).tolist() == [1.0]


@pytest.mark.parametrize("origin", hard_matrices.ORIGINS)
@pytest.mark.parametrize("family", hard_matrices.FAMILIES)
def test_min_norm_is_optimal_on_hard_matrices(backend, family, origin):
    for seed in range(8 if backend.name == "cpu" else 3):
        gram = hard_matrices.draw_matrix(family, origin, 2 + seed % 5, seed)
        weights = po.min_norm(gram.to(backend.device))
        assert_on_simplex(weights.cpu())
        assert hard_matrices.gap_of_min_norm(gram, weights) <= gap_bound(gram)


def test_min_norm_settles_rows_that_are_nearly_collinear(backend):
    """The step that lets the last row in leaves slopes of 1e-9 on the corral."""
    gram = on(
        backend,
        [5.3203653702832314, 5.3203659123869267, -5.3203654673940663, -5.3203648781600243],
        [5.3203659123869267, 5.3203664544907001, -5.3203660094977465, -5.3203654202636654],
        [-5.3203654673940663, -5.3203660094977465, 5.3203655645049333, 5.3203649752708575],
        [-5.3203648781600243, -5.3203654202636654, 5.3203649752708575, 5.3203643860369327],
    )
    gap = hard_matrices.gap_of_min_norm(gram, po.min_norm(gram))
    assert gap <= gap_bound(gram)


def test_gradients_of_zero_can_be_left_out(backend):
    gram = on(backend, [4, 0, 2], [0, 0, 0], [2, 0, 9])
    batch = torch.stack([gram, torch.zeros_like(gram), gram.flip(0, 1)])
    got = po.min_norm(batch, ignore_zero=True)
    both = po.min_norm(gram[::2, ::2])
    assert torch.equal(got[0], on(backend, both[0], 0, both[1]))
    assert torch.equal(got[1], po.min_norm(batch[1]))
    assert torch.equal(got[2], got[0].flip(0))
    for p in ([1.0, 2.0, 3.0], [0.0, 1.0, 0.0]):
        want = po.min_norm(gram, preference=[p[0], 0.0, p[2]] if p[0] else p)
        assert torch.equal(po.min_norm(gram, preference=p, ignore_zero=True), want)
    gram[0, 0] = torch.nan
    assert bool(po.min_norm(gram, ignore_zero=True).isnan().all())
    with pytest.raises(TypeError, match="ignore_zero must be"):
        po.min_norm(gram, ignore_zero=1)
