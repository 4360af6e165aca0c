"""`python -m pama_ops bench`: the main ops beside what memory allows, in a minute.

A short look; `benchmarks/` holds the measurements that are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import pama_ops as po
from pama_ops._self_check import devices

Call = Callable[[], object]
BYTES = 200_000_000  # beyond the caches
ROUNDS = 11  # after two that do not count


def seconds(call: Call, device: torch.device) -> float:
    """How long a call takes, by the host's clock or, on a GPU, between two events of its stream.

    Events leave out how long the host takes to learn that the GPU is done. This is the one clock:
    `benchmarks/` reads it too.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


def cases(device: torch.device) -> list[tuple[str, Call, int]]:
    """What is timed: a name, a call, and the bytes that it has to read and write."""
    n, size = 4, BYTES // 16
    rows = [torch.randn(size, device=device) for _ in range(n)]
    out, flat = torch.empty_like(rows[0]), torch.cat(rows)
    target = torch.empty_like(flat)
    g = po.gram(rows)
    w = po.min_norm(g)
    objectives, b, t = 4, 64, 512
    advantages = torch.randn(objectives, b, t, device=device)
    mask = torch.ones(b, t, dtype=torch.bool, device=device)
    logp = -torch.rand(b, t, device=device)
    read, tokens = n * size * 4, objectives * b * t * 4

    def step() -> Tensor:
        weights = po.min_norm(po.gram(rows))
        po.combine(rows, weights, out=out)
        return weights

    return [
        ("copy", lambda: target.copy_(flat), 2 * read),
        ("read pass (sum)", flat.sum, read),
        (f"gram, n = {n}", lambda: po.gram(rows), read),
        ("combine", lambda: po.combine(rows, w, out=out), read + size * 4),
        ("gram, min_norm, combine", step, 2 * read + size * 4),
        ("min_norm", lambda: po.min_norm(g), 0),
        ("gae, N = 4, B = 64, T = 512", lambda: po.gae(advantages, advantages, mask), 4 * tokens),
        ("whiten", lambda: po.whiten(advantages, mask), 3 * tokens),
        ("pama_advantages", lambda: po.pama_advantages(advantages, mask), 3 * tokens),
        ("ppo_loss", lambda: po.ppo_loss(logp, logp, advantages[0], mask), 3 * b * t * 4),
    ]


def bench() -> None:
    """Print medians, and the rate at which memory was read and written as a share of a copy's."""
    for device in devices():
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        print(f"{name}, float32, {BYTES // 10**6} MB of gradients")
        print(f"{'':<32}{'us':>12}{'GB/s':>10}{'of copy':>10}")
        copy = 0.0
        for case, call, moved in cases(device):
            times = [seconds(call, device) for _ in range(ROUNDS + 2)]
            median = statistics.median(times[2:])
            rate = moved / median
            copy = copy or rate
            shares = f"{rate / 1e9:>10.1f}{rate / copy:>10.0%}" if moved else ""
            print(f"{case:<32}{median * 1e6:>12.1f}{shares}")
        print()
