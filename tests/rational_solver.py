"""min cᵀGc over the simplex in exact rational arithmetic, by enumerating supports."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import combinations

Matrix = list[list[Fraction]]


def rational(rows: Iterable[Iterable[float]]) -> Matrix:
    return [[Fraction(x) for x in row] for row in rows]


def solve(matrix: Matrix, right: list[Fraction]) -> list[Fraction] | None:
    """Gauss-Jordan elimination; None for a singular matrix."""
    n = len(matrix)
    a = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for k in range(n):
        pivot = next((i for i in range(k, n) if a[i][k] != 0), None)
        if pivot is None:
            return None
        a[k], a[pivot] = a[pivot], a[k]
        a[k] = [x / a[k][k] for x in a[k]]
        for i in range(n):
            if i != k and a[i][k] != 0:
                factor = a[i][k]
                a[i] = [x - factor * y for x, y in zip(a[i], a[k], strict=True)]
    return [row[n] for row in a]


def affine_minimiser(gram: Matrix, support: Iterable[int]) -> list[Fraction] | None:
    """The minimiser of cᵀGc over Σ_S c = 1, or None where it is not unique."""
    s = list(support)
    one = Fraction(1)
    bordered = [[*(gram[i][j] for j in s), one] for i in s] + [[one] * len(s) + [Fraction(0)]]
    solution = solve(bordered, [Fraction(0)] * len(s) + [one])
    if solution is None:
        return None
    c = [Fraction(0)] * len(gram)
    for i, x in zip(s, solution, strict=False):
        c[i] = x
    return c


def value(gram: Matrix, c: list[Fraction]) -> Fraction:
    """cᵀGc / (Σ c)², which does not mind a sum that rounding moved off 1."""
    n = range(len(c))
    return sum(c[i] * gram[i][j] * c[j] for i in n for j in n) / sum(c) ** 2


def is_optimal(gram: Matrix, c: list[Fraction]) -> bool:
    slope = [sum(g * x for g, x in zip(row, c, strict=True)) for row in gram]
    return min(c) >= 0 and min(slope) >= sum(s * x for s, x in zip(slope, c, strict=True))


def optimum(gram: Matrix, guess: Iterable[int] | None = None) -> Fraction:
    """The minimum. By Carathéodory some support on which the minimiser is unique attains it."""
    n = len(gram)
    if guess is not None:
        c = affine_minimiser(gram, guess)
        if c is not None and is_optimal(gram, c):
            return value(gram, c)
    best = min(gram[i][i] for i in range(n))
    for size in range(2, n + 1):
        for support in combinations(range(n), size):
            c = affine_minimiser(gram, support)
            if c is not None and min(c) >= 0:
                best = min(best, value(gram, c))
    return best


def projection(columns: Matrix, target: list[Fraction]) -> list[Fraction]:
    """The nearest vector to `target` in the span of `columns`, which may depend on each other."""
    basis: Matrix = []

    def along_basis(x: list[Fraction]) -> list[Fraction]:
        y = [Fraction(0)] * len(x)
        for b in basis:
            share = sum(p * q for p, q in zip(b, x, strict=True)) / sum(p * p for p in b)
            y = [p + share * q for p, q in zip(y, b, strict=True)]
        return y

    for x in columns:
        rest = [p - q for p, q in zip(x, along_basis(x), strict=True)]
        if any(rest):
            basis.append(rest)
    return along_basis(target)
