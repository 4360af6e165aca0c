"""dualproj, upgrad and cagrad: held to their optimality conditions and to cvxpy."""

from __future__ import annotations

import exactly
import hard_matrices
import pytest
import second_solver
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_cone_optimal, assert_non_conflicting, unit_roundoff
from strategies import (
    DTYPES,
    GRADIENT_FAMILIES,
    draw_gradients,
    gradients,
    gram_matrices,
    gram_of,
    indefinite,
    normal,
    preferences,
)
from strategies import matrix_on as on

import pama_ops as po

U = 2.0**-53


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normal((n, d), generator=generator, dtype=torch.float64)


def test_cone_weightings_of_published_values(backend):
    """TorchJD's test values for J = [[-4, 1, 1], [6, 1, 1]], without its regularisation."""
    gram = on(backend, [18, -22], [-22, 38])
    close = {"rtol": 8 * 2.0**-53, "atol": 0}
    torch.testing.assert_close(po.dualproj(gram), on(backend, 11 / 18, 1 / 2), **close)
    torch.testing.assert_close(po.upgrad(gram), on(backend, 10 / 9, 15 / 19), **close)
    # c ‖g_0‖ = ½ √3, and g_w = g_1 = (−4, 1, 1).
    want = on(backend, 0.5 + 0.5 * (3 / 18) ** 0.5, 0.5)
    torch.testing.assert_close(po.cagrad(gram), want, **close)


@settings(max_examples=60)
@given(data=st.data())
def test_dualproj_satisfies_its_optimality_conditions(backend, data):
    gram = data.draw(gram_matrices(backend.device))
    n = gram.shape[-1]
    p = torch.tensor(data.draw(preferences(n)), dtype=torch.float64)
    weights = po.dualproj(gram, preference=p.to(backend.device))
    assert_non_conflicting(gram, weights)
    assert_cone_optimal(gram, weights, p / p.sum())


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_dualproj_from_a_single_gradient_conflicts_with_none(backend, family):
    for n, seeds in ((2, 4), (5, 4), (12, 1)):
        for seed in range(seeds):
            gram = gram_of(draw_gradients(family, n, seed)).to(backend.device)
            for lone in torch.eye(n, dtype=torch.float64)[:5]:
                weights = po.dualproj(gram, preference=lone.to(backend.device))
                assert_cone_optimal(gram, weights, lone)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_cone_weightings_of_many_rows_conflict_with_none(backend, family):
    n = 40 if backend.name == "cpu" else 12
    generator = torch.Generator().manual_seed(n)
    for dtype in DTYPES[:2]:
        gram = gram_of(gradients(family, n, generator)).to(dtype).to(backend.device)
        weights = po.dualproj(gram)
        assert_non_conflicting(gram, weights)
        assert_cone_optimal(gram, weights, torch.full((n,), 1 / n, dtype=torch.float64))
        if n > 12 and dtype == torch.float64:
            assert_non_conflicting(gram, po.upgrad(gram))


@settings(max_examples=20)
@given(data=st.data())
def test_upgrad_is_the_sum_of_its_projections(backend, data):
    gram = data.draw(gram_matrices(backend.device, max_rows=6, dtypes=DTYPES[:2]))
    n = gram.shape[-1]
    p = torch.tensor(data.draw(preferences(n)), dtype=torch.float64)
    weights = po.upgrad(gram, preference=p.to(backend.device))
    assert_sum_of_projections(gram, weights, p / p.sum())


def assert_sum_of_projections(gram: torch.Tensor, weights: torch.Tensor, p: torch.Tensor) -> None:
    """Σ_i p_i dualproj(e_i), up to rounding."""
    n = len(p)
    parts = []
    for i in range(n):
        if p[i] > 0:
            unit = torch.eye(n, dtype=torch.float64)[i]
            part = po.dualproj(gram, preference=unit.to(gram.device))
            parts.append(p[i] * part.cpu().double())
    apart = weights.cpu().double() - sum(parts)
    g = gram.cpu().double()
    # ‖x − x*‖² <= f − f* for each part, which is of the size of rounding.
    size = sum(float(g.diagonal().clamp(min=0).sqrt() @ part.abs()) for part in parts) ** 2
    u = 64 * n**2 * 2.0**-53 + 8 * n * unit_roundoff(gram.dtype) * (gram.dtype != torch.float64)
    assert float(apart @ g @ apart) <= u * size


@pytest.mark.parametrize("seed", range(6))
def test_cone_weightings_agree_with_cvxpy(backend, seed):
    """dualproj is no longer than what cvxpy finds, and upgrad the sum of such projections."""
    n, d = [(2, 3), (3, 2), (5, 8), (6, 4), (8, 3), (10, 20)][seed]
    j = gaussian(n, d, seed)
    gram = gram_of(j).to(backend.device)
    # A slope is off by (16 + 2 (n + 4)) u64 of norms, see assert_cone_optimal; a square by as much.
    rounding = (16 + 2 * (n + 4)) * 2.0**-53
    p = torch.arange(1.0, n + 1, dtype=torch.float64)
    share = p / p.sum()
    theirs, missed = torch.zeros(n).double(), 0.0
    for lower in (share, *share.diag()):
        ours = po.dualproj(gram, preference=lower.to(backend.device)).cpu() * lower.sum()
        found = second_solver.shortest(j, lower)
        size = float(exactly.dot(exactly.norm(j), ours.abs())) ** 2
        second_solver.assert_no_longer(j, ours, found, 2 * rounding * size)
        if lower is not share:
            theirs += found
            x, other = exactly.times(j.T, ours), exactly.times(j.T, found)
            behind = float(exactly.dot(other, other) - exactly.dot(x, x))
            missed += max(behind + 2 * rounding * size, 0.0) ** 0.5
    got = po.upgrad(gram, preference=p.to(backend.device)).cpu()
    size = float(exactly.dot(exactly.norm(j), got.abs()))
    apart = exactly.norm(exactly.times(j.T, got - theirs))
    assert float(apart) <= missed + n * (2 * rounding) ** 0.5 * size


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 1.5])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (3, 2), (5, 8), (8, 4), (10, 20)])
def test_cagrad_agrees_with_cvxpy(backend, c, n, d):
    """No direction of the ball that cvxpy finds has a greater least slope."""
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    for seed in range(2):
        j = gaussian(n, d, 10 * n + seed)
        gram = gram_of(j)
        x = exactly.times(j.T, po.cagrad(gram.to(backend.device), c=c).cpu())
        mean = exactly.times(j.T, torch.full((n,), 1 / n, dtype=torch.float64))
        radius = c * float(exactly.norm(mean))
        assert float(exactly.norm(x - mean)) <= radius * (1 + 1e-9)
        direction = cvxpy.Variable(d)
        worst = cvxpy.min(j.numpy() @ direction)
        ball = cvxpy.norm(direction - mean.numpy()) <= radius
        theirs = second_solver.answer(direction, cvxpy.Maximize(worst), [ball]) - mean
        theirs *= min(1.0, radius / float(exactly.norm(theirs)))
        scale = float(gram.diagonal().max())
        ahead = float(exactly.times(j, x).min() - exactly.times(j, mean + theirs).min())
        assert ahead >= -1e-9 * scale
        assert ahead <= second_solver.NEAR * scale


@settings(max_examples=100)
@given(data=st.data())
def test_cagrad_is_optimal_by_duality(backend, data):
    gram = data.draw(gram_matrices(backend.device, dtypes=DTYPES[:2], max_rows=7))
    c = data.draw(st.sampled_from([0.01, 0.5, 1.0, 3.0]))
    assert_best_worst_case(gram, po.cagrad(gram, c=c), c)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_cagrad_is_optimal_on_every_family(backend, family):
    generator = torch.Generator().manual_seed(1)
    for n in (2, 3, 10):
        gram = gram_of(gradients(family, n, generator)).to(backend.device)
        for c in (0.5, 1.0, 3.0):
            assert_best_worst_case(gram, po.cagrad(gram, c=c), c)


def assert_best_worst_case(gram: torch.Tensor, weights: torch.Tensor, c: float) -> None:
    """d is in the ball, and no other's min_i <g_i, d> is greater: each w on the simplex bounds that
    by <g_w, g_0> + φ ‖g_w‖.

    To what rounding leaves, n u Σ |w_i| ‖g_i‖ in a slope per length and its square in a square;
    where ‖g_w‖² is no more, G does not tell it from 0. Where that is so of the shortest one, the
    weights of the best d may add up to φ over the root of it, and its slopes be hidden by as much.
    """
    u, n = unit_roundoff(gram.dtype), gram.shape[-1]
    g, weights = gram.double().cpu(), weights.double().cpu()
    norm = g.diagonal().clamp(min=0).sqrt()
    noise = 64 * n * 2.0**-53 + 8 * u * (u > 2.0**-53)
    mean = torch.full((n,), 1 / n, dtype=torch.float64)
    y = weights - mean
    assert bool((y >= -(u + 2.0**-50)).all()), y
    radius = c * float((mean @ g @ mean).clamp(min=0).sqrt())
    size = float(norm @ weights.abs())
    assert float(y @ g @ y) <= radius**2 * (1 + 1e-9) + noise * size**2

    def bound(w: torch.Tensor) -> float:
        square = float(w @ g @ w)
        told = square > noise * float(norm @ w) ** 2
        return float(w @ g @ mean) + radius * (square**0.5 if told else 0)

    # Rounded weights less 1/n would say little of small shares.
    shares = (po.cagrad(gram.double(), c=c, rtol=u).cpu() - mean).clamp(min=0)
    candidates = [po.min_norm(gram).double().cpu()]
    if bool(shares.any()):
        candidates.append(shares / shares.sum())
    best = min(bound(w) for w in candidates)
    shortest, length = candidates[0], float(norm @ candidates[0])
    if float(shortest @ g @ shortest) <= noise * length**2:
        size = max(size, radius / noise**0.5)
    slack = noise * size * float(norm.max()) + 1e-12 * abs(best)
    assert float((g @ weights).amin()) >= best - slack


def test_cagrad_of_what_is_degenerate(backend):
    opposite = on(backend, [1, -1], [-1, 1])
    assert po.cagrad(opposite).tolist() == [0.5, 0.5]  # g_0 = 0
    assert po.cagrad(torch.zeros_like(opposite)).tolist() == [0.5, 0.5]
    assert po.cagrad(on(backend, [2, -1], [-1, 5]), c=0).tolist() == [0.5, 0.5]
    # Stationary with g_0 ≠ 0: for c >= 1 the result is dualproj's.
    uneven = on(backend, [1, -2], [-2, 4])
    torch.testing.assert_close(po.cagrad(uneven, c=1.0), po.dualproj(uneven))
    for c in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="c must be nonnegative and finite"):
            po.cagrad(opposite, c=c)


def test_cone_weightings_of_one_objective(backend):
    for x in (3.0, 5e-324, 1e308):
        one = on(backend, [x])
        assert po.dualproj(one).tolist() == [1.0]
        assert po.upgrad(one).tolist() == [1.0]
        torch.testing.assert_close(po.cagrad(one, c=0.25), on(backend, 1.25)[0:1])


def test_cone_weightings_of_zero_gradients_keep_the_preference(backend):
    gram = torch.diag(on(backend, 1, 0, 2))
    p = [1.0, 2.0, 1.0]
    assert po.dualproj(gram, preference=p).tolist() == [0.25, 0.5, 0.25]
    assert po.upgrad(gram, preference=p).tolist() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize("function", [po.dualproj, po.upgrad, po.cagrad])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_cone_weightings_of_what_is_not_finite_are_nan(backend, function, bad):
    for n, i, k in [(1, 0, 0), (3, 1, 1), (3, 2, 0)]:
        gram = torch.eye(n, dtype=torch.float64, device=backend.device)
        gram[i, k] = gram[k, i] = bad
        assert bool(function(gram).isnan().all())


def test_cone_weightings_end_on_matrices_that_are_no_gram_matrices(backend):
    generator = torch.Generator().manual_seed(0)
    for n in (2, 5, 9):
        for _ in range(10):
            g = indefinite(n, generator).to(backend.device)
            for function in (po.dualproj, po.upgrad, po.cagrad):
                assert function(g).shape == (n,)


@pytest.mark.parametrize("function", [po.dualproj, po.upgrad, po.cagrad])
def test_cone_weightings_are_permutation_equivariant(backend, function):
    gram = gram_of(gaussian(6, 24, 1)).to(backend.device)
    order = torch.tensor([3, 1, 5, 0, 2, 4], device=backend.device)
    got = function(gram[order][:, order])
    condition = exactly.condition(gram)
    torch.testing.assert_close(got, function(gram)[order], rtol=0, atol=64 * 2.0**-53 * condition)


def test_cone_weightings_of_more_rows_than_lanes(backend, many_rows):
    n = many_rows
    gram = gram_of(gaussian(n, n // 2, n)).to(backend.device)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    weights = po.dualproj(torch.stack([gram, 4 * gram]))
    assert torch.equal(weights[0], weights[1])
    assert_cone_optimal(gram, weights[0], uniform)
    assert_best_worst_case(gram, po.cagrad(gram, c=0.5), 0.5)
    # n times the work of dualproj: four of its projections stand for all.
    few = torch.cat([torch.full((4,), 0.25), torch.zeros(n - 4)]).double()
    assert_sum_of_projections(gram, po.upgrad(gram, preference=few.to(backend.device)), few)


def cone_bound(n: int, u: float) -> float:
    """As in assert_cone_optimal."""
    return 3 * u + (16 + 2 * (n + 4)) * U


def cagrad_noise(n: int, u: float) -> float:
    """As in assert_best_worst_case."""
    return 64 * n * U + 8 * u * (u > U)


@pytest.mark.parametrize("origin", hard_matrices.ORIGINS)
@pytest.mark.parametrize("family", hard_matrices.FAMILIES)
def test_dualproj_is_optimal_on_hard_matrices(backend, family, origin):
    for seed in range(8 if backend.name == "cpu" else 3):
        n = 2 + seed % 5
        gram = hard_matrices.draw_matrix(family, origin, n, seed)
        for p in (torch.full((n,), 1 / n).double(), torch.eye(n).double()[seed % n]):
            weights = po.dualproj(gram.to(backend.device), preference=p.to(backend.device))
            worst = hard_matrices.worst_of_cone(gram, weights, p / p.sum())
            assert worst <= cone_bound(n, unit_roundoff(gram.dtype))


@pytest.mark.parametrize("origin", ["float64", "rows in float32"])
@pytest.mark.parametrize("family", hard_matrices.FAMILIES)
def test_upgrad_is_the_sum_of_its_projections_on_hard_matrices(backend, family, origin):
    for seed in range(8 if backend.name == "cpu" else 3):
        n = 2 + seed % 5
        gram = hard_matrices.draw_matrix(family, origin, n, seed)
        uniform = torch.full((n,), 1 / n).double()
        weights = po.upgrad(gram.to(backend.device))
        assert_sum_of_projections(gram.to(backend.device), weights, uniform)


@pytest.mark.parametrize("origin", hard_matrices.ORIGINS)
@pytest.mark.parametrize("family", hard_matrices.FAMILIES)
def test_cagrad_is_optimal_on_hard_matrices(backend, family, origin):
    for seed in range(6 if backend.name == "cpu" else 2):
        n = 2 + seed % 5
        gram = hard_matrices.draw_matrix(family, origin, n, seed)
        for c in (0.1, 0.5, 1.0, 3.0):
            assert_best_by_judge(gram, backend, c)


def assert_best_by_judge(gram: torch.Tensor, backend, c: float) -> None:
    """The least slope and the radius are those of the optimum, to rounding."""
    on_device = gram.to(backend.device)
    weights, shortest = po.cagrad(on_device, c=c), po.min_norm(on_device)
    noise = cagrad_noise(len(gram), unit_roundoff(gram.dtype))
    short, beyond = hard_matrices.worst_of_cagrad(gram, weights, c, noise, shortest)
    assert short <= 1, f"c = {c}: {short}"
    assert beyond <= 1, f"c = {c}: {beyond}"


# Gradients, as integers and multiples of small units, whose large weights, dependences or mixed
# lengths cost digits.
HARD: dict[str, list[list[float]]] = {
    "small integers and noise": [
        [1 + 3e-7, 1 - 1e-7, 2 + 2e-7],
        [-1 + 1e-7, -1 + 2e-7, -2 - 1e-7],
        [2e-7, -1 - 1e-7, 1 + 1e-7],
    ],
    "opposite but for 2^-28": [[1.0, 0.0], [-1.0, 2.0**-28]],
    "opposite but for 2^-18": [[1.0, 0.0], [-1.0, 2.0**-18], [0.5, 1.0]],
    "a dependence and nine decades": [
        [0.1, 0.0, -1e-8],
        [0.0, 1e-5, 0.0],
        [0.0, 0.1, 1e-9],
        [0.0, -1e-9, 0.0],
    ],
    "stationary integers": [[6.0, 0.0], [0.0, 6.0], [-9.046875, -9.046875], [1.0, 1.0]],
    "stationary integers and zero": [[3.0, 1.0], [-3.0, -1.0], [0.0, 0.0], [1.0, -2.0]],
    "short beside opposites": [[1e-8, 0.0], [0.5, 1.0], [-0.5, -1.0], [0.25, 1.0]],
}


@pytest.mark.parametrize("name", HARD)
def test_cone_weightings_of_chosen_hard_gradients(backend, name):
    gram = torch.tensor(hard_matrices.gram_of(HARD[name]), dtype=torch.float64)
    n = len(gram)
    uniform = torch.full((n,), 1 / n).double()
    weights = po.dualproj(gram.to(backend.device))
    assert hard_matrices.worst_of_cone(gram, weights, uniform) <= cone_bound(n, U)
    assert_sum_of_projections(gram.to(backend.device), po.upgrad(gram.to(backend.device)), uniform)
    for c in (0.1, 0.5, 1.0, 3.0):
        assert_best_by_judge(gram, backend, c)


def test_cone_weightings_exchange_rows_that_depend_in_one_order_only(backend):
    """Pivots of 3e-12 and then 4e-6 are one of 7e-17 in another order."""
    gram = on(
        backend,
        [3.0000014639548906, -3.0000021617793609, -2.9999997051780394, 1.0000004815512962,
         1.9999966534800906, -2.0000027167813741],
        [-3.0000021617793609, 4.0000007211609327, 3.9999989232119941, -0.99999835599104037,
         -2.9999961517474074, 1.0000011310880106],
        [-2.9999997051780394, 3.9999989232119941, 3.9999971252673387, -0.99999786502590693,
         -2.9999948447676572, 0.99999991418586776],
        [1.0000004815512962, -0.99999835599104037, -0.99999786502590693, 0.99999861670060652,
         -3.2007635702368068e-06, -1.0000020823728517],
        [1.9999966534800906, -2.9999961517474074, -2.9999948447676572, -3.2007635702368068e-06,
         2.9999960791558005, 3.0150492189712355e-06],
        [-2.0000027167813741, 1.0000011310880106, 0.99999991418586776, -1.0000020823728517,
         3.0150492189712355e-06, 3.0000037272295059],
    )  # fmt: skip
    for i in range(6):
        lone = torch.eye(6, dtype=torch.float64)[i]
        weights = po.dualproj(gram, preference=lone.to(gram.device))
        assert hard_matrices.worst_of_cone(gram, weights, lone) <= cone_bound(6, U)


def test_cagrad_ascends_where_two_gradients_nearly_cancel(backend):
    """Rows (1, 1, 2), (−1, −1, −2), (0, −1, 1) and a noise of 1e-7, c = 0.1: the plain mean has a
    least slope of −1/3 + .., and −.218 is within the radius."""
    gram = torch.tensor(hard_matrices.gram_of(HARD["small integers and noise"])).double()
    weights = po.cagrad(gram.to(backend.device), c=0.1).cpu()
    assert float(exactly.times(gram, weights).amin()) > -0.22


@pytest.mark.parametrize("rtol", [1e-6, 1e-4])
def test_cone_weightings_of_noisy_matrices_stay_small(backend, rtol):
    """G of dependent rows, in error by rtol and so indefinite: v has Σ v ‖g‖ of at most about the
    length of the start over the root of rtol, and conflicts within the error."""
    for family in ("integers times a basis", "copies", "near-stationary integers"):
        for seed in range(6):
            n = 3 + seed % 4
            exact = hard_matrices.draw_matrix(family, "float64", n, seed)
            norm = exact.diagonal().sqrt()
            sign = hard_matrices.signs(n, seed).double()
            gram = (exact + rtol / 2 * sign * norm * norm[:, None]).to(backend.device)
            weights = po.dualproj(gram, rtol=rtol).cpu()
            assert bool(weights.isfinite().all())
            size = float(exactly.dot(norm, weights))
            start = float(norm.sum()) / n
            assert size <= 4 * start / rtol**0.5
            slope = exactly.times(gram.cpu(), weights)
            assert bool((slope >= -3 * rtol * norm * size).all())
            assert bool(po.upgrad(gram, rtol=rtol).isfinite().all())
            for c in (0.5, 1.0):
                weights = po.cagrad(gram, c=c, rtol=rtol).cpu()
                assert bool(weights.isfinite().all())
                assert float(exactly.dot(norm, weights)) <= 8 * (1 + c) * start / rtol**0.5
