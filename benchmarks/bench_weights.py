"""Weights from Gram matrices: a call from Python, and a problem of a batch, against the budgets.

    pytest benchmarks/bench_weights.py --benchmark-only    # pytest-benchmark's table and JSON
    python benchmarks/bench_weights.py                     # medians against the budgets

Peers are measured beside ours in the same run where they are installed: TorchJD's default
weighting, and the same problem in cvxpy (Clarabel) with its parameters set once.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

import pama_ops as po

SIZES = [2, 4, 8, 16, 32, 64]
Call = Callable[[], object]


@dataclass
class Row:
    """An op, what it is timed on, its budget in microseconds, and its peers by name."""

    name: str
    call: Callable[[torch.Tensor], object]
    values: bool = False  # takes n values rather than a Gram matrix
    budget: dict[int, float] = field(default_factory=lambda: {8: 8.0, 32: 40.0})
    peers: dict[str, Callable[[torch.Tensor], Call]] = field(default_factory=dict)

    def input(self, n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(n)
        j = torch.randn((n, 4 * n), generator=generator, dtype=torch.float64)
        return j[:, 0] if self.values else j @ j.mT

    def limit(self, n: int) -> float | None:
        return next((self.budget[m] for m in sorted(self.budget) if n <= m), None)


def cvxpy_min_norm(gram: torch.Tensor) -> Call:
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    n = gram.shape[-1]
    root = cvxpy.Parameter((n, n))
    root.value = torch.linalg.cholesky(gram).mT.numpy()
    c = cvxpy.Variable(n, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(root @ c)), [cvxpy.sum(c) == 1])
    return lambda: problem.solve(solver=cvxpy.CLARABEL)


def torchjd_peer(name: str) -> Callable[[torch.Tensor], Call]:
    """TorchJD's weighting of this name with its defaults."""

    def peer(gram: torch.Tensor) -> Call:
        aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd")
        weighting = getattr(aggregation, name)()
        return lambda: weighting(gram)

    return peer


def cvxpy_pama_weights(values: torch.Tensor) -> Call:
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    n = values.shape[-1]
    a = cvxpy.Parameter(n)
    a.value = values.numpy()
    c = cvxpy.Variable(n, nonneg=True)
    distance = cvxpy.sum_squares(c - 1 / n)
    problem = cvxpy.Problem(cvxpy.Minimize(distance), [cvxpy.sum(c) == 1, a @ c == 0])
    return lambda: problem.solve(solver=cvxpy.CLARABEL)


TABLE = [
    Row(
        "min_norm",
        po.min_norm,
        peers={"torchjd": torchjd_peer("MGDAWeighting"), "cvxpy": cvxpy_min_norm},
    ),
    Row("dualproj", po.dualproj, peers={"torchjd": torchjd_peer("DualProjWeighting")}),
    Row(
        "upgrad",
        po.upgrad,
        budget={8: 24.0, 32: 1500.0},
        peers={"torchjd": torchjd_peer("UPGradWeighting")},
    ),
    Row("cagrad", po.cagrad, budget={8: 24.0, 32: 120.0}),
    Row("nash_mtl", po.nash_mtl, budget={8: 24.0, 32: 120.0}),
    Row(
        "fairgrad",
        functools.partial(po.fairgrad, alpha=2.0),
        budget={8: 24.0, 32: 120.0},
    ),
    Row("gapo", po.gapo),
    Row(
        "pcgrad",
        functools.partial(po.pcgrad, seed=torch.tensor(0)),
        peers={"torchjd": torchjd_peer("PCGradWeighting")},
    ),
    Row("gradvac", functools.partial(po.gradvac, target=0.1, seed=torch.tensor(0)), budget={}),
    Row(
        "aligned_mtl",
        po.aligned_mtl,
        budget={8: 15.0, 32: 150.0},
        peers={"torchjd": torchjd_peer("AlignedMTLWeighting")},
    ),
    Row(
        "imtl_g",
        po.imtl_g,
        budget={8: 15.0, 32: 150.0},
        peers={"torchjd": torchjd_peer("IMTLGWeighting")},
    ),
    Row("config", po.config, budget={8: 15.0, 32: 150.0}),
    Row("pama_weights", po.pama_weights, values=True, peers={"cvxpy": cvxpy_pama_weights}),
    Row(
        "duality_gap",
        lambda gram: po.duality_gap(gram, torch.full(gram.shape[:-1], 1 / gram.shape[-1])),
        budget={},
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("n", SIZES)
def test_call(benchmark, row, n):
    benchmark.group = f"{row.name}, n = {n}"
    benchmark.extra_info["budget_us"] = row.limit(n)
    x = row.input(n)
    benchmark(row.call, x)


PEERS = [(row, peer) for row in TABLE for peer in row.peers]


@pytest.mark.parametrize(("row", "peer"), PEERS, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("n", [2, 8, 32])
def test_peer(benchmark, row, peer, n):
    benchmark.group = f"{row.name}, n = {n}"
    benchmark(row.peers[peer](row.input(n)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_of_min_norm(benchmark, dtype):
    """1024 different problems of n = 8 on one thread; the budget is 2 us each."""
    gram, threads = batch(dtype), torch.get_num_threads()
    benchmark.extra_info["budget_us"] = 2.0 * len(gram)
    torch.set_num_threads(1)
    try:
        benchmark(po.min_norm, gram)
    finally:
        torch.set_num_threads(threads)


def batch(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    j = torch.randn((1024, 8, 32), generator=generator, dtype=torch.float64)
    return (j @ j.mT).to(dtype)


# --- the table ----------------------------------------------------------------------------------


def microseconds(call: Call, rounds: int = 9, seconds: float = 0.02) -> tuple[float, float, float]:
    """Median, least and most over rounds of about `seconds`."""
    call()
    begin = time.perf_counter()
    call()
    count = max(1, int(seconds / max(time.perf_counter() - begin, 1e-7)))
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - begin) / count * 1e6)
    return statistics.median(times), min(times), max(times)


def line(name: str, n: int, times: tuple[float, float, float], budget: float | None) -> None:
    median, least, most = times
    of = f"{median / budget:8.2f} of {budget:g} us" if budget else ""
    print(f"{name:<24} {n:>4} {median:12.2f}  [{least:.2f}, {most:.2f}]  {of}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, pama_ops {po.__version__}, one thread")
    print(f"{'op':<24} {'n':>4} {'median us':>12}  [least, most]  share of the budget")
    for row in TABLE:
        for n in SIZES:
            x = row.input(n)
            line(row.name, n, microseconds(lambda row=row, x=x: row.call(x)), row.limit(n))
            for name, peer in row.peers.items():
                try:
                    line(f"  {name}", n, microseconds(peer(x), rounds=3), None)
                except pytest.skip.Exception as missing:
                    print(f"  {name}: {missing}")
    for dtype in (torch.float64, torch.float32):
        gram = batch(dtype)
        times = microseconds(lambda gram=gram: po.min_norm(gram))
        each = tuple(t / len(gram) for t in times)
        line(f"min_norm of 1024, {str(dtype)[6:]}", 8, each, 2.0)


if __name__ == "__main__":
    main()
