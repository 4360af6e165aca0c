"""nash_mtl, fairgrad: held to their equation, to cvxpy, and to the definition where none holds."""

from __future__ import annotations

import itertools
import math
import operator
from fractions import Fraction

import exactly
import numpy as np
import pytest
import second_solver
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_non_conflicting, is_null_combination, unit_roundoff
from rational_solver import projection, rational, solve
from strategies import DTYPES, GRADIENT_FAMILIES, gram_matrices, gram_of, indefinite
from strategies import draw_gradients as draw
from strategies import matrix_on as on

import pama_ops as po

# Far enough from Pareto stationary, and from what counts as such.
SOLVABLE = [f for f in GRADIENT_FAMILIES if not f.startswith(("near-stationary", "integers"))]


def assert_solves(gram: torch.Tensor, weights: torch.Tensor, beta: float = 1.0) -> None:
    """w_i (Gw)_i = w_i^(1−β) for each nonzero gradient, to the rounding of Gw and of w itself.

    With v_i = w_i ‖g_i‖, each of n terms of v_i (Ĝv)_i is at most v_i v_j: their sum is rounded by
    n u64 v_i Σv, and roundings of w by u of G's dtype move it by 2 u v_i Σv. A matrix rounded to
    that dtype may have off-diagonal cosines beyond 1 by 2 u. Powers of the scale of G but the root
    have an exponent rounded by u64 of itself. A weight below the dtype's normal numbers is rounded
    by the least of its numbers, which is asked to lie on the other side of the solution.
    """
    g, w = gram.double().cpu(), weights.double().cpu()
    norm = g.diagonal().clamp(min=0).sqrt()
    used = norm > 0
    assert bool((w[~used] == 0).all())
    if not bool(used.any()):
        return
    normal = torch.finfo(gram.dtype).smallest_normal
    moved = torch.where(used & (w < normal), normal * torch.finfo(gram.dtype).eps, 0.0)
    slope, sums = exactly.times(g, w), exactly.times(g.abs(), moved)
    u = (len(g) + 16) * 2.0**-53 + 8 * unit_roundoff(gram.dtype)
    power = 0 if beta == 1 else abs(math.log2(float(g.diagonal().max())))
    for sign in (-1, 1):
        near = (w + sign * moved)[used]
        v, share = near * norm[used], near ** (1 - beta)
        residual = near * slope[used] - share
        bound = u * (v * exactly.dot(w, norm) + (1 + beta) * share) + near * sums[used]
        bound = bound + 2.0**-53 * power * (1 + beta) * share
        exact = moved[used] == 0
        assert bool((near[exact] > 0).all()), w
        held = torch.where(exact, residual.abs(), -sign * residual) <= bound
        assert bool((held | (near <= 0)).all()), residual / bound


@settings(max_examples=80)
@given(data=st.data())
def test_nash_mtl_solves_its_equation_or_is_stationary(backend, data):
    gram = data.draw(gram_matrices(backend.device, dtypes=DTYPES[:2]))
    weights = po.nash_mtl(gram)
    assert bool((weights >= 0).all())
    # Where gradients are stationary, x is the root of what rounding leaves of its square.
    if not is_null_combination(gram.cpu(), weights.cpu()):
        assert_non_conflicting(gram, weights)
        assert_solves(gram, weights)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_nash_mtl_of_many_rows_solves_its_equation_or_is_stationary(backend, family):
    n = 40 if backend.name == "cpu" else 12
    gram = gram_of(draw(family, n, n)).to(backend.device)
    weights = po.nash_mtl(gram)
    assert_non_conflicting(gram, weights)
    if not is_null_combination(gram.cpu(), weights.cpu()):
        assert_solves(gram, weights)


def test_nash_mtl_of_more_rows_than_lanes_solves_its_equation(backend, many_rows):
    gram = gram_of(draw("common", many_rows)).to(backend.device)
    weights = po.nash_mtl(torch.stack([gram, 4 * gram]))
    assert_solves(gram, weights[0])
    assert torch.equal(weights[0], 2 * weights[1])


def test_nash_mtl_of_256_stationary_rows():
    gram = gram_of(draw("opposite", 256))
    weights = po.nash_mtl(gram)
    assert is_null_combination(gram, weights)
    assert bool((weights > 0).all())


@pytest.mark.parametrize("family", SOLVABLE)
def test_nash_mtl_agrees_with_cvxpy(backend, family):
    """The minimum of ½‖Jᵀw‖² − Σ log w."""
    for n in (2, 5, 8):
        j = draw(family, n, n + 1)
        j = j[(j != 0).any(1)]
        gram = gram_of(j)
        weights = po.nash_mtl(gram.to(backend.device)).cpu()
        if is_null_combination(gram, weights):
            continue
        # For unit gradients, whose weights are those times the norms: Clarabel needs the scale.
        norm = exactly.norm(j)
        assert_as_good_as_cvxpy(j / norm[:, None], weights * norm, 0.0)


def assert_as_good_as_cvxpy(j: torch.Tensor, ours: torch.Tensor, power: float) -> None:
    """f(w) = ½‖Jᵀw‖² − Σ w^power / power is no more than that of a second solver's w, whatever w.

    And x = Jᵀw is as near as it must be where ours is the minimum: f(w') − f(w) >= ½‖x' − x‖². For
    power 0 the sum is of logarithms, which are self-concordant: with t the distance relative to
    ours, f(w') − f(w) >= t − log(1 + t) (Boyd and Vandenberghe, Convex Optimization, §9.6.2).
    """
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    w = cvxpy.Variable(len(j))
    gains = cvxpy.sum(cvxpy.power(w, power)) / power if power else cvxpy.sum(cvxpy.log(w))
    square = cvxpy.sum_squares(j.numpy().T @ w)
    theirs = second_solver.answer(w, cvxpy.Minimize(square / 2 - gains), []).clamp(min=1e-300)

    def terms(w: torch.Tensor) -> list[float]:
        x = exactly.times(j.mT, w)
        gains = [-(y**power) / power if power else -math.log(y) for y in w.tolist()]
        return [float(exactly.dot(x, x)) / 2, *gains]

    # Each term is right to 4 u64 of itself, and the minimum is flat to roundings of its w.
    slack = 8 * 2.0**-53 * math.fsum(map(abs, terms(theirs) + terms(ours)))
    behind = math.fsum(terms(theirs) + [-y for y in terms(ours)])
    assert behind >= -slack, behind
    apart = exactly.times(j.mT, theirs - ours)
    assert float(exactly.dot(apart, apart)) <= 2 * (behind + slack)
    if not power:
        t = math.hypot(float(exactly.norm(apart)), float(exactly.norm(theirs / ours - 1)))
        assert t - math.log1p(t) <= behind + slack
    near = second_solver.NEAR * max(1.0, *map(abs, terms(ours)))
    assert behind <= near, "the second solver has no answer"


def test_nash_mtl_of_published_gradients(backend):
    """J = [[-4, 1, 1], [6, 1, 1]]: of two gradients, v_1 = v_2 = 1 / √(1 + cos)."""
    gram = on(backend, [18, -22], [-22, 38])
    cosine = -22 / math.sqrt(18 * 38)
    want = [1 / math.sqrt((1 + cosine) * square) for square in (18, 38)]
    # 1 + cos cancels 2.6 bits.
    torch.testing.assert_close(po.nash_mtl(gram), on(backend, *want), rtol=64 * 2.0**-53, atol=0)


def test_nash_mtl_gives_zero_gradients_no_weight(backend):
    gram = torch.diag(on(backend, 4, 0, 1))
    assert po.nash_mtl(gram).tolist() == [0.5, 0, 1]
    assert po.nash_mtl(torch.zeros_like(gram)).tolist() == [0, 0, 0]
    # Stationary without the zero gradient, which then has no part in S.
    opposite = on(backend, [1, 0, -1], [0, 0, 0], [-1, 0, 1])
    assert po.nash_mtl(opposite).tolist() == [0.5, 0, 0.5]


# Integer gradients, their S, and the weights in closed form.
STATIONARY = [
    ([[1], [-2]], [2 / 3, 1 / 3]),
    ([[1, 0], [-1, 0], [0, 1]], [1 / 2, 1 / 2, 0]),
    ([[1, 0], [-1, 0], [1, 3]], [1 / 2, 1 / 2, 0]),
    ([[1, 0], [-1, 0], [0, 2], [0, -1]], [1 / 4, 1 / 4, 1 / 6, 1 / 3]),
    ([[2, 0], [0, 1], [-2, -1]], [1 / 3, 1 / 3, 1 / 3]),
    ([[1], [-1], [-1]], [1 / 2, 1 / 4, 1 / 4]),
    ([[1e6], [-1], [-1]], None),
    ([[1, 1], [1, -1], [-1, 0], [-1, 0], [0, 5], [0, -1]], None),
]


@pytest.mark.parametrize(("rows", "want"), STATIONARY)
def test_nash_mtl_of_stationary_gradients_is_the_largest_product(backend, rows, want):
    j = torch.tensor(rows, dtype=torch.float64)
    weights = po.nash_mtl(gram_of(j).to(backend.device)).cpu()
    norm = exactly.norm(j)
    assert abs(float(exactly.total(weights)) - 1) <= 2.0**-50
    combined = exactly.norm(exactly.times(j.T, weights))
    assert float(combined) <= 2.0**-48 * float(exactly.dot(weights, norm))
    if want is not None:
        np.testing.assert_allclose(weights.numpy(), want, rtol=1e-12, atol=1e-12)
        return
    # Stationarity of Σ_S log w: 1/w is in the span of 1 and the columns of J, over S.
    s = weights > 0
    assert bool(s.all())
    columns = rational([weights.tolist(), *(j.T.tolist())])
    span = [columns[0], *([w * x for w, x in zip(columns[0], y, strict=True)] for y in columns[1:])]
    fit = projection(span, [Fraction(1)] * len(j))
    assert max(abs(float(x - 1)) for x in fit) <= 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_nash_mtl_of_stationary_gradients_has_the_largest_support(backend, seed):
    """S in rational arithmetic: of those i for which −g_i is in the cone of the others, which by
    Carathéodory are independent ones of them."""
    generator = torch.Generator().manual_seed(seed)
    j = torch.randint(-2, 3, (7, 3), generator=generator).double()
    j = torch.cat([j, -j[:1]])
    j = j[(j != 0).any(1)]
    weights = po.nash_mtl(gram_of(j).to(backend.device)).cpu()
    rows = rational(j.tolist())
    for i in range(len(j)):
        assert in_the_support(rows, i) == (float(weights[i]) > 1e-6)


def in_the_support(rows: list[list[Fraction]], i: int) -> bool:
    others = [row for k, row in enumerate(rows) if k != i]
    for size in range(1, len(rows[0]) + 1):
        for cone in itertools.combinations(others, size):
            gram = [[sum(map(operator.mul, x, y)) for y in cone] for x in cone]
            shares = solve(gram, [-sum(map(operator.mul, x, rows[i])) for x in cone])
            if shares is None or min(shares) < 0:
                continue
            total = [sum(map(operator.mul, shares, column)) for column in zip(*cone, strict=True)]
            if all(x + y == 0 for x, y in zip(total, rows[i], strict=True)):
                return True
    return False


@pytest.mark.parametrize("family", ["gaussian", "condition 1e6", "twelve decades", "zero rows"])
def test_nash_mtl_scales_by_the_inverse_root(backend, family):
    gram = gram_of(draw(family, 6, 5)).to(backend.device)
    weights = po.nash_mtl(gram)
    for exponent in (-500, -100, 100, 500):  # a power of four is exact
        assert torch.equal(po.nash_mtl(gram * 2.0**exponent) * 2.0 ** (exponent // 2), weights)
    for scale in (1e-30, 1e30):  # rounds G, and so the solution
        assert_solves(gram * scale, po.nash_mtl(gram * scale))


def test_nash_mtl_of_longer_gradients_is_the_same_combination(backend):
    j = draw("gaussian", 5)
    factor = torch.tensor([1e-6, 1.0, 1e3, 2.0, 1e-3], dtype=torch.float64)
    plain = po.nash_mtl(gram_of(j).to(backend.device)).cpu()
    longer = po.nash_mtl(gram_of(j * factor[:, None]).to(backend.device)).cpu()
    condition = exactly.condition(gram_of(j))
    torch.testing.assert_close(longer * factor, plain, rtol=64 * 2.0**-53 * condition, atol=0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::6])
@pytest.mark.parametrize("family", ["gaussian", "opposite", "zero rows"])
def test_nash_mtl_is_permutation_equivariant(backend, family, order):
    gram = gram_of(draw(family, 4, 2)).to(backend.device)
    order = torch.tensor(order, device=backend.device)
    torch.testing.assert_close(
        po.nash_mtl(gram[order][:, order]), po.nash_mtl(gram)[order], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nash_mtl_of_what_is_not_finite_is_nan(backend, bad):
    for n, i, k in [(1, 0, 0), (3, 1, 1), (3, 2, 0)]:
        gram = torch.eye(n, dtype=torch.float64, device=backend.device)
        gram[i, k] = gram[k, i] = bad
        assert bool(po.nash_mtl(gram).isnan().all())


def test_nash_mtl_ends_on_matrices_that_are_no_gram_matrices(backend):
    generator = torch.Generator().manual_seed(0)
    for n in (2, 5, 9):
        for _ in range(10):
            power = torch.randint(-150, 150, (1,), generator=generator).double()
            g = indefinite(n, generator) * 10.0**power
            assert po.nash_mtl(g.to(backend.device)).shape == (n,)


def test_nash_mtl_of_one_objective_is_the_inverse_norm(backend):
    for x in (4.0, 2.0**-1000, 2.0**1000):
        assert po.nash_mtl(on(backend, [x])).tolist() == [1 / math.sqrt(x)]


# --- fairgrad -----------------------------------------------------------------------------------

ALPHAS = [0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0]


@settings(max_examples=120)
@given(data=st.data())
def test_fairgrad_solves_its_equation_or_is_stationary(backend, data):
    gram = data.draw(gram_matrices(backend.device, dtypes=DTYPES[:2]))
    assert_fair(gram, data.draw(st.sampled_from(ALPHAS)))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_fairgrad_of_many_rows_solves_its_equation_or_is_stationary(backend, family, alpha):
    for n in (3, 8, 16 if backend.name == "cpu" else 12):
        assert_fair(gram_of(draw(family, n, n)).to(backend.device), alpha)


def test_fairgrad_of_more_rows_than_lanes_solves_its_equation(backend, many_rows):
    assert_fair(gram_of(draw("common", many_rows)).to(backend.device), 4.0)


def assert_fair(gram: torch.Tensor, alpha: float) -> None:
    weights = po.fairgrad(gram, alpha=alpha)
    assert bool((weights >= 0).all())
    if not is_null_combination(gram.cpu(), weights.cpu()):
        assert_non_conflicting(gram, weights)
        assert_solves(gram, weights, 1 / alpha)


def test_fairgrad_of_gradients_over_nine_decades_leaves_none_out(backend):
    """w_i = s_i^(−10) of weights from 1e17 down to 1e-51: none is 0."""
    j = (
        torch.tensor([[1, 0, 3, 0], [1, 2, 2, 0], [0, 1, 0, 1], [0, 1, -1, 3]], dtype=torch.float64)
        * torch.tensor([2.0**-22, 2.0**-9, 2.0**-32, 2.0**-16], dtype=torch.float64)[:, None]
    )
    for rows in (j, j[[1, 2, 3]], j.flip(0)):
        for alpha in (4.0, 10.0):
            gram = gram_of(rows).to(backend.device)
            weights = po.fairgrad(gram, alpha=alpha)
            assert_non_conflicting(gram, weights)
            assert_solves(gram, weights, 1 / alpha)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 4.0])
@pytest.mark.parametrize(
    "family", ["gaussian", "rank-deficient common", "duplicated", "zero rows", "condition 1e6"]
)
def test_fairgrad_agrees_with_cvxpy(backend, family, alpha):
    """The minimum of ½‖Jᵀw‖² − Σ φ(w), φ' = w^(−1/α), is convex for every α."""
    for n in (2, 5, 8):
        j = draw(family, n, n + 1)
        j = j[(j != 0).any(1)]
        gram = gram_of(j)
        weights = po.fairgrad(gram.to(backend.device), alpha=alpha).cpu()
        if is_null_combination(gram, weights):  # for alpha <= 1 there is no minimum
            continue
        assert_as_good_as_cvxpy(j, weights, 1 - 1 / alpha)


@pytest.mark.parametrize("family", ["gaussian", "twelve decades", "opposite", "zero rows"])
def test_fairgrad_of_one_is_nash_mtl(backend, family):
    gram = gram_of(draw(family, 6, 5)).to(backend.device)
    assert torch.equal(po.fairgrad(gram, alpha=1.0), po.nash_mtl(gram))


@pytest.mark.parametrize("alpha", [0.25, 2.0, 8.0])
def test_fairgrad_of_orthogonal_gradients(backend, alpha):
    """s w = w^(−1/α)."""
    squares = on(backend, 9, 1, 0.25)
    got = po.fairgrad(torch.diag(squares), alpha=alpha)
    power = -alpha / (1 + alpha)
    torch.testing.assert_close(got, squares**power, rtol=64 * 2.0**-53, atol=0)
    for scale in (1e-30, 1e30):
        scaled = po.fairgrad(torch.diag(squares) * scale, alpha=alpha)
        # The power rounds its exponent, which log 1e30 magnifies.
        torch.testing.assert_close(scaled, got * scale**power, rtol=256 * 2.0**-53, atol=0)


@pytest.mark.parametrize("alpha", [0.25, 2.0, 8.0])
def test_fairgrad_of_stationary_gradients_is_the_fairest_zero(backend, alpha):
    """Of (1, −1, −1): w = (½, ¼, ¼) by symmetry. Of (1, −1, 3, −3): by its optimality condition."""
    j = on(backend, [1], [-1], [-1])
    weights = po.fairgrad(gram_of(j).to(backend.device), alpha=alpha)
    torch.testing.assert_close(weights, on(backend, 0.5, 0.25, 0.25), rtol=1e-12, atol=0)
    j = torch.tensor([[1.0], [-1.0], [3.0], [-3.0]], dtype=torch.float64)
    weights = po.fairgrad(gram_of(j).to(backend.device), alpha=alpha).cpu()
    assert abs(float(exactly.total(weights)) - 1) <= 2.0**-50
    assert float(exactly.times(j.T, weights).abs()) <= 2.0**-48
    # w^(−1/α) is in the span of 1 and J.
    slopes = rational([[(w / max(weights.tolist())) ** (-1 / alpha) for w in weights.tolist()]])[0]
    fit = projection(rational([[1] * 4, j[:, 0].tolist()]), slopes)
    assert max(abs(float(x / y - 1)) for x, y in zip(fit, slopes, strict=True)) <= 1e-12


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_fairgrad_of_what_is_not_finite_is_nan(backend, bad):
    gram = torch.diag(on(backend, 1, bad, 2))
    assert bool(po.fairgrad(gram, alpha=2.0).isnan().all())


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_fairgrad_names_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        po.fairgrad(torch.eye(2), alpha=alpha)


def test_fairgrad_ends_on_matrices_that_are_no_gram_matrices(backend):
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.1, 10.0):
        for _ in range(10):
            g = indefinite(5, generator).to(backend.device)
            assert po.fairgrad(g, alpha=alpha).shape == (5,)
