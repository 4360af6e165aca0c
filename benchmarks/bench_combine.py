"""Combinations of gradients against n reads and a write of their size.

    pytest benchmarks/bench_combine.py --benchmark-only

cells.py says which gradients. The bound reads as many bytes as n gradients hold and writes one
gradient. Peers: the weighted sum by torch's foreach functions, w @ J of a matrix that has been
concatenated before, and a copy of the n gradients.
"""

from __future__ import annotations

import pytest
import torch
from cells import BY_ROWS, BY_SHAPES, BY_SIZE, DEVICES, ROWS, Cell
from conftest import Call, Compare, copy_pass, read_pass
from peers import foreach_combine, jacobian

import pama_ops as po

BUDGET = 1.3
OTHERS = [
    *(Cell(n, threads=1) for n in (4, 32)),
    *(Cell(n, torch.bfloat16) for n in ROWS),
    Cell(4, torch.bfloat16, threads=1),
    *(Cell(4, dtype) for dtype in (torch.float16, torch.float64)),
]


def reads_and_write(out: list[torch.Tensor], *read: torch.Tensor) -> Call:
    """Bytes of `read` read and bytes of `out` written, each as fast as torch does."""
    reading, blank = read_pass(*read), torch.cat([x.flatten() for x in out])

    def bound() -> None:
        reading()
        blank.zero_()

    return bound


def run(compare: Compare, cell: Cell, device: str, *, peers: bool) -> None:
    grads = cell.draw(device)
    flat = [x for row in grads for x in row]
    out = [torch.empty_like(x) for x in grads[0]]
    weights = torch.rand(cell.n, device=device)
    numbers, theirs = weights.tolist(), {}
    if peers:
        j, w = jacobian(grads), weights.to(cell.dtype)
        theirs = {
            "copy": copy_pass(*flat),
            "foreach": lambda: foreach_combine(grads, numbers),
            "w @ J": lambda: w @ j,
        }
    compare(
        f"{cell}, {device}",
        lambda: po.combine(grads, weights, out=out),
        {"n reads + 1 write": reads_and_write(out, *flat), "read pass": read_pass(*flat)},
        {"n reads + 1 write": BUDGET} if cell.budgeted else None,
        rounds=15,
        peers=theirs,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", OTHERS, ids=str)
def test_combine(compare: Compare, threads, cell, device):
    threads(cell.threads)
    run(compare, cell, device, peers=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", [*BY_ROWS, *BY_SIZE, *BY_SHAPES], ids=str)
def test_combine_against_what_users_run(compare: Compare, threads, cell, device):
    threads(cell.threads)
    run(compare, cell, device, peers=True)
