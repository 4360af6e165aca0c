"""Combinations of gradients against n reads and a write of their size.

    pytest benchmarks/bench_combine.py --benchmark-only

gradient_cases.py says which gradients. The bound reads as many bytes as n gradients hold and writes
one gradient. Peers: the weighted sum by torch's foreach functions, w @ J of a matrix that has been
concatenated before, and a copy of the n gradients.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from gradient_cases import BESIDE_PEERS, ROWS, Case
from gradient_peers import foreach_combine, jacobian
from memory_passes import copy_pass, read_pass, reads_and_write

import pama_ops as po

BUDGET = 1.3
CASES = [
    *BESIDE_PEERS,
    *(Case(n, threads=1) for n in (4, 32)),
    *(Case(n, torch.bfloat16) for n in ROWS),
    Case(4, torch.bfloat16, threads=1),
    *(Case(4, dtype) for dtype in (torch.float16, torch.float64)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_combine(compare: Compare, threads, device: str, case: Case) -> None:
    threads(case.threads)
    grads = case.draw(device)
    flat = [x for row in grads for x in row]
    out = [torch.empty_like(x) for x in grads[0]]
    weights = torch.rand(case.n, device=device)
    numbers, theirs = weights.tolist(), {}
    if case in BESIDE_PEERS:
        j, w = jacobian(grads), weights.to(case.dtype)
        theirs = {
            "copy": copy_pass(*flat),
            "foreach": lambda: foreach_combine(grads, numbers),
            "w @ J": lambda: w @ j,
        }
    compare(
        f"{case}, {device}",
        lambda: po.combine(grads, weights, out=out),
        {"n reads + 1 write": reads_and_write(out, *flat), "read pass": read_pass(*flat)},
        {"n reads + 1 write": BUDGET} if case.budgeted else None,
        rounds=15,
        peers=theirs,
    )
