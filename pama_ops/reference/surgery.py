"""Gradient surgery in a random order: pcgrad, gradvac."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pama_ops.reference.weighting import matrices, unit_of, weighting


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def random_order(seed: int, n: int, i: int) -> list[int]:
    """A permutation of all objectives but i, by Fisher & Yates on splitmix64's finaliser."""
    row = _mix((_mix(seed % 2**64) + i) % 2**64)
    order = [j for j in range(n) if j != i]
    for k in range(n - 2, 0, -1):
        other = _mix((row + k) % 2**64) % (k + 1)
        order[k], order[other] = order[other], order[k]
    return order


def _surgery(gram: Tensor, seed: Tensor, targets: Tensor, meet: Callable[..., float]) -> Tensor:
    """Σ_i of e_i changed by `meet(cur, j, G, targets, i)` along each e_j, j in a random order."""
    n, batch = gram.shape[-1], gram.shape[:-2]
    w = gram.new_full((*batch, n), math.nan, dtype=torch.float64)
    seeds = seed.expand(batch).flatten().tolist()
    rows = targets.expand(*batch, -1).reshape(-1, targets.shape[-1])
    for total, m, key, row in zip(w.view(-1, n), matrices(gram), seeds, rows, strict=True):
        if not bool(m.isfinite().all()):
            continue
        m = m / unit_of(m) ** 2
        total[:] = 0.0
        for i in range(n):
            cur = torch.zeros_like(total)
            cur[i] = 1.0
            for j in random_order(key, n, i):
                if float(m[j, j]) > 0:
                    cur[j] += meet(cur, j, m, row, i)
            total += cur
    return w


@weighting(vector=lambda _: 1)
def pcgrad(
    gram: Tensor, vector: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    """`vector` holds the seed, int64: [] or [..., 1]."""

    def meet(cur: Tensor, j: int, g: Tensor, _targets: Tensor, _i: int) -> float:
        return max(-float(g[j] @ cur), 0.0) / float(g[j, j])

    assert vector is not None
    seed = vector[..., 0] if vector.dim() else vector
    return _surgery(gram, seed, gram.new_empty(1), meet)


@weighting(vector=lambda n: 1 + n * n)
def gradvac(
    gram: Tensor, vector: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    """`vector` holds the bits of the seed and the n x n target cosines."""

    def meet(cur: Tensor, j: int, g: Tensor, targets: Tensor, i: int) -> float:
        target, length = float(targets[i * len(g) + j]), math.sqrt(max(float(cur @ g @ cur), 0.0))
        if length == 0:
            return 0.0
        norm = math.sqrt(float(g[j, j]))
        cosine = min(max(float(g[j] @ cur) / (length * norm), -1.0), 1.0)
        if cosine >= target:
            return 0.0
        rest = math.sqrt(1 - target**2)
        return length * (target * math.sqrt(1 - cosine**2) - cosine * rest) / (norm * rest)

    assert vector is not None
    seed = vector[..., 0].contiguous().view(torch.int64)
    return _surgery(gram, seed, vector[..., 1:], meet)
