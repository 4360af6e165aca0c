"""The mathematics of the library in plain float64 PyTorch.

Every kernel is tested against this page, and it is what runs where no kernel was compiled.
It is written to be read, not to be fast. Arguments are those of the dispatcher ops in
`_schemas.py`; results are float64 (integers and booleans excepted).

Layouts: token arrays are [N, B, T] or [B, T]; with `cu_seqlens` [N, total] or [total].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TOKEN, SEQUENCE, GRAM, BATCH = range(4)
TOKEN_MEAN, SEQUENCE_MEAN_TOKEN_MEAN, SEQUENCE_MEAN_TOKEN_SUM, TOKEN_SUM = range(4)
K1, K2, K3 = 1, 2, 3


class _Tokens:
    """Token arrays of one call as padded float64 [..., B, T], whichever layout they came in."""

    def __init__(self, like: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
        self._index: Tensor | None = None
        if cu_seqlens is not None:
            starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
            longest = int(lengths.max()) if lengths.numel() else 0
            steps = torch.arange(longest, device=like.device)
            self._total = like.shape[-1]
            self._inside = steps < lengths[:, None]
            self._index = torch.where(self._inside, starts[:, None] + steps, 0)
        if mask is None:
            mask = torch.ones(
                like.shape[-1 if cu_seqlens is not None else -2 :], device=like.device
            )
        self.mask = self.pad(mask) != 0
        self.count = self.mask.sum(-1)

    def pad(self, x: Tensor) -> Tensor:
        x = x.detach().to(torch.float64)
        if self._index is None:
            return x
        if self._total == 0:
            return x.new_zeros((*x.shape[:-1], *self._index.shape))
        return torch.where(self._inside, x[..., self._index], 0.0)

    def select(self, x: Tensor) -> Tensor:
        """`x` padded, with whatever stands at masked positions replaced by 0."""
        return torch.where(self.mask, self.pad(x), 0.0)

    def unpad(self, x: Tensor) -> Tensor:
        if self._index is None:
            return x
        out = x.new_zeros((*x.shape[:-2], self._total))
        out[..., self._index[self._inside]] = x[..., self._inside]
        return out


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None,
    last_values: Tensor | None,
    cu_seqlens: Tensor | None,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    tokens = _Tokens(rewards, mask, cu_seqlens)
    r, v = tokens.select(rewards), tokens.select(values)
    advantages = torch.zeros_like(r)
    advantage = r.new_zeros(r.shape[:-1])
    value = advantage if last_values is None else last_values.detach().to(torch.float64)
    for t in reversed(range(r.shape[-1])):
        here = tokens.mask[:, t]
        delta = r[..., t] + gamma * value - v[..., t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        value = torch.where(here, v[..., t], value)
        advantages[..., t] = torch.where(here, advantage, 0.0)
    returns = torch.where(tokens.mask, advantages + v, 0.0)
    return tokens.unpad(advantages), tokens.unpad(returns)


def whiten_moments(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Count, mean and sum of squared deviations of each objective's masked tokens: [N, 3]."""
    tokens = _Tokens(x, mask, cu_seqlens)
    count = tokens.mask.sum().to(torch.float64)
    mean = tokens.select(x).sum((-2, -1)) / count.clamp(min=1)
    deviation = torch.where(tokens.mask, tokens.pad(x) - mean[:, None, None], 0.0)
    return torch.stack([count.expand_as(mean), mean, (deviation**2).sum((-2, -1))], -1)


def merge_moments(moments: Tensor) -> Tensor:
    """Moments of the union of disjoint sets of tokens: [R, N, 3] -> [N, 3]."""
    count, mean, squares = moments.unbind(-1)
    total = count.sum(0)
    union = torch.where(count > 0, count * mean, 0.0).sum(0) / total.clamp(min=1)
    between = torch.where(count > 0, count * (mean - union) ** 2, 0.0).sum(0)
    return torch.stack([total, union, squares.sum(0) + between], -1)


def whiten_apply(
    x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, moments: Tensor, eps: float
) -> Tensor:
    tokens = _Tokens(x, mask, cu_seqlens)
    count, mean, squares = merge_moments(moments)[:, :, None, None].unbind(1)
    scale = torch.rsqrt(squares / (count - 1).clamp(min=1) + eps)
    return tokens.unpad(torch.where(tokens.mask, (tokens.pad(x) - mean) * scale, 0.0))


def group_normalize(rewards: Tensor, group_size: int, eps: float) -> Tensor:
    batch = rewards.shape[-1]
    r = rewards.detach().to(torch.float64)
    r = r.reshape(*r.shape[:-1], batch // group_size, group_size)
    valid = ~r.isnan()
    count = valid.sum(-1, keepdim=True)
    # Around the first valid reward, so that equal rewards deviate by exactly 0.
    r = r - r.gather(-1, valid.int().argmax(-1, keepdim=True))
    mean = torch.where(valid, r, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(valid, r - mean, 0.0)
    std = ((deviation**2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    normalized = deviation / (std + eps)
    return torch.where((count > 1) & (deviation != 0), normalized, 0.0).reshape(rewards.shape)


def _kl(log_ratio: Tensor, estimator: int) -> Tensor:
    if estimator == K1:
        return log_ratio
    if estimator == K2:
        return 0.5 * log_ratio**2
    return _expm2(-log_ratio)


def _expm2(x: Tensor) -> Tensor:
    """exp(x) − 1 − x, by its series where the difference cancels."""
    series = torch.zeros_like(x)
    for j in range(20, 1, -1):
        series = series * x + 1 / math.factorial(j)
    # The exponential outgrows x, also where both are infinite.
    return torch.where(x.abs() < 1, x * x * series, torch.expm1(x) - x.clamp(max=710))


def _kl_slope(log_ratio: Tensor, estimator: int) -> Tensor:
    if estimator == K1:
        return torch.ones_like(log_ratio)
    return log_ratio if estimator == K2 else -torch.expm1(-log_ratio)


def kl_divergence(logp: Tensor, ref_logp: Tensor, mask: Tensor | None, estimator: int) -> Tensor:
    kl = _kl(logp.detach().double() - ref_logp.detach().double(), estimator)
    return kl if mask is None else torch.where(mask != 0, kl, 0.0)


def kl_divergence_backward(
    grad: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor | None, estimator: int
) -> Tensor:
    slope = grad.double() * _kl_slope(logp.double() - ref_logp.double(), estimator)
    return slope if mask is None else torch.where(mask != 0, slope, 0.0)


def _ppo_tokens(
    tokens: _Tokens, logp: Tensor, old_logp: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log u, the surrogate min(u A, clip(u) A), whether the clip holds it flat, and u A."""
    log_ratio = tokens.select(logp) - tokens.select(old_logp)
    a = tokens.select(advantages)
    plain = log_ratio.exp() * a
    # In logarithms, so that the test is exact; false for NaN, which so goes through.
    above = (a > 0) & (log_ratio > math.log1p(high))
    under = (a < 0) & (log_ratio < (math.log1p(-low) if low < 1 else -math.inf))
    clipped = torch.where(above, (1 + high) * a, (1 - low) * a)
    return log_ratio, torch.where(above | under, clipped, plain), above | under, plain


def _row_weights(
    tokens: _Tokens, aggregate: int, normalizer: Tensor | None, divisor: float
) -> Tensor:
    """What one token of each sequence counts in the loss: [B]."""
    count = tokens.count.to(torch.float64)
    rows = (count > 0).to(torch.float64)
    weights = rows
    if aggregate == SEQUENCE_MEAN_TOKEN_MEAN:
        weights = rows / count.clamp(min=1)
    if normalizer is not None:
        total = normalizer.to(torch.float64).reshape(())
    elif divisor != 0:
        total = count.new_tensor(divisor)
    elif aggregate == TOKEN_MEAN:
        total = count.sum().clamp(min=1)
    else:
        total = count.new_ones(()) if aggregate == TOKEN_SUM else rows.sum().clamp(min=1)
    return torch.where(count > 0, weights / total, 0.0)


def ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logp: Tensor | None,
    normalizer: Tensor | None,
    cu_seqlens: Tensor | None,
    low: float,
    high: float,
    aggregate: int,
    divisor: float,
    kl_coef: float,
    estimator: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; (clip fraction, approximate KL, ratio mean, KL to reference); row weights [B]."""
    tokens = _Tokens(logp, mask, cu_seqlens)
    log_ratio, surrogate, flat, _ = _ppo_tokens(tokens, logp, old_logp, advantages, low, high)
    kl = torch.zeros_like(log_ratio)
    if ref_logp is not None:
        kl = _kl(tokens.select(logp) - tokens.select(ref_logp), estimator)
    weights = _row_weights(tokens, aggregate, normalizer, divisor)
    penalty = kl_coef * kl if kl_coef != 0 else torch.zeros_like(kl)
    row_loss = torch.where(tokens.mask, penalty - surrogate, 0.0).sum(-1)
    # An empty sequence is left out, not multiplied by 0.
    loss = torch.where(tokens.count > 0, weights * row_loss, 0.0).sum()
    parts = torch.stack([flat.double(), _kl(-log_ratio, K3), log_ratio.exp(), kl])
    sums = torch.where(tokens.mask, parts, 0.0).sum((-2, -1))
    return loss, sums / tokens.count.sum().clamp(min=1), weights


def ppo_loss_backward(
    grad: Tensor,
    row_weights: Tensor,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    low: float,
    high: float,
    kl_coef: float,
    estimator: int,
) -> Tensor:
    tokens = _Tokens(logp, mask, cu_seqlens)
    _, _, flat, plain = _ppo_tokens(tokens, logp, old_logp, advantages, low, high)
    slope = -torch.where(flat, 0.0, plain)
    if ref_logp is not None and kl_coef != 0:
        log_ratio = tokens.select(logp) - tokens.select(ref_logp)
        slope = slope + kl_coef * _kl_slope(log_ratio, estimator)
    slope = grad.double() * row_weights.double()[:, None] * slope
    return tokens.unpad(torch.where(tokens.mask, slope, 0.0))


def _value_errors(
    tokens: _Tokens, values: Tensor, returns: Tensor, old_values: Tensor | None, clip: float
) -> tuple[Tensor, Tensor]:
    """Squared error and its slope in the value, per token, where the mask holds."""
    v, r = tokens.select(values), tokens.select(returns)
    error, slope = (v - r) ** 2, v - r
    if old_values is not None:
        old = tokens.select(old_values)
        clipped = (v.clamp(old - clip, old + clip) - r) ** 2
        # `maximum` lets a NaN of the old value through.
        slope = torch.where(clipped.isnan(), clipped, torch.where(clipped > error, 0.0, slope))
        error = torch.maximum(clipped, error)
    return torch.where(tokens.mask, error, 0.0), torch.where(tokens.mask, slope, 0.0)


def value_loss(
    values: Tensor,
    returns: Tensor,
    mask: Tensor | None,
    old_values: Tensor | None,
    normalizer: Tensor | None,
    cu_seqlens: Tensor | None,
    clip: float,
    divisor: float,
) -> tuple[Tensor, Tensor]:
    """One loss per objective [N], and what one token counts in it []."""
    tokens = _Tokens(values, mask, cu_seqlens)
    error, _ = _value_errors(tokens, values, returns, old_values, clip)
    count = tokens.count.sum().to(torch.float64)
    total = count.clamp(min=1) if divisor == 0 else count.new_tensor(divisor)
    if normalizer is not None:
        total = normalizer.to(torch.float64).reshape(())
    return torch.where(count > 0, 0.5 * error.sum((-2, -1)) / total, 0.0), 1 / total


def value_loss_backward(
    grad: Tensor,
    scale: Tensor,
    values: Tensor,
    returns: Tensor,
    mask: Tensor | None,
    old_values: Tensor | None,
    cu_seqlens: Tensor | None,
    clip: float,
) -> Tensor:
    tokens = _Tokens(values, mask, cu_seqlens)
    _, slope = _value_errors(tokens, values, returns, old_values, clip)
    out = torch.where(tokens.mask, grad.double()[:, None, None] * scale * slope, 0.0)
    return tokens.unpad(out)


def _active_part(
    tokens: _Tokens,
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
    return a, torch.where(flat, 0.0, part * l.exp()) if ratio_weighted else part


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
    tokens = _Tokens(advantages, mask, cu_seqlens)
    _, part = _active_part(tokens, advantages, log_ratio, low, high, noon, ratio_weighted)
    part = part.flatten(1)
    parts = [(part != 0).any(-1).double()]
    if reduction == BATCH:
        parts += [tokens.mask.sum().double()[None], part.sum(-1)]
    if reduction == GRAM:
        parts += [(part @ part.T).flatten()]
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
    tokens = _Tokens(advantages, mask, cu_seqlens)
    a, part = _active_part(tokens, advantages, log_ratio, low, high, noon, ratio_weighted)
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


def _rows(grads: list[Tensor], n: int, p: int) -> Tensor:
    """The p-th gradient of each objective in float64, flat: [n, d_p]. An empty one is zeros."""
    mine = [x.detach().to(torch.float64).reshape(-1) for x in grads[p :: len(grads) // n]]
    size = max(x.numel() for x in mine)
    return torch.stack([x if x.numel() == size else x.new_zeros(size) for x in mine])


def gram(grads: list[Tensor], n: int) -> Tensor:
    total = grads[0].new_zeros((n, n), dtype=torch.float64)
    for p in range(len(grads) // n):
        rows = _rows(grads, n, p)
        total += rows @ rows.mT
    return torch.triu(total) + torch.triu(total, 1).mT


def gram_accumulate(total: Tensor, grads: list[Tensor]) -> None:
    total += gram(grads, total.shape[0])


def combine(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    n, w = weights.shape[0], weights.detach().to(torch.float64)
    shapes = [
        max((x.shape for x in grads[p :: len(grads) // n]), key=lambda shape: shape.numel())
        for p in range(len(grads) // n)
    ]
    return [(w @ _rows(grads, n, p)).reshape(shape) for p, shape in enumerate(shapes)]


def combine_into(out: list[Tensor], grads: list[Tensor], weights: Tensor, accumulate: bool) -> None:
    for to, combined in zip(out, combine(grads, weights), strict=True):
        to.copy_(to.detach().to(torch.float64) + combined if accumulate else combined)


WEIGHTINGS: dict[str, Callable[..., Tensor]] = {}


def _weighting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a function (Gram matrix, preference, options) -> weights the default of its op."""
    WEIGHTINGS[function.__name__] = function
    return function


def _roundoff(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps / 2


def _relative(preference: Tensor | None, like: Tensor) -> Tensor:
    """A preference relative to its largest entry, so that a uniform one is exactly 1."""
    if preference is None:
        return like.new_ones(like.shape[-1])
    p = preference.detach().to(torch.float64)
    return p / p.amax()


@_weighting
def min_norm(gram: Tensor, preference: Tensor | None, options: list[float] | None = None) -> Tensor:
    """Wolfe's method with a dense solve on each corral, problem by problem."""
    g = gram.detach().to(torch.float64)
    n = g.shape[-1]
    q = _relative(preference, g)
    # Dividing by less would overflow; the weight of such an objective tends to 0.
    kept = torch.nonzero(q > 2.0**-400).flatten()
    q = q[kept]
    w = g.new_zeros(g.shape[:-1]).reshape(-1, n)
    for b, m in enumerate(g.reshape(-1, n, n)):
        m = torch.where(m == m.T, m, m / 2 + m.T / 2)[kept][:, kept]
        w[b, kept] = _min_norm(m, q, _roundoff(gram)) if bool(m.isfinite().all()) else math.nan
        if bool(w[b].isnan().any()):
            w[b] = math.nan
    return w.reshape(g.shape[:-1])


def _min_norm(g: Tensor, q: Tensor, roundoff: float) -> Tensor:
    zeros = g.diagonal() <= 0
    if bool(zeros.any()):
        return torch.where(zeros, q, 0.0) / q[zeros].sum()
    unit = 2.0 ** (math.frexp(float(g.diagonal().amax()))[1] - 1)
    g = g / unit / q[:, None] / q
    x = _shortest_combination(g, roundoff)
    norm = g.diagonal().sqrt()
    close = (g[:, None] - g).abs() <= 4 * roundoff * norm * norm[:, None, None]
    equal = close.all(-1).double()
    c = (equal @ x) / equal.sum(-1) / q
    return c / c.sum()


def _shortest_combination(g: Tensor, roundoff: float) -> Tensor:
    """argmin xᵀ G x over the simplex; at the limit, the visited point of least duality gap."""
    n, norm = g.shape[0], g.diagonal().sqrt()
    corral = [int(g.diagonal().argmin())]
    x = g.new_zeros(n)
    x[corral] = 1.0
    best, least_gap = x, math.inf
    for _ in range(8 * n + 32):
        slope = g @ x
        gap = x @ slope - slope
        if float(gap.amax()) < least_gap:
            best, least_gap = x, float(gap.amax())
        gap[corral] = 0.0
        gap = torch.where(gap > 4 * 2.0**-52 * norm * (norm @ x), gap, 0.0)
        if not bool((gap > 0).any()):
            return x
        corral.append(int(gap.argmax()))
        while True:
            step = _affine_step(g, x, corral, roundoff)
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


def _affine_step(g: Tensor, x: Tensor, corral: list[int], roundoff: float) -> Tensor:
    """From x to the minimiser over the affine hull of the corral, least in norm."""
    base, rest = corral[0], corral[1:]
    slope = g @ x
    h = g[rest][:, rest] - g[rest, base, None] - g[base, rest] + g[base, base]
    unit = h.diagonal().clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    values, vectors = torch.linalg.eigh(h * unit[:, None] * unit)
    inverse = torch.where(values > len(rest) * roundoff * values.amax(), 1 / values, 0.0)
    move = -unit * (vectors @ (inverse * (vectors.T @ (unit * (slope[rest] - slope[base])))))
    step = torch.zeros_like(x)
    step[rest] = move
    step[base] = -move.sum()
    return step


def duality_gap(gram: Tensor, weights: Tensor, options: list[float] | None = None) -> Tensor:
    g = gram.detach().to(torch.float64)
    w = weights.detach().to(torch.float64)
    slope = (((g + g.mT) / 2) @ w[..., None])[..., 0]
    return (w * slope).sum(-1) - slope.amin(-1)


def pama_weights(values: Tensor, preference: Tensor | None) -> tuple[Tensor, Tensor]:
    """Theorem 1; the point of the optimal face nearest to p by bisection on its multiplier."""
    a = values.detach().to(torch.float64)
    n = a.shape[-1]
    p = _relative(preference, a)
    keep = torch.nonzero(p > 0).flatten()
    a, p = a[..., keep], p[keep]
    finite = a.isfinite().all(-1)
    # In units of the largest, by a power of two: nothing below overflows.
    unit = 2.0 ** torch.frexp(a.abs().amax(-1, keepdim=True)).exponent.double().clamp(-1022, 1023)
    a, key = a / unit, a.abs() / p
    p = p / p.sum()
    tie = key == key.amin(-1, keepdim=True)
    count = tie.sum(-1, keepdim=True)
    share = (1 - torch.where(tie, p, 0.0).sum(-1, keepdim=True)) / count
    one_sided = torch.where(tie, torch.where(count == 1, 1.0, p + share), 0.0)
    winner = a.gather(-1, tie.double().argmax(-1, keepdim=True))
    straddles = (a.amin(-1, keepdim=True) < 0) & (a.amax(-1, keepdim=True) > 0)

    def nearest(multiplier: Tensor) -> Tensor:
        y = p - multiplier * a
        ordered = y.sort(-1, descending=True).values
        excess = ordered.cumsum(-1) - 1
        size = torch.arange(1, len(keep) + 1, device=a.device)
        rank = ((ordered * size > excess) * size).amax(-1, keepdim=True).clamp(min=1)
        return (y - excess.gather(-1, rank - 1) / rank).clamp(min=0)

    low = torch.where(straddles, -1 / a.amax(-1, keepdim=True), 0.0)
    high = torch.where(straddles, -1 / a.amin(-1, keepdim=True), 0.0)
    for _ in range(120):
        middle = (low + high) / 2
        above = (nearest(middle) * a).sum(-1, keepdim=True) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    c = torch.where(straddles, nearest((low + high) / 2), one_sided)
    s = (winner + (c * (a - winner)).sum(-1, keepdim=True)) * unit
    s = torch.where(straddles, 0.0, s)[..., 0]
    w = a.new_zeros((*a.shape[:-1], n))
    w[..., keep] = c
    return torch.where(finite[..., None], w, math.nan), torch.where(finite, s, math.nan)
