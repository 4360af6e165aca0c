"""Gram matrices of gradients against a read pass, and against what users run today.

    pytest benchmarks/bench_gram.py --benchmark-only

cells.py says which gradients, peers.py what the peers are. TorchJD's jac_to_grad includes weights
and combination, which cannot be had apart; bench_step.py has that of ours.
"""

from __future__ import annotations

import pytest
import torch
from cells import BY_ROWS, BY_SHAPES, BY_SIZE, DEVICES, ROWS, Cell
from conftest import Call, Compare, copy_pass, read_pass
from peers import cat_gram, pair_dots, torchjd_into_grad

import pama_ops as po

BUDGETS = {
    torch.float32: {2: 1.2, 4: 1.2, 8: 1.2, 16: 1.4, 32: 1.8},
    torch.bfloat16: {2: 1.6, 4: 1.6, 8: 1.6},
}
AGAINST_CAT = 0.2  # at n = 4
OTHERS = [
    *(Cell(n, threads=1) for n in ROWS),
    *(Cell(n, torch.bfloat16, threads) for n in ROWS for threads in (2, 1)),
    *(Cell(n, dtype) for dtype in (torch.float16, torch.float64) for n in (4, 16)),
]


def peers_of(grads: list[list[torch.Tensor]]) -> dict[str, Call]:
    flat = [x for row in grads for x in row]
    peers = {
        "copy": copy_pass(*flat),
        "cat, J @ J.T": lambda: cat_gram(grads),
        "dots": lambda: pair_dots(grads),
        **torchjd_into_grad(grads),
    }
    peers.pop("TorchJD, no cat", None)
    return peers


def run(compare: Compare, cell: Cell, device: str, *, peers: bool) -> None:
    grads = cell.draw(device)
    flat = [x for row in grads for x in row]
    budget = BUDGETS.get(cell.dtype, {}).get(cell.n) if cell.budgeted else None
    budgets = {} if budget is None else {"read pass": budget}
    if peers and cell.budgeted and cell.n == 4:
        budgets["cat, J @ J.T"] = AGAINST_CAT
    compare(
        f"{cell}, {device}",
        lambda: po.gram(grads),
        {"read pass": read_pass(*flat)},
        budgets,
        rounds=15,
        peers=peers_of(grads) if peers else None,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", OTHERS, ids=str)
def test_gram(compare: Compare, threads, cell, device):
    threads(cell.threads)
    run(compare, cell, device, peers=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", [*BY_ROWS, *BY_SIZE, *BY_SHAPES], ids=str)
def test_gram_against_what_users_run(compare: Compare, threads, cell, device):
    threads(cell.threads)
    run(compare, cell, device, peers=True)
