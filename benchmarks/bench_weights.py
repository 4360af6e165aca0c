"""Weights from Gram matrices: a call from Python, and a problem of a batch, against the budgets.

    pytest benchmarks/bench_weights.py --benchmark-only --results PATH.json
    python benchmarks/plot_weights.py PATH.json

Peers are measured beside ours in the same run where they are installed: TorchJD's default
weighting, the same problem in cvxpy (Clarabel) with its parameters set once, and in quadprog.
TorchJD's NashMTL needs ecos, whose licence (GPL) keeps it out of the requirements. To measure it:

    pip install --no-deps --target build/ecos ecos
    PYTHONPATH=build/ecos pytest benchmarks/bench_weights.py --benchmark-only -k nash_mtl
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import torch
from conftest import Compare
from timing import Call

import pama_ops as po

SIZES = [2, 4, 8, 16, 32, 64]


@dataclass(frozen=True)
class Weighting:
    """An op, what it is timed on, its budget in microseconds, and its peers by name."""

    name: str
    call: Callable[[torch.Tensor], object]
    values: bool = False  # takes n values rather than a Gram matrix
    budget: dict[int, float] = field(default_factory=lambda: {8: 8.0, 32: 40.0})
    peers: dict[str, Callable[[torch.Tensor], Call]] = field(default_factory=dict)
    torchjd: float | None = None  # how many times as long TorchJD is to take at n = 8, at least

    def input(self, n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(n)
        j = torch.randn((n, 4 * n), generator=generator, dtype=torch.float64)
        return j[:, 0] if self.values else j @ j.mT

    def limit(self, n: int) -> float | None:
        return next((self.budget[m] for m in sorted(self.budget) if n <= m), None)


def cvxpy_min_norm(gram: torch.Tensor) -> Call:
    import cvxpy

    n = gram.shape[-1]
    root = cvxpy.Parameter((n, n))
    root.value = torch.linalg.cholesky(gram).mT.numpy()
    c = cvxpy.Variable(n, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(root @ c)), [cvxpy.sum(c) == 1])
    return lambda: problem.solve(solver=cvxpy.CLARABEL)


def cvxpy_fair(alpha: float) -> Callable[[torch.Tensor], Call]:
    """The convex problem whose solution has G w = w^(−1/α), for α = 1 and α > 1."""

    def peer(gram: torch.Tensor) -> Call:
        import cvxpy

        root = cvxpy.Parameter(gram.shape)
        root.value = torch.linalg.cholesky(gram).mT.numpy()
        w, power = cvxpy.Variable(len(gram)), 1 - 1 / alpha
        gain = cvxpy.log(w) if power == 0 else cvxpy.power(w, power) / power
        cost = cvxpy.sum_squares(root @ w) / 2 - cvxpy.sum(gain)
        problem = cvxpy.Problem(cvxpy.Minimize(cost))
        return lambda: problem.solve(solver=cvxpy.CLARABEL)

    return peer


def torchjd_nash_mtl(gram: torch.Tensor) -> Call:
    import ecos  # noqa: F401 (NashMTL asks for it when it is first called)
    from torchjd.aggregation import NashMTL

    nash_mtl = NashMTL(n_tasks=len(gram))
    # It starts from its last solution, so each call gets gradients of its own, as in training.
    jacobians = [torch.linalg.cholesky(gram)]
    for seed in range(7):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn((len(gram), 4 * len(gram)), generator=generator, dtype=gram.dtype)
        jacobians.append(torch.linalg.cholesky(rows @ rows.mT))
    step = itertools.cycle(jacobians)
    return lambda: nash_mtl(next(step))


def quadprog_dualproj(gram: torch.Tensor) -> Call:
    import quadprog

    n, g = len(gram), gram.numpy()
    identity, zeros = torch.eye(n, dtype=torch.float64).numpy(), torch.zeros(n).double().numpy()
    return lambda: quadprog.solve_qp(g, zeros, identity, zeros + 1 / n)


def quadprog_upgrad(gram: torch.Tensor) -> Call:
    """One quadratic program for each objective."""
    import quadprog

    n, g = len(gram), gram.numpy()
    identity, zeros = torch.eye(n, dtype=torch.float64).numpy(), torch.zeros(n).double().numpy()
    return lambda: [quadprog.solve_qp(g, zeros, identity, row / n) for row in identity]


def torchjd_peer(name: str, **options: float) -> Callable[[torch.Tensor], Call]:
    """TorchJD's weighting of this name with its defaults, but for parameters that it must have."""

    def peer(gram: torch.Tensor) -> Call:
        from torchjd import aggregation

        weighting = getattr(aggregation, name)(**options)
        return lambda: weighting(gram)

    return peer


def cvxpy_pama_weights(values: torch.Tensor) -> Call:
    import cvxpy

    n = values.shape[-1]
    a = cvxpy.Parameter(n)
    a.value = values.numpy()
    c = cvxpy.Variable(n, nonneg=True)
    distance = cvxpy.sum_squares(c - 1 / n)
    problem = cvxpy.Problem(cvxpy.Minimize(distance), [cvxpy.sum(c) == 1, a @ c == 0])
    return lambda: problem.solve(solver=cvxpy.CLARABEL)


WEIGHTINGS = [
    Weighting(
        "min_norm",
        po.min_norm,
        peers={"torchjd": torchjd_peer("MGDAWeighting"), "cvxpy": cvxpy_min_norm},
        torchjd=30,
    ),
    Weighting(
        "dualproj",
        po.dualproj,
        peers={"torchjd": torchjd_peer("DualProjWeighting"), "quadprog": quadprog_dualproj},
    ),
    Weighting(
        "upgrad",
        po.upgrad,
        budget={8: 24.0, 32: 1500.0},
        peers={"torchjd": torchjd_peer("UPGradWeighting"), "quadprog": quadprog_upgrad},
        torchjd=10,
    ),
    Weighting(
        "cagrad",
        po.cagrad,
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_peer("CAGradWeighting", c=0.5)},
        torchjd=100,
    ),
    Weighting(
        "nash_mtl",
        po.nash_mtl,
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_nash_mtl, "cvxpy": cvxpy_fair(1.0)},
        torchjd=5000,
    ),
    Weighting(
        "fairgrad",
        functools.partial(po.fairgrad, alpha=2.0),
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_peer("FairGradWeighting", alpha=2.0), "cvxpy": cvxpy_fair(2.0)},
    ),
    Weighting("gapo", po.gapo),
    Weighting(
        "pcgrad",
        functools.partial(po.pcgrad, seed=torch.tensor(0)),
        peers={"torchjd": torchjd_peer("PCGradWeighting")},
    ),
    Weighting(
        "gradvac", functools.partial(po.gradvac, target=0.1, seed=torch.tensor(0)), budget={}
    ),
    Weighting(
        "aligned_mtl",
        po.aligned_mtl,
        budget={8: 15.0, 32: 150.0},
        peers={"torchjd": torchjd_peer("AlignedMTLWeighting")},
    ),
    Weighting(
        "imtl_g",
        po.imtl_g,
        budget={8: 15.0, 32: 150.0},
        peers={"torchjd": torchjd_peer("IMTLGWeighting")},
    ),
    Weighting("config", po.config, budget={8: 15.0, 32: 150.0}),
    Weighting("pama_weights", po.pama_weights, values=True, peers={"cvxpy": cvxpy_pama_weights}),
    Weighting(
        "duality_gap",
        lambda gram: po.duality_gap(gram, torch.full(gram.shape[:-1], 1 / gram.shape[-1])),
        budget={},
    ),
]


@pytest.fixture
def device() -> str:
    """The budgets are those of a CPU's thread."""
    return "cpu"


def within(microseconds: float) -> dict[str, float]:
    """A bound of so many, for `compare`."""
    return {f"{microseconds:g} us": microseconds * 1e-6}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda weighting: weighting.name)
def test_weighting(compare: Compare, threads, weighting, n):
    threads(1)
    x, peers = weighting.input(n), {}
    for name, peer in weighting.peers.items():
        with suppress(ImportError):
            peers[name] = peer(x)
    budgets = dict.fromkeys(peers, 1.0)
    if weighting.torchjd and n == 8 and "torchjd" in peers:
        budgets["torchjd"] = 1 / weighting.torchjd
    limit = weighting.limit(n)
    bounds = within(limit or 1.0)  # where there is no budget, figures in microseconds
    budgets |= dict.fromkeys(bounds, 1.0) if limit else {}
    case = f"{weighting.name}, n = {n}"
    compare(case, lambda: weighting.call(x), bounds, budgets, rounds=300, peers=peers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_of_min_norm(compare: Compare, threads, dtype):
    """1024 different problems of n = 8 on one thread; the budget is 2 us each."""
    threads(1)
    generator = torch.Generator().manual_seed(0)
    j = torch.randn((1024, 8, 32), generator=generator, dtype=torch.float64)
    gram = (j @ j.mT).to(dtype)
    bounds = within(2.0 * len(gram))
    case = f"min_norm of {len(gram)}, {str(dtype).removeprefix('torch.')}"
    compare(case, lambda: po.min_norm(gram), bounds, dict.fromkeys(bounds, 1.0))
