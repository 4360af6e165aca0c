"""Sums and products whose bits are the same on every processor and for every number of threads.

A sum rounds by its order, which libraries choose by the processor. Here numbers are first cut into
parts of so few bits that each sum of products of parts is exact, in any order and with any fused
operation, so that a library's matrix product is one of them (Ozaki, Ogita, Oishi and Rump, 2012).
The few exact sums that are left are added in a fixed order, with their errors. Elementwise sums,
products, quotients and roots are those of IEEE 754 wherever torch runs.
"""

from __future__ import annotations

import functools
import math

import mpmath
import torch
from torch import Tensor


@functools.cache
def _table() -> Tensor:
    powers = [math.ldexp(1.0, k) for k in range(-1022, 1023)]
    return torch.tensor(powers, dtype=torch.float64, device="cpu")


def powers_of_two(exponents: Tensor) -> Tensor:
    """2^k exactly, for |k| <= 1022; a vectorised power promises no such thing."""
    return _table()[exponents.long() + 1022]


def _shifted(x: Tensor, exponents: Tensor) -> Tensor:
    """x 2^k for any k; below the normal numbers to the last of their bits."""
    while bool(exponents.any()):
        step = exponents.clamp(-1000, 1000)
        x, exponents = x * powers_of_two(step), exponents - step
    return x


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` with each row scaled by a power of two to below 1, and the exponents [..., rows, 1]."""
    largest = x.abs().amax(-1, keepdim=True)
    exponents = torch.where(largest > 0, torch.frexp(largest).exponent, 0)
    return _shifted(x, -exponents), exponents


def _parts(x: Tensor, bits: int) -> list[Tensor]:
    """Numbers below 1 as a sum of integers below 2^bits, times 2^(−bits k) for the k-th part."""
    parts = []
    while bool(x.any()):
        x = x * 2.0**bits
        parts.append(x.trunc())
        x = x - parts[-1]
    return parts


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B in float64, correct to an ulp of itself or 2^-90 of Σ_k max |a_i| max |b_j|."""
    a, b = a.double().cpu(), b.double().cpu()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("exactly.product takes finite numbers")
    if 0 in (*a.shape, *b.shape):
        return a @ b
    # k products of two parts stay below 2^53.
    bits = (53 - math.ceil(math.log2(a.shape[-1]))) // 2
    a, rows = _scaled(a)
    b, columns = _scaled(b.mT)
    lefts, rights = _parts(a, bits), _parts(b, bits)
    total = error = torch.zeros((), dtype=torch.float64)
    levels = range(min(len(lefts) + len(rights) - 1, math.ceil(106 / bits) + 1))
    for level in levels:
        for i in range(max(0, level - len(rights) + 1), min(level + 1, len(lefts))):
            term = lefts[i] @ rights[level - i].mT * 2.0 ** (-bits * (level + 2))
            total, rounding = two_sum(total, term)
            error = error + rounding
    exponents = rows + columns.mT
    return _shifted((total + error).broadcast_to(exponents.shape), exponents)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum, and what it lacks of the sum (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def gram(j: Tensor) -> Tensor:
    """J Jᵀ, symmetric to the bit."""
    upper = product(j, j.mT).triu()
    return upper + upper.triu(1).mT


def times(a: Tensor, x: Tensor) -> Tensor:
    """A x of vectors."""
    return product(a, x[..., None])[..., 0]


def dot(x: Tensor, y: Tensor) -> Tensor:
    return product(x[..., None, :], y[..., None])[..., 0, 0]


def by_halves(x: Tensor) -> Tensor:
    """Σ x over the last dimension, rounded in each of its log₂ d steps, but everywhere alike."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        rest = torch.nn.functional.pad(x[..., half:], (0, 2 * half - x.shape[-1]))
        x = x[..., :half] + rest
    return x[..., 0] if x.shape[-1] else x.new_zeros(x.shape[:-1])


def total(x: Tensor) -> Tensor:
    """Σ x over the last dimension."""
    return dot(x, torch.ones_like(x, dtype=torch.float64))


def norm(x: Tensor) -> Tensor:
    """The Euclidean norms of the last dimension, without underflow or overflow of squares."""
    scaled, exponents = _scaled(x.double().cpu())
    return _shifted(dot(scaled, scaled).sqrt(), exponents[..., 0])


def eigen(g: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in ascending order, and eigenvectors, of a symmetric matrix: rounded once."""
    with mpmath.workdps(30):
        values, vectors = mpmath.eigsy(mpmath.matrix(g.tolist()))
        rows = [[float(x) for x in row] for row in vectors.tolist()]
        values = [float(x) for x in values]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)


def condition(g: Tensor) -> float:
    """The condition number of a symmetric matrix, inf unless it is positive definite."""
    values, _ = eigen(g)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf
