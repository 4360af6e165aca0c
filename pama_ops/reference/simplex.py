"""Weights on the simplex: min_norm, gapo, Theorem 1 of PAMA."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pama_ops.reference.weighting import (
    Problem,
    matrices,
    of_each_matrix,
    relative,
    tolerance,
    weighting,
)


@weighting(preference=True)
def min_norm(
    gram: Tensor,
    preference: Tensor | None,
    options: list[float] | None = None,
    rtol: float | None = None,
) -> Tensor:
    """Wolfe's method with a dense solve on each corral, problem by problem."""
    w = gram.new_full(gram.shape[:-1], math.nan, dtype=torch.float64)
    # Dividing by less would overflow; the weight of such an objective tends to 0.
    p = relative(preference, w, 2.0**-400).expand(w.shape).reshape(-1, w.shape[-1])
    for row, m, q in zip(w.view(p.shape), matrices(gram), p, strict=True):
        kept = torch.nonzero(q > 0).flatten()
        m, q = m[kept][:, kept], q[kept]
        if len(kept) > 0 and bool(m.isfinite().all()):
            solution = _min_norm(m, q, tolerance(gram, rtol) / 2)
            if not bool(solution.isnan().any()):
                row[:] = 0.0
                row[kept] = solution
    return w


def _min_norm(g: Tensor, q: Tensor, roundoff: float) -> Tensor:
    zeros = g.diagonal() <= 0
    if bool(zeros.any()):
        return torch.where(zeros, q, 0.0) / q[zeros].sum()
    unit = 2.0 ** (math.frexp(float(g.diagonal().amax()))[1] - 1)
    g = g / unit / q[:, None] / q
    x = shortest_combination(g, roundoff)
    norm = g.diagonal().sqrt()
    close = (g[:, None] - g).abs() <= 4 * roundoff * norm * norm[:, None, None]
    # Each row shares its weight with those equal to it: to rounding, which need not be transitive.
    equal = close.all(-1).double()
    c = equal.mT @ (x / equal.sum(-1)) / q
    return c / c.sum()


def shortest_combination(
    g: Tensor, roundoff: float, linear: Tensor | float = 0.0, shift: float = 0.0
) -> Tensor:
    """argmin ½ xᵀ G x + linear · x over the simplex; at the limit, the visited point of least gap.

    `shift`: the length that entries of `linear` are rounded to, per length of a row.
    """
    n, norm = g.shape[0], g.diagonal().clamp(min=0).sqrt()
    corral = [int(g.diagonal().argmin())]
    x = g.new_zeros(n)
    x[corral] = 1.0
    best, least_gap = x, math.inf
    for _ in range(8 * n + 32):
        slope = g @ x + linear
        gap = x @ slope - slope
        if float(gap.amax()) < least_gap:
            best, least_gap = x, float(gap.amax())
        gap[corral] = 0.0
        gap = torch.where(gap > 4 * 2.0**-52 * norm * (norm @ x + shift), gap, 0.0)
        if not bool((gap > 0).any()):
            return x
        corral.append(int(gap.argmax()))
        while True:
            # To the minimiser over the affine hull of the corral, least in norm.
            base, *rest = corral
            slope, step = g @ x + linear, torch.zeros_like(x)
            step[rest] = -differences_inverse(g, base, rest, roundoff) @ (slope[rest] - slope[base])
            step[base] = -step[rest].sum()
            shrinking = step < 0
            reach = torch.where(shrinking, x / -step, math.inf)
            if float(reach.amin()) >= 1:
                x = (x + step).clamp(min=0)
                break
            x = (x + reach.amin() * step).clamp(min=0)
            x[reach.argmin()] = 0.0
            corral = [i for i in corral if float(x[i]) > 0]
        x = x / x.sum()
    return best


def differences_inverse(g: Tensor, base: int, rest: list[int], roundoff: float) -> Tensor:
    """The pseudoinverse of the Gram matrix of the rows' differences from a base."""
    h = g[rest][:, rest] - g[rest, base, None] - g[base, rest] + g[base, base]
    return pseudoinverse(h, roundoff, torch.finfo(torch.float64).tiny)


def pseudoinverse(g: Tensor, roundoff: float, least: float = 0.0) -> Tensor:
    """Of a matrix with a diagonal of `least` or more, with its rank decided at unit diagonal."""
    unit = g.diagonal().clamp(min=least).rsqrt()
    values, vectors = torch.linalg.eigh(g * unit[:, None] * unit)
    cut = len(g) * roundoff * values.amax() if len(g) else 0.0
    inverse: Tensor = (vectors * torch.where(values > cut, 1 / values, 0.0)) @ vectors.T
    return unit[:, None] * inverse * unit


@weighting(1)
@of_each_matrix
def gapo(problem: Problem) -> Tensor:
    g, power = problem.gram, problem.options[0]
    w = g.new_zeros(len(g))
    s = torch.nonzero(g.diagonal() > 0).flatten()
    if len(s):
        unit = g.diagonal()[s] ** (-power / 2)
        h = g[s][:, s] * unit[:, None] * unit
        w[s] = _min_norm(h, torch.ones_like(unit), problem.rtol / 2) * unit
    return w / g.new_tensor(problem.unit) ** power


def duality_gap(
    gram: Tensor,
    weights: Tensor,
    options: list[float] | None = None,
    rtol: float | None = None,
) -> Tensor:
    g = gram.detach().to(torch.float64)
    w = weights.detach().to(torch.float64)
    slope = (((g + g.mT) / 2) @ w[..., None])[..., 0]
    return (w * slope).sum(-1) - slope.amin(-1)


def pama_weights(values: Tensor, preference: Tensor | None) -> tuple[Tensor, Tensor]:
    """Theorem 1; the point of the optimal face nearest to p by bisection on the bits of the
    multiplier's root: the multiplier may lie beyond the range of numbers."""
    a = values.detach().to(torch.float64)
    n = a.shape[-1]
    p = relative(preference, a)
    keep = torch.nonzero(p > 0).flatten()
    a, p = a[..., keep], p[keep]
    finite = a.isfinite().all(-1)
    # Scaled up, in two steps, until the largest is 2^989 or more: what is up to 2^2000 times
    # smaller is then a normal number.
    exponent = (torch.frexp(a.abs().amax(-1, keepdim=True)).exponent - 990).clamp(max=0)
    first = 2.0 ** (exponent // 2).double()
    second = 2.0 ** (exponent - exponent // 2).double()
    a, key = a / first / second, a.abs() / p
    p = p / p.sum()
    tie = key == key.amin(-1, keepdim=True)
    count = tie.sum(-1, keepdim=True)
    share = (1 - torch.where(tie, p, 0.0).sum(-1, keepdim=True)) / count
    one_sided = torch.where(tie, torch.where(count == 1, 1.0, p + share), 0.0)
    winner = a.gather(-1, tie.double().argmax(-1, keepdim=True))
    straddles = (a.amin(-1, keepdim=True) < 0) & (a.amax(-1, keepdim=True) > 0)

    b = torch.where((p * a).sum(-1, keepdim=True) < 0, -a, a)  # its multiplier is not negative

    def nearest(root: Tensor) -> Tensor:
        y = p - root * (root * b)
        ordered = y.sort(-1, descending=True).values
        excess = ordered.cumsum(-1) - 1
        size = torch.arange(1, len(keep) + 1, device=a.device)
        rank = ((ordered * size > excess) * size).amax(-1, keepdim=True).clamp(min=1)
        return (y - excess.gather(-1, rank - 1) / rank).clamp(min=0)

    def supported(c: Tensor) -> Tensor:
        """The values with a weight, scaled up until no product of theirs underflows."""
        x = torch.where(c > 0, b, 0.0)
        up = (990 - torch.frexp(x.abs().amax(-1, keepdim=True)).exponent).clamp(0, 2046)
        return x * 2.0 ** (up // 2).double() * 2.0 ** (up - up // 2).double()

    def balanced(c: Tensor) -> Tensor:
        """With the weight of the largest value, which may be small, as it balances the others;
        left as it is where that is not the same to rounding, four of each term of a sum of n."""
        x = supported(c)
        largest, k = x.max(-1, keepdim=True)
        others = (c * x).scatter(-1, k, 0.0).sum(-1, keepdim=True)
        new, old = (-others / largest).clamp(min=0), c.gather(-1, k)
        return c.scatter(-1, k, torch.where((new - old).abs() <= len(keep) * 2.0**-51, new, old))

    low = torch.zeros_like(winner, dtype=torch.int64)
    high = (-b.amin(-1, keepdim=True)).rsqrt().clamp(max=torch.finfo(torch.float64).max)
    high = high.view(torch.int64)
    for _ in range(64):
        middle = low + (high - low) // 2
        c = nearest(middle.view(torch.float64))
        above = (c * supported(c)).sum(-1, keepdim=True) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    c = torch.where(straddles, balanced(nearest(high.view(torch.float64))), one_sided)
    s = (winner + (c * (a - winner)).sum(-1, keepdim=True)) * first * second
    s = torch.where(straddles, 0.0, s)[..., 0]
    w = a.new_zeros((*a.shape[:-1], n))
    w[..., keep] = c
    return torch.where(finite[..., None], w, math.nan), torch.where(finite, s, math.nan)
