"""Gram matrices of gradients against a read pass, and against what users run today.

    pytest benchmarks/bench_gram.py --benchmark-only

gradient_cases.py says which gradients, gradient_peers.py what the peers are. TorchJD's jac_to_grad
includes weights and combination, which cannot be had apart; bench_step.py has that of ours.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from gradient_cases import BESIDE_PEERS, ROWS, Case
from gradient_peers import Gradients, cat_gram, pair_dots, torchjd_into_grad
from memory_passes import copy_pass, read_pass
from timing import Call

import pama_ops as po

BUDGETS = {
    torch.float32: {2: 1.2, 4: 1.2, 8: 1.2, 16: 1.4, 32: 1.8},
    torch.bfloat16: {2: 1.6, 4: 1.6, 8: 1.6},
}
AGAINST_CAT = 0.2  # at n = 4
CASES = [
    *BESIDE_PEERS,
    *(Case(n, threads=1) for n in ROWS),
    *(Case(n, torch.bfloat16, threads) for n in ROWS for threads in (2, 1)),
    *(Case(n, dtype) for dtype in (torch.float16, torch.float64) for n in (4, 16)),
]


def peers_of(grads: Gradients) -> dict[str, Call]:
    flat = [x for row in grads for x in row]
    peers = {
        "copy": copy_pass(*flat),
        "cat, J @ J.T": lambda: cat_gram(grads),
        "dots": lambda: pair_dots(grads),
        **torchjd_into_grad(grads),
    }
    peers.pop("TorchJD, no cat", None)
    return peers


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gram(compare: Compare, threads, device: str, case: Case) -> None:
    threads(case.threads)
    grads = case.draw(device)
    flat = [x for row in grads for x in row]
    budget = BUDGETS.get(case.dtype, {}).get(case.n) if case.budgeted else None
    budgets = {} if budget is None else {"read pass": budget}
    if case in BESIDE_PEERS and case.budgeted and case.n == 4:
        budgets["cat, J @ J.T"] = AGAINST_CAT
    compare(
        f"{case}, {device}",
        lambda: po.gram(grads),
        {"read pass": read_pass(*flat)},
        budgets,
        rounds=15,
        peers=peers_of(grads) if case in BESIDE_PEERS else None,
    )
