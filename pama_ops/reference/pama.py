"""PAMA: statistics of the whole batch, then weights and the combined advantages."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor

from pama_ops.reference.gradients import inner_products
from pama_ops.reference.simplex import min_norm, pama_weights
from pama_ops.reference.tokens import Tokens, log_clip

TOKEN, SEQUENCE, GRAM, BATCH = range(4)
# Beyond it products of two parts that the ratio weighs would leave the range of numbers.
LARGEST_LOG_RATIO = 340.0


def by_sequence(preference: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a preference is [N, B]: one for each sequence."""
    return preference is not None and preference.dim() == 2


def active_part(
    tokens: Tokens,
    advantages: Tensor,
    log_ratio: Tensor | None,
    epsilon_low: float,
    epsilon_high: float,
    noon: bool,
    ratio_weighted: bool,
) -> tuple[Tensor, Tensor]:
    """A (after Noon) and I(A), the part where the clipped surrogate still has a gradient.

    The last four arguments are the `rule` of statistics and combinations.
    """
    a = tokens.select(advantages)
    if noon:
        a = torch.where(a <= 0, 0.0, a)
    if log_ratio is None:
        return a, a
    l = tokens.select(log_ratio)  # noqa: E741
    least, largest = log_clip(epsilon_low, epsilon_high)
    flat = torch.where(a < 0, l < least, l > largest)
    # NaN in the ratio is data and goes through.
    part = torch.where(flat, 0.0, a + torch.where(l.isnan(), l, 0.0))
    if ratio_weighted:
        part = torch.where(flat, 0.0, part * l.clamp(max=LARGEST_LOG_RATIO).exp())
    return a, part


def pama_statistics(
    advantages: Tensor,
    mask: Tensor | None,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    reduction: int,
    *rule: Any,
) -> Tensor:
    """[flags of a nonzero I(A) (N), and then: nothing | Z, sums (N) of `batch` | Gram (N N)].

    With a preference [N, B] an objective has no I(A) in the sequences where that is 0, and for
    `batch` and `gram` the tokens of each objective's other sequences, Z_i (N), come last.
    Statistics of disjoint sets of tokens add.
    """
    tokens = Tokens(advantages, mask, cu_seqlens, keep_rows=by_sequence(preference))
    _, part = active_part(tokens, advantages, log_ratio, *rule)
    own: list[Tensor] = []
    if by_sequence(preference):
        present = preference > 0
        part = torch.where(present[..., None], part, 0.0)
        if reduction in (BATCH, GRAM):
            own = [torch.where(present, tokens.count, 0).sum(-1).double()]
    part = part.flatten(1)
    parts = [(part != 0).any(-1).double()]
    if reduction == BATCH:
        parts += [tokens.mask.sum().double()[None], part.sum(-1)]
    if reduction == GRAM:
        parts += [inner_products(part).flatten()]
    return torch.cat(parts + own)


def of_own_tokens(statistics: Tensor, n: int, reduction: int) -> Tensor:
    """Statistics of `batch` or `gram` by a preference [N, B] as those of one by objective.

    Sums become means over the tokens of each objective's own sequences, and the Gram matrix that of
    I(A)_i √(max_j Z_j / Z_i): the tokens where an objective is dropped move no balance between it
    and the others. Where none is dropped, all that is divided by is equal.
    """
    flags, sums, count = statistics[:n], statistics[n:-n], statistics[-n:].clamp(min=1)
    if reduction == BATCH:
        return torch.cat([flags, count.new_ones(1), sums[1:] / count])
    scale = (count.amax() / count).sqrt()
    return torch.cat([flags, (sums.view(n, n) * (scale[:, None] * scale)).flatten()])


def pama_combine(
    advantages: Tensor,
    mask: Tensor | None,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    statistics: Tensor,
    reduction: int,
    *rule: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Combined advantages [B, T], weights, optimum (empty for `gram`), active [N].

    With a preference [N, B] every sequence has its own problem, for `batch` and `gram` that of the
    statistics, which are as `of_own_tokens` returns them.
    """
    n = advantages.shape[0]
    tokens = Tokens(advantages, mask, cu_seqlens, keep_rows=by_sequence(preference))
    a, part = active_part(tokens, advantages, log_ratio, *rule)
    active = statistics[:n] != 0
    if reduction == TOKEN:
        problem = part.movedim(0, -1)
    elif reduction == SEQUENCE:
        problem = (part.sum(-1) / tokens.count.clamp(min=1)).T
    elif reduction == BATCH:
        problem = statistics[n + 1 :] / statistics[n].clamp(min=1)
    else:
        problem = statistics[n:].reshape(n, n)
    weights, optimum = _solve(problem, preference, active, reduction)
    weights = weights.movedim(-1, 0)
    c = weights.reshape(n, *weights.shape[1:], *(1,) * (3 - weights.dim()))
    if reduction == TOKEN:
        weights, optimum = tokens.unpad(weights), tokens.unpad(optimum)
    if reduction == SEQUENCE:
        weights = torch.where(tokens.count > 0, weights, 0.0)
        optimum = torch.where(tokens.count > 0, optimum, 0.0)
    if reduction == GRAM:
        optimum = statistics.new_zeros(0)
    # A weight of 0 drops the objective, also where its advantage is not finite.
    combined = torch.where(c == 0, 0.0, c * a).sum(0)
    return tokens.unpad(combined), weights, optimum, active


def _solve(
    problem: Tensor, preference: Tensor | None, active: Tensor, reduction: int
) -> tuple[Tensor, Tensor]:
    """Weights [..., N] and optimum [...] of problems by a preference; 0 if that leaves nothing.

    `gram` has no optimum but 0.
    """
    if by_sequence(preference):
        return _solve_each(problem, preference, active, reduction)
    p = active.double() if preference is None else torch.where(active, preference.double(), 0.0)
    values = problem.diagonal() if reduction == GRAM else problem
    if not bool((p > 0).any()):
        return torch.zeros_like(values), values.new_zeros(values.shape[:-1])
    if reduction == GRAM:
        return min_norm(problem, p), problem.new_zeros(())
    return pama_weights(problem, p)


def _solve_each(
    problem: Tensor, preference: Tensor, active: Tensor, reduction: int
) -> tuple[Tensor, Tensor]:
    """The same for a preference [N, B], of problems [B, ..., N] or of one that all share."""
    shared = reduction in (GRAM, BATCH)
    lead = preference.shape[1:] if shared else problem.shape[:-1]
    weights, optimum = problem.new_zeros((*lead, len(preference))), problem.new_zeros(lead)
    kinds, kind = preference.detach().double().unique(dim=1, return_inverse=True)
    for k, p in enumerate(kinds.T):
        here = kind == k
        mine = problem if shared else problem[here]
        weights[here], optimum[here] = _solve(mine, p, active, reduction)
    return weights, optimum
