"""pcgrad and gradvac: held to their loops on the gradients themselves."""

from __future__ import annotations

import exactly
import pytest
import torch
from strategies import GRADIENT_FAMILIES, draw_gradients, gram_of

import pama_ops as po
from pama_ops.reference import random_order


def draw(family: str, n: int) -> torch.Tensor:
    return draw_gradients(family, n, n)


def seed_of(value: int, backend) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64, device=backend.device)


def surgery(j: torch.Tensor, seed: int, target: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """Σ cur in parameter space, and how far from it GradVac by a Gram matrix may be.

    By G a cosine of cur = Σ c_i g_i is off by (n + 4) u64 in units of S = Σ |c_i| ‖g_i‖: by
    ε = (n + 4) u64 (S / ‖cur‖ + (S / ‖cur‖)²), and by 2 / ‖cur‖ times what cur is off by. Then
    √(1 − cos²) is off by min(ε / √(1 − cos²), √(2 ε)).
    """
    n, norms = len(j), exactly.norm(j)
    cur, size, error = j.clone(), norms.clone(), torch.zeros_like(norms)
    orders = torch.tensor([random_order(seed, n, i) for i in range(n)], dtype=torch.int64)
    for k in orders.mT:  # whom each row meets next
        other, norm, length = j[k], norms[k], exactly.by_halves(cur * cur).sqrt()
        dot = exactly.by_halves(cur * other)
        cosine = (dot / norm / length).clamp(-1, 1)  # NaN, and below nothing, of a row of zeros
        if target is None:
            acts, add = cosine < 0, -dot / norm**2
        else:
            t = target[torch.arange(n), k]
            acts, rest, sine = cosine < t, (1 - t * t).sqrt(), (1 - cosine**2).sqrt()
            add = length * (t * sine - cosine * rest) / (norm * rest)
            share = size / length
            e = (n + 4) * 2.0**-53 * (share + share**2) + 2 * error / length
            of_sine = torch.minimum(e / sine, (2 * e).sqrt())
            grown = length * (t.abs() / rest * of_sine + e) + add.abs() * norm * e
            error = torch.where(acts, error + grown, error)
            size = torch.where(acts, size + add.abs() * norm, size)
        cur = torch.where(acts[:, None], cur + add[:, None] * other, cur)
    return exactly.by_halves(cur.mT), float(error.sum())


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("family", ["gaussian", "rank-deficient"])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_surgery_of_any_seed_is_its_loop_over_the_gradients(backend, family, n, seed):
    assert_is_its_loop(backend, draw(family, n), seed)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_surgery_is_its_loop_over_the_gradients(backend, family):
    for n in (3, 9):
        assert_is_its_loop(backend, draw(family, n), 5)


def test_surgery_of_more_rows_than_lanes_is_its_loop(backend, many_rows):
    assert_is_its_loop(backend, draw("rank-deficient", many_rows), 7)


def assert_is_its_loop(backend, j: torch.Tensor, seed: int) -> None:
    n = len(j)
    gram = gram_of(j).to(backend.device)
    scale = float(exactly.norm(j).max()) * n
    x = exactly.times(j.T, po.pcgrad(gram, seed=seed_of(seed, backend)).cpu())
    assert float(exactly.norm(x - surgery(j, seed, None)[0])) <= 1e-12 * scale
    target = 0.9 * torch.rand((n, n), generator=torch.Generator().manual_seed(1)) - 0.3
    w = po.gradvac(gram, target=target.to(backend.device), seed=seed_of(seed, backend)).cpu()
    want, off = surgery(j, seed, target.double())
    size = float(exactly.dot(exactly.norm(j), w.abs()))
    assert float(exactly.norm(exactly.times(j.T, w) - want)) <= off + 1e-12 * size


def test_surgery_of_published_values(backend):
    gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64, device=backend.device)
    want = torch.tensor([1 + 22 / 18, 1 + 22 / 38], dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(po.pcgrad(gram), want, rtol=1e-15, atol=0)
    torch.testing.assert_close(po.gradvac(gram), want, rtol=1e-14, atol=0)


def test_orders_are_uniform():
    """Of 6 orders of 3 others, each comes a sixth of the time: χ² with 5 degrees of freedom."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = tuple(random_order(seed, 4, 2))
        counts[order] = counts.get(order, 0) + 1
    assert set().union(*counts) == {0, 1, 3}
    assert len(counts) == 6
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 25.7  # p = 1e-4


def test_each_matrix_of_a_batch_may_have_its_own_seed(backend):
    j = draw("rank-deficient", 6)
    gram = gram_of(j).to(backend.device).expand(5, 6, 6)
    seeds = torch.arange(5, device=backend.device)
    for function in (po.pcgrad, po.gradvac):
        got = function(gram, seed=seeds)
        for g, s, w in zip(gram, seeds, got, strict=True):
            assert torch.equal(function(g, seed=s), w)
        assert len({tuple(w.tolist()) for w in got}) > 1


def test_seed_is_drawn_from_the_default_generator(backend):
    j = draw("rank-deficient", 6)
    gram = gram_of(j).to(backend.device).expand(5, 6, 6)
    for function in (po.pcgrad, po.gradvac):
        torch.manual_seed(5)
        first = function(gram)
        second = function(gram)
        torch.manual_seed(5)
        assert torch.equal(function(gram), first)
        assert not torch.equal(first, second)
        assert len({tuple(w.tolist()) for w in first}) > 1


def test_surgery_names_bad_arguments(backend):
    eye = torch.eye(2, device=backend.device)
    for seed, error, message in [
        (3, TypeError, "seed must be a torch.Tensor, got int"),
        (torch.tensor(3.0), TypeError, "seed must be an int64 tensor, got torch.float32"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"seed must have the shape \[\] or \[\]"),
    ]:
        with pytest.raises(error, match=message):
            po.pcgrad(eye, seed=seed.to(backend.device) if isinstance(seed, torch.Tensor) else seed)
    for target in (1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"target must be a cosine in \(-1, 1\)"):
            po.gradvac(eye, target=target)
    with pytest.raises(ValueError, match=r"target must have the shape \[2, 2\]"):
        po.gradvac(eye, target=torch.zeros(3, device=backend.device))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_surgery_of_what_is_not_finite_is_nan(backend, bad):
    gram = torch.eye(3, dtype=torch.float64, device=backend.device)
    gram[2, 0] = gram[0, 2] = bad
    assert bool(po.pcgrad(gram).isnan().all())
    assert bool(po.gradvac(gram).isnan().all())


def test_pcgrad_may_conflict(backend):
    """Projections undo each other: a counter-example to "conflicts with none"."""
    j = draw("near-stationary 1e-3", 6)
    gram = gram_of(j).to(backend.device)
    slopes = [exactly.times(gram, po.pcgrad(gram, seed=seed_of(s, backend))) for s in range(8)]
    assert min(float(s.min()) for s in slopes) < -1e-3
