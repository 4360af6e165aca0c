"""Weights from Gram matrices: a call from Python, and a problem of a batch, against the budgets.

    pytest benchmarks/bench_weights.py --benchmark-only    # pytest-benchmark's table and JSON
    python benchmarks/bench_weights.py                     # medians against the budgets
    python benchmarks/bench_weights.py --plot PATH.png     # also a plot of them, and PATH.json

Peers are measured beside ours in the same run where they are installed: TorchJD's default
weighting, the same problem in cvxpy (Clarabel) with its parameters set once, and in quadprog.
TorchJD's NashMTL needs ecos, whose licence (GPL) keeps it out of the requirements. To measure it:

    pip install --no-deps --target build/ecos ecos
    PYTHONPATH=build/ecos python benchmarks/bench_weights.py --only nash_mtl
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    torchjd: float | None = None  # how many times as long TorchJD is to take at n = 8, at least

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


def cvxpy_fair(alpha: float) -> Callable[[torch.Tensor], Call]:
    """The convex problem whose solution has G w = w^(−1/α), for α = 1 and α > 1."""

    def peer(gram: torch.Tensor) -> Call:
        cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
        root = cvxpy.Parameter(gram.shape)
        root.value = torch.linalg.cholesky(gram).mT.numpy()
        w, power = cvxpy.Variable(len(gram)), 1 - 1 / alpha
        gain = cvxpy.log(w) if power == 0 else cvxpy.power(w, power) / power
        cost = cvxpy.sum_squares(root @ w) / 2 - cvxpy.sum(gain)
        problem = cvxpy.Problem(cvxpy.Minimize(cost))
        return lambda: problem.solve(solver=cvxpy.CLARABEL)

    return peer


def torchjd_nash_mtl(gram: torch.Tensor) -> Call:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd")
    pytest.importorskip("ecos", reason="needs ecos, see the head of bench_weights.py")
    nash_mtl = aggregation.NashMTL(n_tasks=len(gram))
    # It starts from its last solution, so each call gets gradients of its own, as in training.
    jacobians = [torch.linalg.cholesky(gram)]
    for seed in range(7):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn((len(gram), 4 * len(gram)), generator=generator, dtype=gram.dtype)
        jacobians.append(torch.linalg.cholesky(rows @ rows.mT))
    step = itertools.cycle(jacobians)
    return lambda: nash_mtl(next(step))


def quadprog_dualproj(gram: torch.Tensor) -> Call:
    quadprog = pytest.importorskip("quadprog", reason="needs quadprog")
    n, g = len(gram), gram.numpy()
    identity, zeros = torch.eye(n, dtype=torch.float64).numpy(), torch.zeros(n).double().numpy()
    return lambda: quadprog.solve_qp(g, zeros, identity, zeros + 1 / n)


def quadprog_upgrad(gram: torch.Tensor) -> Call:
    """One quadratic program for each objective."""
    quadprog = pytest.importorskip("quadprog", reason="needs quadprog")
    n, g = len(gram), gram.numpy()
    identity, zeros = torch.eye(n, dtype=torch.float64).numpy(), torch.zeros(n).double().numpy()
    return lambda: [quadprog.solve_qp(g, zeros, identity, row / n) for row in identity]


def torchjd_peer(name: str, **options: float) -> Callable[[torch.Tensor], Call]:
    """TorchJD's weighting of this name with its defaults, but for parameters that it must have."""

    def peer(gram: torch.Tensor) -> Call:
        aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd")
        weighting = getattr(aggregation, name)(**options)
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
        torchjd=30,
    ),
    Row(
        "dualproj",
        po.dualproj,
        peers={"torchjd": torchjd_peer("DualProjWeighting"), "quadprog": quadprog_dualproj},
    ),
    Row(
        "upgrad",
        po.upgrad,
        budget={8: 24.0, 32: 1500.0},
        peers={"torchjd": torchjd_peer("UPGradWeighting"), "quadprog": quadprog_upgrad},
        torchjd=10,
    ),
    Row(
        "cagrad",
        po.cagrad,
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_peer("CAGradWeighting", c=0.5)},
        torchjd=100,
    ),
    Row(
        "nash_mtl",
        po.nash_mtl,
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_nash_mtl, "cvxpy": cvxpy_fair(1.0)},
        torchjd=5000,
    ),
    Row(
        "fairgrad",
        functools.partial(po.fairgrad, alpha=2.0),
        budget={8: 24.0, 32: 120.0},
        peers={"torchjd": torchjd_peer("FairGradWeighting", alpha=2.0), "cvxpy": cvxpy_fair(2.0)},
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


@dataclass(frozen=True)
class Measured:
    """Microseconds a call, of an op or of a peer of it."""

    op: str
    peer: str | None
    n: int
    median: float
    low: float
    high: float
    budget: float | None = None
    ratio: float | None = None  # of a peer's median to ours
    least: float | None = None  # what that is to be

    def print(self) -> None:
        of = f"{self.median / self.budget:8.2f} of {self.budget:g} us" if self.budget else ""
        if self.ratio:
            of = f"{self.ratio:8.1f} times ours" + (f" (>= {self.least:g})" if self.least else "")
        name = f"  {self.peer}" if self.peer else self.op
        times = f"{self.median:12.2f}  [{self.low:.2f}, {self.high:.2f}]"
        print(f"{name:<24} {self.n:>4} {times}  {of}", flush=True)


TOO_LONG = 0.25  # seconds a call, after which a peer is not measured at larger n


def measure(row: Row) -> list[Measured]:
    measured, given_up = [], set()
    for n in SIZES:
        x = row.input(n)
        ours = Measured(row.name, None, n, *microseconds(lambda x=x: row.call(x)), row.limit(n))
        ours.print()
        measured.append(ours)
        for name in row.peers.keys() - given_up:
            try:
                call = row.peers[name](x)
            except pytest.skip.Exception as missing:
                print(f"  {name}: {missing}")
                given_up.add(name)
                continue
            times = microseconds(call, rounds=3)
            least = row.torchjd if name == "torchjd" and n == 8 else None
            ratio = times[0] / ours.median
            theirs = Measured(row.name, name, n, *times, ratio=ratio, least=least)
            theirs.print()
            measured.append(theirs)
            if theirs.median > TOO_LONG * 1e6:
                given_up.add(name)
    return measured


def plot(measured: list[Measured], path: Path) -> None:
    """Time against n, a panel for each op, its peers and its budgets beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    ops = list(dict.fromkeys(m.op for m in measured))
    columns = 4
    figure, axes = pyplot.subplots(
        -(-len(ops) // columns), columns, figsize=(14, 11), sharex=True, sharey=True, squeeze=False
    )
    colors = {None: "C0", "torchjd": "C1", "cvxpy": "C2", "quadprog": "C3"}
    for axis, op in zip(axes.flat, ops, strict=False):
        for peer, color in colors.items():
            points = [m for m in measured if m.op == op and m.peer == peer]
            if points:
                sizes, medians = [m.n for m in points], [m.median for m in points]
                axis.loglog(sizes, medians, "o-", color=color, label=peer or "pama_ops", ms=4)
        limits = [m for m in measured if m.op == op and m.budget]
        sizes, budgets = [m.n for m in limits], [m.budget for m in limits]
        axis.plot(sizes, budgets, "k_", label="budget", ms=10)
        axis.set_title(op, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xticks(SIZES, [str(n) for n in SIZES])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(ops) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("µs a call")
    handles = {h.get_label(): h for a in axes.flat for h in a.get_legend_handles_labels()[0]}
    figure.legend(handles=handles.values(), loc="lower right", ncols=len(handles))
    figure.suptitle("Weights from an n × n Gram matrix on one CPU thread, called from Python")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="PATH", help="a PNG; JSON goes beside it")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in TABLE], metavar="OP")
    options = parser.parse_args()
    path, table = options.plot, [r for r in TABLE if not options.only or r.name in options.only]
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, pama_ops {po.__version__}, one thread")
    print(f"{'op':<24} {'n':>4} {'median us':>12}  [least, most]  share of the budget")
    measured = [m for row in table for m in measure(row)]
    for dtype in (torch.float64, torch.float32):
        gram = batch(dtype)
        times = microseconds(lambda gram=gram: po.min_norm(gram))
        each = [t / len(gram) for t in times]
        Measured(f"min_norm of 1024, {str(dtype)[6:]}", None, 8, *each, 2.0).print()
    if path:
        from conftest import commit, machine, versions

        results = {"machine": machine(), "versions": versions(), "commit": commit()}
        results["rows"] = [asdict(m) for m in measured]
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        plot(measured, path)


if __name__ == "__main__":
    main()
