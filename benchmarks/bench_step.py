"""The whole step from n gradients to `.grad`: Gram matrix, min_norm, combination.

    pytest benchmarks/bench_step.py --benchmark-only

gradient_cases.py says which gradients, gradient_peers.py what the peers are: cat, J @ J.T,
Frank-Wolfe on the host and w @ J; and TorchJD's jac_to_grad with MGDA, with the concatenation that
it makes by default and without. The bound is 2n reads and a write; the budget what those of gram
and combine add up to. The n backwards, which all of them need, are not in it.
"""

from __future__ import annotations

import pytest
import torch
from bench_combine import BUDGET
from bench_gram import BUDGETS
from conftest import Compare
from gradient_cases import BESIDE_PEERS, Case
from gradient_peers import on_host_into_grad, torchjd_into_grad
from memory_passes import read_pass, reads_and_write

import pama_ops as po

CASES = [
    *BESIDE_PEERS,
    *(Case(n, threads=1) for n in (4, 32)),
    *(Case(n, torch.bfloat16) for n in (4, 32)),
    *(Case(4, dtype) for dtype in (torch.float16, torch.float64)),
]


def budget_of(case: Case) -> float | None:
    """(gram's budget · n reads + combine's · (n reads + 1 write)) / (2n reads + 1 write), with a
    write counted as a read."""
    gram = BUDGETS.get(case.dtype, {}).get(case.n)
    if gram is None or not case.budgeted:
        return None
    return (gram * case.n + BUDGET * (case.n + 1)) / (2 * case.n + 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(compare: Compare, threads, device: str, case: Case) -> None:
    threads(case.threads)
    grads = case.draw(device)
    flat = [x for row in grads for x in row]
    out = [torch.empty_like(x) for x in grads[0]]
    budget, theirs = budget_of(case), {}
    if case in BESIDE_PEERS:
        theirs = {"cat, host, w @ J": on_host_into_grad(grads), **torchjd_into_grad(grads)}
    compare(
        f"{case}, {device}",
        lambda: po.combine(grads, po.min_norm(po.gram(grads)), out=out),
        {"2n reads + 1 write": reads_and_write(out, *flat, *flat), "read pass": read_pass(*flat)},
        None if budget is None else {"2n reads + 1 write": budget},
        rounds=15,
        peers=theirs,
    )
