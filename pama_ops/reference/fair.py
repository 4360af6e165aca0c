"""Weights from α-fairness, G w = w^(−β): nash_mtl, fairgrad."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pama_ops.reference.cone import least_combination
from pama_ops.reference.weighting import Problem, of_each_matrix, weighting


@weighting()
@of_each_matrix
def nash_mtl(problem: Problem) -> Tensor:
    return _fair(problem, 1.0)


@weighting(1)
@of_each_matrix
def fairgrad(problem: Problem) -> Tensor:
    alpha = problem.options[0]
    return _fair(problem, 1 / alpha if alpha else math.inf)


def _fair(problem: Problem, beta: float) -> Tensor:
    g, n = problem.gram, len(problem.gram)
    if not 0 < beta < math.inf:
        return g.new_full((n,), math.nan)
    w, noise = g.new_zeros(n), 4 * n * 2.0**-52 + problem.rtol
    s = torch.nonzero(g.diagonal() > 0).flatten()
    if len(s) == 0:
        return w
    length = g.diagonal()[s].sqrt()
    cosines = (g[s][:, s] / length[:, None] / length).clamp(-1, 1).fill_diagonal_(1.0)
    v, stationary = _interior(cosines, length, beta, noise)
    if stationary:
        # No Gram matrix has a negative square: its entries' errors are what it shows, at least.
        shown = 4 * abs(float(v @ cosines @ v)) / float(v.sum()) ** 2
        w[s] = _on_the_face(cosines, length, beta, max(noise, shown))
    else:
        w[s] = v / length * problem.unit ** (-2 / (1 + beta))
    return w


def _exponents(beta: float) -> Iterator[float]:
    """From 1 to beta, by doublings or halvings."""
    at = 1.0
    yield at
    while at != beta:
        at = min(2 * at, beta) if beta > at else max(at / 2, beta)
        yield at


def _gain(x: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Σ weight (φ(x) − φ(1)) with φ' = x^(−β), for weight = the slopes at 1."""
    return (weight * (x.log() if beta == 1 else (x ** (1 - beta) - 1) / (1 - beta))).sum()


def _backtrack(q: Tensor, descent: float, share: Tensor, beta: float) -> float:
    """The first of 1 (or just inside the orthant), ½, ¼, … that brings a tenth of the descent, to
    the rounding of the change."""
    noise = 2.0**-52 * float(share @ q.abs())
    t = min(1.0, 0.99 / max(float(-q.min()), 1e-300))
    while t > 1e-12 and not -float(_gain(1 + t * q, share, beta)) <= t * (noise - 0.1 * descent):
        t /= 2
    return t


def _newton(inner: Tensor, diagonal: Tensor, residual: Tensor) -> Tensor:
    """(inner + diag(diagonal))⁻¹ residual for a positive semidefinite `inner`, by LDLᵀ. A pivot
    below its diagonal's second part, which only rounding makes it, is raised to that."""
    n = len(diagonal)
    lower, pivots = torch.eye(n, dtype=inner.dtype, device=inner.device), diagonal.clone()
    for r in range(n):
        row = torch.linalg.solve_triangular(
            lower[:r, :r], inner[r, :r, None], upper=False, unitriangular=True
        )[:, 0]
        lower[r, :r] = row / pivots[:r]
        pivots[r] += (inner[r, r] - row @ lower[r, :r]).clamp(min=0)
    x: Tensor = torch.linalg.solve_triangular(
        lower, residual[:, None], upper=False, unitriangular=True
    )
    x = torch.linalg.solve_triangular(lower.T, x / pivots[:, None], upper=True, unitriangular=True)
    return x[:, 0]


def _step(inner: Tensor, share: Tensor, q: Tensor, beta: float, descent: float) -> float:
    """Where the derivative along q falls to a quarter of −descent, or to rounding: by Newton's
    method within a bracket, halved where the weights near 0. None becomes 0, from which it would
    not rise again."""
    curvature = max(float(q @ inner @ q), 0.0)
    enough = max(0.25 * descent, 2.0**-52 * float(share @ q.abs()))
    steepest = max(-float(q.min()), 0.0)
    low, high = 0.0, (1 - 2.0**-20) / steepest if steepest > 0 else math.inf
    t = 1.0 if high > 1 else 0.99 * high
    for _ in range(100):
        along = 1 + t * q
        left = share * along**-beta
        slope = float((q * (share - left)).sum()) + t * curvature - descent
        if abs(slope) <= enough:
            return t
        if slope > 0:
            high = t
        else:
            low = t
        middle = 0.5 * (low + min(high, 2 * t))
        bend = beta * float((q * q * left / along).sum()) + curvature
        nearer = t - slope / bend if bend > 0 else math.inf
        t = nearer if low < nearer < (middle if slope > 0 else high) else middle
    return low


def _interior(g: Tensor, length: Tensor, beta: float, noise: float) -> tuple[Tensor, bool]:
    """Damped Newton, dense; v = w · length, and whether it proves stationarity instead."""
    v = torch.ones_like(length)
    for at in _exponents(beta):
        for _ in range(300):
            share = (v / length) ** (1 - at)
            value = float(v @ g @ v)
            if not math.isfinite(value + float(share.sum())):
                return torch.full_like(v, math.nan), False
            if value <= noise * float(v.sum()) ** 2:
                return v, True
            factor = (float(share.sum()) / value) ** (1 / (1 + at))
            v, share = v * factor, share * factor ** (1 - at)
            inner = g * v[:, None] * v
            residual = share - inner.sum(1)
            if bool((residual.abs() <= 4 * 2.0**-52 * (v * v.sum() + share)).all()):
                break
            q = _newton(inner, at * share, residual)
            if float(q.abs().max()) <= 2.0**-27:
                v = v * (1 + q)
                break
            t = _step(inner, share, q, at, float(residual @ q))
            # Where errors of G make it indefinite, the objective may fall without end.
            v = v * (1 + min(t, 2.0**20 / max(float(q.abs().max()), 2.0**-1000)) * q)
    return v, False


def _on_the_face(g: Tensor, length: Tensor, beta: float, noise: float) -> Tensor:
    """The largest Σ φ(w) over weights on the simplex of a zero combination, in a null space."""
    total = torch.zeros_like(length)
    nearest, least = total, math.inf
    for i in range(len(g)):
        if float(total[i]) > 0:
            continue
        x = least_combination(g, torch.eye(len(g), dtype=g.dtype, device=g.device)[i])
        x = x / x.sum()
        if float(x @ g @ x) < least:
            nearest, least = x, float(x @ g @ x)
        if float(x @ g @ x) <= noise:
            total = total + torch.where(x > noise, x, 0.0)
    w = (total if bool(total.any()) else nearest) / length
    w = w / w.sum()
    s = torch.nonzero(w > 0).flatten()
    values, vectors = torch.linalg.eigh(g[s][:, s])
    if float(values[0]) > noise:
        return w
    free = vectors[:, values <= noise] / length[s, None]  # all w on S with Σ w g = 0

    def leaves(x: Tensor) -> bool:
        v = x * length[s]
        return not float(v @ g[s][:, s] @ v) <= noise * float(v.sum()) ** 2

    x = w[s]
    for at in _exponents(beta):
        for _ in range(300):
            share = x ** (1 - at)
            # Relative to x: directions that leave Σ x, too, where it is.
            basis = torch.linalg.qr(free / free.abs().amax(0)).Q
            along = basis.sum(0)
            basis = basis @ torch.linalg.qr(along[:, None], mode="complete").Q[:, 1:]
            moves = torch.linalg.qr(basis / x[:, None] * share.sqrt()[:, None]).Q
            q = moves @ (moves.T @ share.sqrt()) / share.sqrt() / at
            descent = float(share @ q)
            last = descent <= 2.0**-54 * float(share.sum())
            moved = x * (1 + (1 if last else _backtrack(q, descent, share, at)) * q)
            if leaves(moved):  # by rounding, where norms spread over many decades
                break
            x = moved
            if last:
                break
    result = torch.zeros_like(w)
    result[s] = x / x.sum()
    return result
