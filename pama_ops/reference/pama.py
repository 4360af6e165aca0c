"""PAMA: statistics of the whole batch, then weights and the combined advantages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pama_ops.reference.gradients import inner_products
from pama_ops.reference.simplex import min_norm, pama_weights
from pama_ops.reference.tokens import Tokens

TOKEN, SEQUENCE, GRAM, BATCH = range(4)
# Beyond it products of two parts that the ratio weighs would leave the range of numbers.
LARGEST_LOG_RATIO = 340.0


def active_part(
    tokens: Tokens,
    advantages: Tensor,
    log_ratio: Tensor | None,
    low: float,
    high: float,
    noon: bool,
    ratio_weighted: bool,
) -> tuple[Tensor, Tensor]:
    """A (after Noon) and I(A), the part where the clipped surrogate still has a gradient."""
    a = tokens.select(advantages)
    if noon:
        a = torch.where(a <= 0, 0.0, a)
    if log_ratio is None:
        return a, a
    l = tokens.select(log_ratio)  # noqa: E741
    # In logarithms, so that the test is exact; NaN in the ratio is data and goes through.
    flat = torch.where(
        a < 0, l < (math.log1p(-low) if low < 1 else -math.inf), l > math.log1p(high)
    )
    part = torch.where(flat, 0.0, a + torch.where(l.isnan(), l, 0.0))
    return a, torch.where(
        flat, 0.0, part * l.clamp(max=LARGEST_LOG_RATIO).exp()
    ) if ratio_weighted else part


def pama_statistics(
    advantages: Tensor,
    mask: Tensor | None,
    log_ratio: Tensor | None,
    cu_seqlens: Tensor | None,
    reduction: int,
    low: float,
    high: float,
    noon: bool,
    ratio_weighted: bool,
) -> Tensor:
    """[flags of a nonzero I(A) (N), and then: nothing | Z, sums (N) of `batch` | Gram (N N)].

    Statistics of disjoint sets of tokens add.
    """
    tokens = Tokens(advantages, mask, cu_seqlens)
    _, part = active_part(tokens, advantages, log_ratio, low, high, noon, ratio_weighted)
    part = part.flatten(1)
    parts = [(part != 0).any(-1).double()]
    if reduction == BATCH:
        parts += [tokens.mask.sum().double()[None], part.sum(-1)]
    if reduction == GRAM:
        parts += [inner_products(part).flatten()]
    return torch.cat(parts)


def pama_combine(
    advantages: Tensor,
    mask: Tensor | None,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    statistics: Tensor,
    reduction: int,
    low: float,
    high: float,
    noon: bool,
    ratio_weighted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Combined advantages [B, T], weights, optimum (empty for `gram`), active [N]."""
    n = advantages.shape[0]
    tokens = Tokens(advantages, mask, cu_seqlens)
    a, part = active_part(tokens, advantages, log_ratio, low, high, noon, ratio_weighted)
    active = statistics[:n] != 0
    p = torch.ones_like(statistics[:n]) if preference is None else preference.double()
    p = torch.where(active, p, 0.0)
    live = bool((p > 0).any())
    optimum = statistics.new_zeros(0)
    if reduction == GRAM:
        gram = statistics[n:].reshape(n, n)
        weights = min_norm(gram, p) if live else torch.zeros_like(p)
        c = weights[:, None, None]
    else:
        if reduction == TOKEN:
            problem = part.movedim(0, -1)
        elif reduction == SEQUENCE:
            problem = (part.sum(-1) / tokens.count.clamp(min=1)).T
        else:
            problem = statistics[n + 1 :] / statistics[n].clamp(min=1)
        if live:
            weights, optimum = pama_weights(problem, p)
        else:
            weights, optimum = torch.zeros_like(problem), problem.new_zeros(problem.shape[:-1])
        weights = weights.movedim(-1, 0)
        c = weights.reshape(n, *weights.shape[1:], *(1,) * (3 - weights.dim()))
        if reduction == TOKEN:
            weights = tokens.unpad(torch.where(tokens.mask, weights, 0.0))
            optimum = tokens.unpad(torch.where(tokens.mask, optimum, 0.0))
        if reduction == SEQUENCE:
            weights = torch.where(tokens.count > 0, weights, 0.0)
            optimum = torch.where(tokens.count > 0, optimum, 0.0)
    # A weight of 0 drops the objective, also where its advantage is not finite.
    combined = torch.where(c == 0, 0.0, c * a).sum(0)
    return tokens.unpad(torch.where(tokens.mask, combined, 0.0)), weights, optimum, active
