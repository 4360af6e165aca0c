"""Gram matrices and combinations of gradients against what memory allows and what users run today.

    pytest benchmarks/bench_gram.py benchmarks/bench_combine.py --benchmark-only

`cat` is torch.cat of every objective's gradients and J @ J.mT; `dots` a dot product a pair and
parameter. Gradients fill at least 160 MB, beyond every cache.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare, read_pass
from torch import Tensor

import pama_ops as po
from pama_ops import _schemas

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BYTES = 240_000_000
BUDGETS = {2: 1.2, 4: 1.2, 8: 1.2, 16: 1.4, 32: 1.8}


def transformer_shapes(layers: int, width: int) -> list[tuple[int, ...]]:
    """A GPT-2's, without the embeddings."""
    layer: list[tuple[int, ...]] = [
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return layers * layer


def shapes_of(kind: str, columns: int) -> list[tuple[int, ...]]:
    if kind == "one":
        return [(columns,)]
    if kind == "small":
        return [(max(columns // 10_000, 1),)] * 10_000
    layers = 12
    width = max(16, int((columns / layers / 12) ** 0.5) // 16 * 16)
    return transformer_shapes(layers, width)


def draw(
    kind: str, n: int, dtype: torch.dtype, device: str, size: int = BYTES
) -> list[list[Tensor]]:
    columns = size // n // dtype.itemsize
    return [
        [torch.randn(s, device=device).to(dtype) for s in shapes_of(kind, columns)]
        for _ in range(n)
    ]


def cat_gram(grads: list[list[Tensor]]) -> Tensor:
    j = torch.stack([torch.cat([x.flatten() for x in row]) for row in grads])
    return j @ j.mT


def pair_dots(grads: list[list[Tensor]]) -> Tensor:
    n = len(grads)
    out = torch.empty(n, n)
    for i in range(n):
        for j in range(i, n):
            pairs = zip(grads[i], grads[j], strict=True)
            out[i, j] = out[j, i] = sum(torch.dot(a.flatten(), b.flatten()) for a, b in pairs)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [2, 4, 8, 16, 32])
def test_gram(compare: Compare, n, dtype, threads, device):
    grads = draw("transformer", n, dtype, device)
    flat = [x for row in grads for x in row]
    budget = BUDGETS[n] if dtype == torch.float32 else {2: 1.6, 4: 1.6, 8: 1.6}.get(n)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(
            f"gram, n = {n}, {dtype}, {threads} threads, {device}",
            lambda: _schemas.gram(flat, n),
            {"read pass": read_pass(*flat)},
            {"read pass": budget} if budget and threads == 2 else None,
            rounds=15,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["one", "transformer", "small"])
def test_gram_against_what_users_run(compare: Compare, kind, device):
    grads = draw(kind, 4, torch.float32, device)
    flat = [x for row in grads for x in row]
    bounds = {"read pass": read_pass(*flat), "cat": lambda: cat_gram(grads)}
    if kind == "transformer":
        bounds["dots"] = lambda: pair_dots(grads)
    compare(
        f"gram of lists ({kind}), n = 4, {device}",
        lambda: po.gram(grads),
        bounds,
        {"cat": 0.2} if kind == "transformer" else None,
        rounds=9,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("columns", [10**4, 10**5, 10**6, 10**7])
def test_gram_by_size(compare: Compare, columns, device):
    grads = draw("transformer", 4, torch.float32, device, size=16 * columns)
    flat = [x for row in grads for x in row]
    compare(
        f"gram, n = 4, d = {columns}, {device}",
        lambda: _schemas.gram(flat, 4),
        {"read pass": read_pass(*flat), "cat": lambda: cat_gram(grads)},
        rounds=15,
    )
