"""Combinations of gradients against n reads and a write of their size.

    pytest benchmarks/bench_combine.py --benchmark-only

The bound reads as many bytes as n gradients hold and writes one gradient. `stack` is the weighted
sum of stacked gradients, `foreach` torch._foreach_mul and add, which read and write each term.
"""

from __future__ import annotations

import pytest
import torch
from bench_gram import DEVICES, draw
from conftest import Compare, read_pass

import pama_ops as po
from pama_ops import _schemas


def foreach(grads, weights):
    total = torch._foreach_mul(grads[0], weights[0])
    for row, w in zip(grads[1:], weights[1:], strict=True):
        torch._foreach_add_(total, torch._foreach_mul(row, w))
    return total


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [2, 4, 8, 16, 32])
def test_combine(compare: Compare, n, dtype, device):
    grads = draw("transformer", n, dtype, device)
    flat = [x for row in grads for x in row]
    out = [torch.empty_like(x) for x in grads[0]]
    weights = torch.rand(n, device=device)
    numbers = weights.tolist()
    read, blank = read_pass(*flat), torch.empty(sum(x.numel() for x in out), dtype=dtype)
    blank = blank.to(device)

    def bound():
        read()
        blank.zero_()

    compare(
        f"combine, n = {n}, {dtype}, {device}",
        lambda: _schemas.combine_into(out, flat, weights, False),
        {"n reads + 1 write": bound, "foreach": lambda: foreach(grads, numbers)},
        {"n reads + 1 write": 1.3},
        rounds=15,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_gram_weights_and_combination(compare: Compare, n, device):
    grads = draw("transformer", n, torch.float32, device)
    flat = [x for row in grads for x in row]
    read, blank = read_pass(*flat), torch.empty(sum(x.numel() for x in grads[0]))
    blank = blank.to(device)

    def bound():
        read()
        read()
        blank.zero_()

    compare(
        f"gram, min_norm, combine, n = {n}, {device}",
        lambda: po.combine(grads, po.min_norm(po.gram(grads))),
        {"2n reads + 1 write": bound},
        rounds=15,
    )
