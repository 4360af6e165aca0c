"""Weights from the cone of the gradients: dualproj, upgrad, cagrad."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pama_ops.reference.simplex import differences_inverse, pseudoinverse, shortest_combination
from pama_ops.reference.weighting import Problem, of_each_matrix, weighting


def _cone(g: Tensor, lower: Tensor, rtol: float) -> Tensor:
    """argmin vᵀ G v over v = lower + y, y >= 0. Returns y.

    Where rounding hides a nonnegative combination of length 0, for G that is widened by what
    rounding may have taken from it, which makes vᵀ G v > 0 for v >= 0.
    """
    norm = g.diagonal().clamp(min=0).sqrt()
    y, noise = _descend(g, lower, 2.0**-50), 4 * 2.0**-52
    size = norm @ (lower + y)
    if bool((g @ (lower + y) >= -2 * noise * norm * size).all()):
        return y
    return _descend(g + (noise + rtol) * norm * norm[:, None], lower, 2.0**-54)


def _descend(g: Tensor, lower: Tensor, least: float) -> Tensor:
    """Lawson & Hanson, dense."""
    n, norm = len(g), g.diagonal().clamp(min=0).sqrt()
    y, inside = torch.zeros_like(lower), norm < 0
    refused = inside.clone()
    for _ in range(8 * n + 32):
        slope = g @ (lower + y)
        bound = 4 * 2.0**-52 * norm * (norm @ (lower + y))
        violated = ~inside & ~refused & (norm > 0) & (slope < -bound)
        if not bool(violated.any()):
            break
        entering = int(torch.where(violated, slope / norm, 0.0).argmin())
        inside[entering] = True
        for _ in range(n + 5):
            s = torch.nonzero(inside).flatten()
            slope = g @ (lower + y)
            step = torch.zeros_like(y)
            step[s] = -pseudoinverse(g[s][:, s], least) @ slope[s]
            if float(y[entering]) == 0 and not float(step[entering]) > 0:
                inside[entering], refused[entering] = False, True
                break
            reach = torch.where(step < 0, y / -step, math.inf)
            reach[~inside] = math.inf
            y = (y + min(1.0, float(reach.amin())) * step).clamp(min=0)
            refused[:] = False
            if float(reach.amin()) >= 1:
                # A large y leaves slopes on the support: once more, from those.
                bound = 4 * 2.0**-52 * norm * (norm @ (lower + y))
                if bool(((g @ (lower + y)).abs() <= bound)[inside].all()):
                    break
                continue
            y[reach.argmin()] = 0.0
            inside &= y > 0
    return y


def least_combination(g: Tensor, lower: Tensor, rtol: float = 2.0**-52) -> Tensor:
    """argmin vᵀ G v over v >= lower."""
    return lower + _cone(g, lower, rtol)


@weighting(preference=True)
@of_each_matrix
def dualproj(problem: Problem) -> Tensor:
    return least_combination(problem.gram, problem.preference, problem.rtol)


@weighting(preference=True)
@of_each_matrix
def upgrad(problem: Problem) -> Tensor:
    parts = problem.preference.diag()
    return torch.stack([least_combination(problem.gram, p, problem.rtol) for p in parts]).sum(0)


@weighting(1)
@of_each_matrix
def cagrad(problem: Problem) -> Tensor:
    """The t for which the w that minimises ½ ‖g_w‖² + t ⟨g_w, g_0⟩ has ‖g_w‖ = φ t."""
    g, rtol, c = problem.gram, problem.rtol, problem.options[0]
    n, norm = len(g), g.diagonal().clamp(min=0).sqrt()
    p = g.new_full((n,), 1 / n)
    inner = _product(g, p)
    square, noise = c * c * max(float(p @ inner), 0.0), 16 * 2.0**-52 + 2 * rtol
    if not (c > 0 and square > 0):
        return p
    if square == math.inf:  # for c beyond 1e154, where the kernels still answer
        return torch.full_like(p, math.nan)
    tried: list[tuple[float, Tensor]] = []

    def offer(v: Tensor, slope: Tensor) -> Tensor:
        """v by its least slope, less what rounding may hide."""
        tried.append((float((slope - 2.0**-50 * norm * (norm @ v)).amin()), v))
        return v

    def best() -> Tensor:
        return max(reversed(tried), key=lambda one: one[0])[1]

    offer(p, inner)
    t, low, high, wide, projected = 0.0, 0.0, math.inf, math.inf, False
    for step in range(n + 64):
        x = shortest_combination(g, 2.0**-53, t * inner, t * float(p @ norm))
        slope = _product(g, x)
        found, rounding = float(x @ slope), noise * float(x @ norm) ** 2
        told = found > rounding
        if not told and not projected:
            projected = True
            y = _cone(g, p, rtol)
            moved = _product(g, y)
            length = float(y @ moved)
            if length <= square + noise * float((p + y) @ norm) ** 2:
                offer(p + y, inner + moved)
                return p + y if step == 0 else best()
            scale = math.sqrt(square / length)
            offer(p + scale * y, inner + scale * moved)
            t = max(t, 1 / float(y.sum()))
            low = t * t
            continue
        if step == 0:
            scale = math.sqrt(square / found)
            offer(p + scale * x, inner + scale * slope)
            low = found / square
            t = math.sqrt(low)
            continue
        response = _response(g, inner, x)
        if not told:
            found = t * t * response
        excess = found - square * (t * t)
        scale = math.sqrt(square / found) if excess > 0 else 1 / t
        v = offer(p + scale * x, inner + scale * slope)
        if abs(excess) <= 2.0**-50 * square * (t * t):
            return v if told else best()
        if not told and high == math.inf and square * (t * t) < 2 * rounding:
            t = 2 * math.sqrt(rounding / square)
            continue
        if excess > 0:
            low = t * t
        else:
            high = t * t
        following = t * t + excess / (square - response) if response < square else math.inf
        ratio = high / low
        if not low < following < high or ratio * ratio > wide:
            bounded = high < math.inf
            following = (
                math.sqrt(low) * math.sqrt(high) if bounded else max(16 * low, found / square)
            )
        wide = ratio
        if not low < following < high:
            break
        t = math.sqrt(following)
    return best()


def _response(g: Tensor, b: Tensor, x: Tensor) -> float:
    """The square of the part of b's gradient along the support of x."""
    base, *rest = torch.nonzero(x > 0).flatten().tolist()
    along = b[rest] - b[base]
    return float(along @ (differences_inverse(g, base, rest, 2.0**-53) @ along))


def _product(g: Tensor, x: Tensor) -> Tensor:
    """G x, rounded once: the products' errors by Dekker's splitting, and exact sums."""

    def halves(a: Tensor) -> tuple[Tensor, Tensor]:
        high = 134217729.0 * a
        high = high - (high - a)
        return high, a - high

    terms, (g1, g2), (x1, x2) = g * x, halves(g), halves(x)
    errors = ((g1 * x1 - terms) + g1 * x2 + g2 * x1) + g2 * x2
    return g.new_tensor([math.fsum(row) for row in torch.cat([terms, errors], 1).tolist()])
