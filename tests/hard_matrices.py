"""Gram matrices on which solvers fail, from an independent generator, and a judge of what they say.

Drawn by python's own generator, as integers, dyadic numbers and decimal fractions; inner products
are summed exactly and rounded once. Nothing here depends on the processor.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

Rows = list[list[float]]
U = 2.0**-53


def _normal(draw: random.Random) -> float:
    """About normal, by the sum of twelve: no libm."""
    return math.fsum(draw.random() for _ in range(12)) - 6


def _power(draw: random.Random, low: float, high: float) -> float:
    """A power of ten between 10^low and 10^high."""
    return float(f"{1 + 9 * draw.random()}e{draw.randint(int(low), int(high) - 1)}")


def _gaussian(draw: random.Random, n: int) -> Rows:
    d = draw.randint(1, 2 * n)
    return [[_normal(draw) for _ in range(d)] for _ in range(n)]


def _integers_times_basis(draw: random.Random, n: int) -> Rows:
    """Of rank below n, in exact arithmetic; some of it on rows of six decades."""
    rank, most, d = draw.randint(1, max(1, n - 1)), draw.randint(1, 3), draw.randint(1, 2 * n)
    basis = [[_normal(draw) for _ in range(d)] for _ in range(rank)]
    scaled = draw.random() < 0.5
    rows = []
    for _ in range(n):
        share = [draw.randint(-most, most) * (_power(draw, -6, 0) if scaled else 1)] * rank
        share = [s and s / abs(s) * abs(share[0]) * draw.randint(-most, most) for s in share]
        rows.append(
            [sum(s * row[k] for s, row in zip(share, basis, strict=True)) for k in range(d)]
        )
    return rows


def _copies(draw: random.Random, n: int) -> Rows:
    """Duplicates, opposites, multiples."""
    rows = _gaussian(draw, n)
    for i in range(1, n):
        if draw.random() < 0.5:
            scale = draw.choice([1.0, -1.0, 3 * draw.random(), -3 * draw.random()])
            rows[i] = [scale * x for x in draw.choice(rows[:i])]
    return rows


def _tiny_angles(draw: random.Random, n: int) -> Rows:
    """One line but for noise, both ways along it or one."""
    d, noise, both = draw.randint(1, 2 * n), _power(draw, -9, 0), draw.random() < 0.5
    line = [_normal(draw) for _ in range(d)]
    rows = []
    for _ in range(n):
        scale = draw.choice([1.0, 3 * draw.random() + 0.01]) * (
            -1 if both and draw.random() < 0.5 else 1
        )
        rows.append([scale * (x + noise * _normal(draw)) for x in line])
    return rows


def _orthogonal(draw: random.Random, n: int) -> Rows:
    """Along the axes, in lengths of nine decades; some a little off."""
    d = draw.randint(max(1, n // 2), n + 1)
    rows = []
    for _ in range(n):
        scale = draw.choice([1.0, -1.0]) * draw.choice(
            [_power(draw, -6, 0), float(f"1e-{draw.randint(0, 9)}"), 2.0 ** -draw.randint(0, 30)]
        )
        row = [0.0] * d
        row[draw.randrange(d)] = scale
        if draw.random() < 0.2:
            row[draw.randrange(d)] = scale * float(f"1e-{draw.randint(0, 9)}")
        rows.append(row)
    return rows


def _near_stationary_integers(draw: random.Random, n: int) -> Rows:
    """Integers that add up to 0, moved by multiples of a power of two."""
    d, move = draw.randint(1, 2 * n), 2.0 ** -draw.randint(3, 40)
    rows = [[float(draw.randint(-3, 3)) for _ in range(d)] for _ in range(n - 1)]
    rows.append([-sum(row[k] for row in rows) for k in range(d)])
    if draw.random() < 0.7:
        rows = [
            [x + (move * draw.randint(-2, 2) if draw.random() < 0.5 else 0) for x in row]
            for row in rows
        ]
    if draw.random() < 0.4:
        scales = [draw.randint(1, 4) for _ in rows]
        rows = [[s * x for x in row] for s, row in zip(scales, rows, strict=True)]
    return rows


def _near_stationary(draw: random.Random, n: int) -> Rows:
    rows, share = _gaussian(draw, n), [draw.random() for _ in range(n)]
    apart, total = _power(draw, -12, -1), math.fsum(share)
    for k in range(len(rows[0])):
        mean = math.fsum(s * row[k] for s, row in zip(share, rows, strict=True)) / total
        mean += apart * _normal(draw)
        for row in rows:
            row[k] -= mean
    return rows


def _twelve_decades(draw: random.Random, n: int) -> Rows:
    return [
        [scale * x for x in row] for row in _gaussian(draw, n) for scale in [_power(draw, -12, 0)]
    ]


def _integers_of_nine_decades(draw: random.Random, n: int) -> Rows:
    d = draw.randint(1, 2 * n)
    return [
        [draw.randint(-2, 2) * scale for _ in range(d)]
        for scale in (float(f"1e-{draw.randint(0, 9)}") for _ in range(n))
    ]


def _integers_and_noise(draw: random.Random, n: int) -> Rows:
    d, most, noise = draw.randint(1, 2 * n), draw.randint(1, 3), float(f"1e-{draw.randint(4, 9)}")
    rows = [[float(draw.randint(-most, most)) for _ in range(d)] for _ in range(n)]
    if n > 1 and draw.random() < 0.5:
        i, j = draw.sample(range(n), 2)
        scale = draw.randint(-2, 2)
        rows[i] = [scale * x for x in rows[j]]
    return [[x + noise * _normal(draw) for x in row] for row in rows]


def _graded(draw: random.Random, n: int) -> Rows:
    """Coordinates that fall in length, so that G is ill-conditioned."""
    rows, ratio = _gaussian(draw, n), _power(draw, -4, 0)
    return [[x * ratio**k for k, x in enumerate(row)] for row in rows]


FAMILIES: dict[str, Callable[[random.Random, int], Rows]] = {
    "gaussian": _gaussian,
    "integers times a basis": _integers_times_basis,
    "copies": _copies,
    "tiny angles": _tiny_angles,
    "orthogonal": _orthogonal,
    "near-stationary integers": _near_stationary_integers,
    "near-stationary": _near_stationary,
    "twelve decades": _twelve_decades,
    "integers of nine decades": _integers_of_nine_decades,
    "integers and noise": _integers_and_noise,
    "graded": _graded,
}

# How G came to be, and the dtype that it has.
ORIGINS = {
    "float64": torch.float64,
    "rows in float32": torch.float64,
    "G in float32": torch.float32,
    "G in float16": torch.float16,
    "G in bfloat16": torch.bfloat16,
}


def gram_of(rows: Rows) -> Rows:
    """J Jᵀ, each entry rounded once."""
    exact = [[Fraction(x) for x in row] for row in rows]
    n = len(rows)
    gram = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            total = sum((a * b for a, b in zip(exact[i], exact[j], strict=True)), Fraction(0))
            gram[i][j] = gram[j][i] = float(total)
    return gram


def draw_matrix(family: str, origin: str, n: int, seed: int) -> Tensor:
    """G, n x n, in its origin's dtype."""
    rows = FAMILIES[family](random.Random(f"{family} {origin} {n} {seed}"), n)
    if origin == "rows in float32":
        rows = [[struct.unpack("f", struct.pack("f", x))[0] for x in row] for row in rows]
    dtype = ORIGINS[origin]
    if dtype == torch.float16:
        # Within its range, and rows that it would hold as subnormal numbers only left out.
        largest = max(abs(x) for row in rows for x in row) or 1.0
        unit = 2.0 ** -math.frexp(largest)[1] / len(rows[0])
        rows = [[x * unit for x in row] for row in rows]
        kept = [math.fsum(x * x for x in row) >= torch.finfo(dtype).smallest_normal for row in rows]
        rows = [[x * keep for x in row] for keep, row in zip(kept, rows, strict=True)]
    return torch.tensor(gram_of(rows), dtype=torch.float64).to(dtype)


def signs(n: int, seed: int) -> Tensor:
    """A symmetric matrix of ±1."""
    draw = random.Random(seed)
    below = [[draw.choice([-1, 1]) for _ in range(i + 1)] for i in range(n)]
    return torch.tensor([[below[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)])


# --- the judge: in exact arithmetic ---------------------------------------------------------------


class Judge:
    """Slopes and squares of a matrix and weights as they are, in rational numbers."""

    def __init__(self, gram: Tensor) -> None:
        self.gram = [[Fraction(x) for x in row] for row in gram.double().cpu().tolist()]
        self.norms = [math.sqrt(max(float(self.gram[i][i]), 0.0)) for i in range(len(self.gram))]

    def slopes(self, weights: list[Fraction]) -> list[Fraction]:
        return [sum((g * w for g, w in zip(row, weights, strict=True)), Fraction(0))
                for row in self.gram]  # fmt: skip

    def square(self, weights: list[Fraction]) -> Fraction:
        slopes = self.slopes(weights)
        return sum((w * s for w, s in zip(weights, slopes, strict=True)), Fraction(0))

    def size(self, weights: list[Fraction]) -> float:
        """Σ |w_i| ‖g_i‖, which rounding is relative to."""
        return math.fsum(abs(float(w)) * r for w, r in zip(weights, self.norms, strict=True))


def exact(weights: Tensor) -> list[Fraction]:
    return [Fraction(x) for x in weights.double().cpu().tolist()]


def gap_of_min_norm(gram: Tensor, weights: Tensor) -> float:
    """The duality gap, relative to the largest entry of the diagonal."""
    judge, w = Judge(gram), exact(weights)
    slopes = judge.slopes(w)
    value = sum((a * s for a, s in zip(w, slopes, strict=True)), Fraction(0))
    largest = max(judge.norms) ** 2
    return float(value - min(slopes)) / largest if largest else 0.0


def worst_of_cone(gram: Tensor, weights: Tensor, lower: Tensor) -> float:
    """By how much the conditions of min vᵀGv over v >= lower fail, in units of ‖g_i‖ Σ v ‖g‖:
    slopes below 0, and slopes above 0 where v > lower."""
    judge, v, bound = Judge(gram), exact(weights), exact(lower)
    slopes, size = judge.slopes(v), judge.size(v)
    if size == 0:
        return 0.0
    each = [-float(s) / r / size for s, r in zip(slopes, judge.norms, strict=True) if r > 0]
    beyond = (max(a - b, Fraction(0)) * s for a, b, s in zip(v, bound, slopes, strict=True))
    return max(0.0, *each, float(sum(beyond, Fraction(0))) / size**2)


def worst_of_cagrad(
    gram: Tensor, weights: Tensor, c: float, noise: float, shortest: Tensor
) -> tuple[float, float]:
    """How far the least slope falls short, and the radius goes beyond, in units of rounding.

    By weak duality each w on the simplex bounds min_i <g_i, d> by <g_w, g_0> + φ ‖g_w‖. Where
    ‖g_w‖² is within `noise` of 0 relative to (Σ w ‖g‖)², G does not tell it from 0: what is wanted
    there is that no slope is below that of w, or 0. Rounding leaves noise · Σ |w_i| ‖g_i‖ in a
    slope per length and its square in a square. `shortest`: min_norm's weights, one of the w.
    """
    judge = Judge(gram)
    n = len(judge.gram)
    mean = [Fraction(1, n)] * n
    inner = judge.slopes(mean)
    radius = Fraction(c) ** 2 * max(sum(inner, Fraction(0)) / n, Fraction(0))
    v = exact(weights)
    y = [max(a - b, Fraction(0)) for a, b in zip(v, mean, strict=True)]
    size = judge.size(v)
    if size == 0:
        return 0.0, 0.0

    def bound(w: list[Fraction]) -> float:
        total = sum(w, Fraction(0))
        along = float(sum((a * b for a, b in zip(w, inner, strict=True)), Fraction(0)) / total)
        square = float(judge.square(w) / total**2)
        if square > noise * (judge.size(w) / float(total)) ** 2:
            return along + math.sqrt(float(radius) * square)
        return min(along, 0.0)

    candidates = [[Fraction(int(i == k)) for i in range(n)] for k in range(n)]
    candidates.append(exact(shortest))
    if any(y):
        candidates.append(y)
    for i in range(n):
        for j in range(i):
            w = _shortest_of_two(judge, i, j)
            if w is not None:
                candidates.append(w)
    best = min(bound(w) for w in candidates)
    least = float(min(judge.slopes(v)))
    largest = max(judge.norms)
    short = (best - least) / (noise * size * largest + 1e-12 * abs(best))
    beyond = float(judge.square(y)) - float(radius) * (1 + 1e-9)
    return short, beyond / (noise * size**2)


def _shortest_of_two(judge: Judge, i: int, j: int) -> list[Fraction] | None:
    g = judge.gram
    apart = g[i][i] + g[j][j] - 2 * g[i][j]
    if apart <= 0:
        return None
    share = (g[j][j] - g[i][j]) / apart
    if not 0 < share < 1:
        return None
    w = [Fraction(0)] * len(g)
    w[i], w[j] = share, 1 - share
    return w
