"""What the timing suites share: interleaved rounds, and one table of ratios.

Ratios hold on a noisy machine only if both sides met the same noise, so every round of an op is
preceded by a round of each of its bounds (but for long ones), and medians are compared. Peers, what
users run today, are timed after the op and shown against the same bounds and budgets. The table
ends the run; `--results PATH` writes it as JSON with machine, versions and commit.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from timing import Call, sample, seconds

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from provenance import commit, machine, versions

SHORT = 5e-3  # seconds


@dataclass(frozen=True)
class Row:
    suite: str
    case: str
    call: str  # "ours", or the name of a peer
    median: float  # seconds
    low: float  # quartiles
    high: float
    bound: str
    bound_median: float
    ratio: float  # median / bound_median
    budget: float | None  # the ratio is to be at most this


ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", metavar="PATH", help="write the table of ratios as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


Compare = Callable[..., None]


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """Where a suite runs: on each of these, unless it has a fixture of its own."""
    return request.param


@pytest.fixture
def compare(benchmark, device: str, request: pytest.FixtureRequest) -> Compare:
    """A function that measures a call beside its bounds and adds a row for each of them.

    A bound is a call, or a number of seconds. `peers` have such rows as well, and the call one
    against each peer that `budgets` names.
    """
    here = torch.device(device)

    def once(call: Call) -> float:
        return seconds(call, here)

    def run(
        case: str,
        call: Call,
        bounds: dict[str, Call | float],
        budgets: dict[str, float] | None = None,
        rounds: int = 60,
        peers: dict[str, Call] | None = None,
    ) -> None:
        budgets, peers = budgets or {}, peers or {}
        measured = {name: bound for name, bound in bounds.items() if callable(bound)}
        ours: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in measured}
        own = min(once(call) for _ in range(2))
        # A peer much longer than the op empties the caches, lets the threads fall asleep and the
        # allocator give memory back, all of which the op that comes next would pay for. Noise does
        # not change the verdict on it, so that is measured apart, after the op.
        beside = {
            name: bound for name, bound in measured.items() if once(bound) < max(SHORT, 2 * own)
        }

        def measure_bounds() -> None:
            for name, bound in beside.items():
                warm_up(bound)
                times[name].append(once(bound))
            warm_up(call)

        # Threads awake and caches filled are nothing beside a long call.
        def warm_up(call: Call) -> None:
            if own < SHORT:
                call()

        warmup = 5 if own < SHORT else 1
        rounds = max(5, min(rounds, int(1 / own)))
        benchmark.group = case
        benchmark.pedantic(
            lambda: ours.append(once(call)),
            setup=measure_bounds,
            rounds=rounds,
            warmup_rounds=warmup,
        )

        def apart(call: Call, most: int) -> list[float]:
            return sample(lambda: once(call), least=3, most=most, budget=0.5)

        for name, bound in measured.items():
            times[name] = times[name][warmup:] or apart(bound, 15)
        theirs = {name: apart(peer, 10) for name, peer in peers.items()}
        times |= {name: [bound] for name, bound in bounds.items() if not callable(bound)}

        suite = request.node.path.stem.removeprefix("bench_")

        def add(who: str, samples: list[float], bound: str, of_bound: list[float]) -> float:
            low, median, high = statistics.quantiles(samples, n=4)
            other = statistics.median(of_bound)
            budget = budgets.get(bound)
            ratio = median / other
            row = Row(suite, case, who, median, low, high, bound, other, ratio, budget)
            request.config.stash[ROWS].append(row)
            return ratio

        for name, samples in {**times, **{k: v for k, v in theirs.items() if k in budgets}}.items():
            ratio = add("ours", ours[warmup:], name, samples)
            benchmark.extra_info[f"ratio to {name}"] = ratio
        for name, samples in theirs.items():
            for bound, of_bound in times.items():
                add(name, samples, bound, of_bound)

    return run


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- the table ----------------------------------------------------------------------------------


def times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 1 else f"1/{1 / ratio:.1f}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    where, made_of = machine(), versions()
    terminalreporter.section("ratios")
    terminalreporter.write_line(
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads,"
        f" {where['simd']}; torch {made_of['torch']}, commit {(commit() or 'unknown')[:10]}"
    )
    header = (
        "case", "", "median us", "quartiles", "bound", "its us", "ratio", "budget", "of it", ""
    )  # fmt: skip
    lines = [header]
    for row in rows:
        met = row.budget is None or row.ratio <= row.budget
        verdict = "" if row.budget is None or row.call != "ours" else "met" if met else "MISSED"
        lines.append(
            (
                f"{row.suite}: {row.case}",
                row.call,
                f"{row.median * 1e6:.1f}",
                f"{row.low * 1e6:.1f}..{row.high * 1e6:.1f}",
                row.bound,
                f"{row.bound_median * 1e6:.1f}",
                times(row.ratio),
                "" if row.budget is None else times(row.budget),
                "" if row.budget is None else f"{row.ratio / row.budget:.2f}",
                verdict,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = (0, 1, 4, 9)
    for line in lines:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(cells).rstrip())
    path = config.getoption("--results")
    if path:
        results = {
            "machine": where,
            "versions": made_of,
            "commit": commit(),
            "rows": [asdict(row) for row in rows],
        }
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
        terminalreporter.write_line(f"written to {path}")
