"""What the GPU benchmarks share: rounds, what a call costs besides time, and a file of results.

What the caches hold is flushed before each round; medians and quartiles are kept. The same scripts
run on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from provenance import where  # noqa: E402
from timing import Call, sample, seconds  # noqa: E402

SHARE = 0.6  # of the memory; what needs more is left out, and said so


def memory(share: float = SHARE) -> int:
    """Bytes that inputs, outputs and scratch may fill."""
    if torch.cuda.is_available():
        return int(share * torch.cuda.get_device_properties(0).total_memory)
    pages = next(x for x in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in x)
    return int(share * 1024 * int(pages.split()[1]))


class Bench:
    """Times calls on one device and writes each row of results as it comes."""

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--results", type=Path, help="write JSON here, row by row")
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--seconds", type=float, default=0.25, help="spent on each case")
        parser.add_argument("--models", nargs="*", help="only these")
        parser.add_argument("--objectives", nargs="*", type=int, help="only these n")
        parser.add_argument("--quick", action="store_true", help="only what a first look needs")
        parser.add_argument(
            "--dry", action="store_true", help="on little and on the CPU, to try the scripts"
        )
        self.arguments = parser.parse_args()
        if self.arguments.dry:
            self.arguments.device, self.arguments.seconds = "cpu", 0.0
        self.device = torch.device(self.arguments.device)
        self.on_gpu = self.device.type == "cuda"
        self.rows: list[dict[str, Any]] = []
        self.where = where()
        self.flushed = torch.empty(256 << 20 if self.on_gpu else 1, dtype=torch.uint8).to(
            self.device
        )

    def time(self, call: Call, *, graph: bool = False, calls: int = 1) -> dict[str, Any]:
        """Median and quartiles of a call in milliseconds; of a captured graph's replay if asked.

        A graph can hold several calls, whose time is divided by their number: the start of a replay
        takes some microseconds, which are no part of a kernel as short as that.
        """
        call()
        if graph and self.on_gpu:
            call = self._captured(call, calls)
        else:
            calls = 1

        def read() -> float:
            self.flushed.zero_()
            return seconds(call, self.device) / calls

        samples = sample(read, least=5, most=200, budget=self.arguments.seconds)
        low, median, high = (1e3 * x for x in statistics.quantiles(samples, n=4))
        result = {"ms": median, "low": low, "high": high, "rounds": len(samples)}
        return {**result, "calls a graph": calls} if calls > 1 else result

    def _captured(self, call: Call, calls: int) -> Call:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.kept = [call() for _ in range(calls)]
        return graph.replay

    def copy_rate(self) -> float:
        """Bytes read plus bytes written per second by a large copy: the ceiling of all else."""
        most = 4 << 30 if self.on_gpu else 1 << 28
        size = min(memory() // 4, 1 << 20 if self.arguments.dry else most) // 4
        source = torch.randn(size, device=self.device)
        target = torch.empty_like(source)
        rate = 8 * size / (self.time(lambda: target.copy_(source))["ms"] / 1e3)
        self.where["copy GB/s"] = rate / 1e9
        print(f"copy of {4 * size / 1e9:.2f} GB: {rate / 1e9:.1f} GB/s read and written")
        return rate

    def extra_bytes(self, call: Call) -> int | None:
        """The peak of memory beyond what was there before; None on a CPU, where nothing counts."""
        if not self.on_gpu:
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def host_syncs(self, call: Call) -> int | None:
        """How often a call makes the host wait for the GPU."""
        if not self.on_gpu:
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing" in str(w.message) for w in caught)

    def launches(self, call: Call) -> int | None:
        """Kernels and copies that a call queues on the GPU."""
        if not self.on_gpu:
            return None
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        return sum(
            event.count
            for event in profile.key_averages()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )

    def add(self, row: dict[str, Any]) -> None:
        """Print a row and write all so far."""
        self.rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items() if k not in ("low", "high", "rounds")),
              flush=True)  # fmt: skip
        self.write()

    def write(self, **more: object) -> None:
        path = self.arguments.results
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"where": self.where, "rows": self.rows, **more}
            part = path.with_suffix(
                ".part"
            )  # a run that is killed while it writes keeps what it had
            part.write_text(json.dumps(content, indent=1) + "\n")
            part.replace(path)

    def draw(self, n: int, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[list[Tensor]]:
        """Normal gradients, never zeros, on which hardware can run faster."""
        return [[torch.randn(s, device=self.device, dtype=dtype) for s in shapes] for _ in range(n)]
