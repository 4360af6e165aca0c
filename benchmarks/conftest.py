"""What the timing suites share: interleaved rounds, a read pass, and one table of ratios.

Ratios hold on a noisy machine only if both sides met the same noise, so every round of an op is
preceded by a round of each of its bounds (but for long ones), and medians are compared. The table
ends the run; `--results PATH` writes it as JSON with machine, versions and commit.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

import pama_ops

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from provenance import commit, machine

Call = Callable[[], object]
SHORT = 5e-3  # seconds


@dataclass(frozen=True)
class Row:
    suite: str
    case: str
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


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


Compare = Callable[..., None]


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Compare:
    """A function that measures a call beside its bounds and adds a row for each of them."""

    def run(
        case: str,
        call: Call,
        bounds: dict[str, Call],
        budgets: dict[str, float] | None = None,
        rounds: int = 60,
    ) -> None:
        times: dict[str, list[float]] = {name: [] for name in bounds}
        # A long peer empties the caches, lets the threads fall asleep and the allocator give memory
        # back, all of which the op that comes next would pay for. Noise does not change the verdict
        # on something a hundred times slower, so that is measured apart, after the op.
        short = {name: bound for name, bound in bounds.items() if seconds(bound) < SHORT}

        def measure_bounds() -> None:
            for name, bound in short.items():
                bound()
                times[name].append(seconds(bound))
            call()

        warmup = 5
        benchmark.group = case
        benchmark.pedantic(
            lambda: seconds(call), setup=measure_bounds, rounds=rounds, warmup_rounds=warmup
        )
        for name in bounds.keys() - short.keys():
            times[name] = [seconds(bounds[name]) for _ in range(warmup + 10)]
        data = sorted(benchmark.stats.stats.data)
        low, median, high = statistics.quantiles(data, n=4)
        suite = request.node.path.stem.removeprefix("bench_")
        for name, samples in times.items():
            other = statistics.median(samples[warmup:])
            budget = (budgets or {}).get(name)
            row = Row(suite, case, median, low, high, name, other, median / other, budget)
            request.config.stash[ROWS].append(row)
            benchmark.extra_info[f"ratio to {name}"] = row.ratio

    return run


def read_pass(*tensors: torch.Tensor) -> Call:
    """A sum over as many bytes as the tensors hold, as fast as torch reads memory."""
    size = sum(x.numel() * x.element_size() for x in tensors)
    buffer = torch.ones((size + 3) // 4, device=tensors[0].device)
    return buffer.sum


# --- the table ----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    return {
        "pama_ops": pama_ops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": getattr(pama_ops._library.extension, "compiler", "none"),
    }


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
    header = ("case", "median us", "quartiles", "bound", "its us", "ratio", "budget", "")
    lines = [header]
    for row in rows:
        met = "" if row.budget is None else "met" if row.ratio <= row.budget else "MISSED"
        lines.append(
            (
                f"{row.suite}: {row.case}",
                f"{row.median * 1e6:.1f}",
                f"{row.low * 1e6:.1f}..{row.high * 1e6:.1f}",
                row.bound,
                f"{row.bound_median * 1e6:.1f}",
                times(row.ratio),
                "" if row.budget is None else times(row.budget),
                met,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = (0, 3, 7)
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
