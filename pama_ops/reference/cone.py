"""Weights from the cone of the gradients: dualproj, upgrad, cagrad."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pama_ops.reference.simplex import shortest_combination
from pama_ops.reference.weighting import each, share, tolerance, weighting


def _inverse(g: Tensor) -> Tensor:
    """The pseudoinverse of a matrix with positive diagonal, its rank decided at unit diagonal."""
    unit = g.diagonal().rsqrt()
    values, vectors = torch.linalg.eigh(g * unit[:, None] * unit)
    cut = len(g) * 2.0**-50 * values.amax() if len(g) else 0.0
    inverse: Tensor = (vectors * torch.where(values > cut, 1 / values, 0.0)) @ vectors.T
    return unit[:, None] * inverse * unit


def _cone(g: Tensor, lower: Tensor, level: float = 0.0) -> Tensor:
    """argmin ½ vᵀ G v − level Σ y over v = lower + y, y >= 0: Lawson & Hanson, dense."""
    n, norm = len(g), g.diagonal().clamp(min=0).sqrt()
    y, inside = torch.zeros_like(lower), norm < 0
    refused = inside.clone()
    for _ in range(8 * n + 32):
        slope = g @ (lower + y) - level
        bound = 4 * 2.0**-52 * (norm * (norm @ (lower + y)) + abs(level))
        violated = ~inside & ~refused & (norm > 0) & (slope < -bound)
        if not bool(violated.any()):
            break
        entering = int(torch.where(violated, slope / norm, 0.0).argmin())
        inside[entering] = True
        for _ in range(n + 1):
            s = torch.nonzero(inside).flatten()
            slope = g @ (lower + y) - level
            step = torch.zeros_like(y)
            step[s] = -_inverse(g[s][:, s]) @ slope[s]
            if float(y[entering]) == 0 and not float(step[entering]) > 0:
                inside[entering], refused[entering] = False, True
                break
            reach = torch.where(step < 0, y / -step, math.inf)
            reach[~inside] = math.inf
            y = (y + min(1.0, float(reach.amin())) * step).clamp(min=0)
            refused[:] = False
            if float(reach.amin()) >= 1:
                break
            y[reach.argmin()] = 0.0
            inside &= y > 0
    return y


def least_combination(g: Tensor, lower: Tensor) -> Tensor:
    """argmin vᵀ G v over v >= lower."""
    return lower + _cone(g, lower)


@weighting
def dualproj(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    p = share(preference, gram.detach().to(torch.float64))
    return each(gram, lambda g: p + _cone(g, p))


@weighting
def upgrad(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    p = share(preference, gram.detach().to(torch.float64)).diag()
    return each(gram, lambda g: torch.stack([q + _cone(g, q) for q in p]).sum(0))


@weighting
def cagrad(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    """The constraint's multiplier by false position, the cone's problem at each."""
    return each(gram, lambda g: _cagrad(g, options[0], tolerance(gram, rtol)))


def _cagrad(g: Tensor, c: float, rtol: float) -> Tensor:
    n = len(g)
    p = g.new_full((n,), 1 / n)
    radius = c * math.sqrt(max(float(p @ g @ p), 0.0))
    if radius == 0:
        return p

    def length(y: Tensor, level: float) -> float:
        """√yᵀGy by (Gy)_i = level − ⟨g_i, g_0⟩ on the support, as rounding of yᵀGy is of y²."""
        return math.sqrt(max(level * float(y.sum()) - float(y @ g @ p), 0.0))

    def excess(level: float) -> tuple[Tensor, float]:
        y = _cone(g, p, level)
        return y, length(y, level) - radius

    norm = g.diagonal().clamp(min=0).sqrt()
    high, low = 0.0, float((g @ p).amin()) - radius * float(norm.amax())
    y, above = excess(high)
    if above <= 0:
        zeros = g.diagonal() <= 0
        w = zeros.double() / zeros.sum() if bool(zeros.any()) else shortest_combination(g, 2.0**-53)
        square = float(w @ g @ w)
        if square <= (4 * n * 2.0**-52 + rtol) * float(norm @ w) ** 2:
            return p + y
        low, high = high, float(w @ g @ p) + radius * math.sqrt(square)
        y, above = excess(high)
    below, level = excess(low)[1], high
    for _ in range(200):
        between = high - above * (high - low) / (above - below) if above > below else high
        if not low < between < high:
            break
        level = between
        y, value = excess(level)
        if abs(value) <= 4e-15 * radius:
            break
        if value > 0:
            high, above, below = level, value, below / 2
        else:
            low, below, above = level, value, above / 2
    move = length(y, level)
    return p + y * (radius / move) if move > 0 else p
