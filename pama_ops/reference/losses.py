"""The losses of token space and their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pama_ops.reference.tokens import Tokens, log_clip

TOKEN_MEAN, SEQUENCE_MEAN_TOKEN_MEAN, SEQUENCE_MEAN_TOKEN_SUM, TOKEN_SUM = range(4)
K1, K2, K3 = 1, 2, 3


def kl_estimate(log_ratio: Tensor, estimator: int) -> Tensor:
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


def kl_estimate_slope(log_ratio: Tensor, estimator: int) -> Tensor:
    if estimator == K1:
        return torch.ones_like(log_ratio)
    return log_ratio if estimator == K2 else -torch.expm1(-log_ratio)


def kl_divergence(logp: Tensor, ref_logp: Tensor, mask: Tensor | None, estimator: int) -> Tensor:
    kl = kl_estimate(logp.detach().double() - ref_logp.detach().double(), estimator)
    return kl if mask is None else torch.where(mask != 0, kl, 0.0)


def kl_divergence_backward(
    grad: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor | None, estimator: int
) -> Tensor:
    slope = grad.double() * kl_estimate_slope(logp.double() - ref_logp.double(), estimator)
    return slope if mask is None else torch.where(mask != 0, slope, 0.0)


def _ppo_tokens(
    tokens: Tokens, logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log u, the surrogate min(u A, clip(u) A), whether the clip holds it flat, and u A."""
    log_ratio = tokens.select(logp) - tokens.select(old_logp)
    a = tokens.select(advantages)
    # An advantage of 0 counts 0, also where the ratio is infinite.
    plain = torch.where((a == 0) & ~log_ratio.isnan(), 0.0, log_ratio.exp() * a)
    (low, high), (least, largest) = clip, log_clip(*clip)
    # False for NaN, which so goes through.
    above, under = (a > 0) & (log_ratio > largest), (a < 0) & (log_ratio < least)
    clipped = torch.where(above, (1 + high) * a, (1 - low) * a)
    return log_ratio, torch.where(above | under, clipped, plain), above | under, plain


def _divisor(normalizer: Tensor | None, divisor: float, own: Tensor) -> Tensor:
    """What a loss is divided by, which is its `own` count where the caller gives none."""
    if normalizer is not None:
        return normalizer.to(torch.float64).reshape(())
    return own if divisor == 0 else own.new_tensor(divisor)


def _row_weights(
    tokens: Tokens, aggregate: int, normalizer: Tensor | None, divisor: float
) -> Tensor:
    """What one token of each sequence counts in the loss: [B]."""
    count = tokens.count.to(torch.float64)
    rows = (count > 0).to(torch.float64)
    weights = rows / count.clamp(min=1) if aggregate == SEQUENCE_MEAN_TOKEN_MEAN else rows
    own = (count if aggregate == TOKEN_MEAN else rows).sum().clamp(min=1)
    if aggregate == TOKEN_SUM:
        own = torch.ones_like(own)
    return torch.where(count > 0, weights / _divisor(normalizer, divisor, own), 0.0)


def ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logp: Tensor | None,
    normalizer: Tensor | None,
    cu_seqlens: Tensor | None,
    epsilon_low: float,
    epsilon_high: float,
    aggregate: int,
    divisor: float,
    kl_coef: float,
    estimator: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; (clip fraction, approximate KL, ratio mean, KL to reference); row weights [B]."""
    tokens = Tokens(logp, mask, cu_seqlens)
    log_ratio, surrogate, flat, _ = _ppo_tokens(
        tokens, logp, old_logp, advantages, (epsilon_low, epsilon_high)
    )
    kl = torch.zeros_like(log_ratio)
    if ref_logp is not None:
        kl = kl_estimate(tokens.select(logp) - tokens.select(ref_logp), estimator)
    weights = _row_weights(tokens, aggregate, normalizer, divisor)
    penalty = kl_coef * kl if kl_coef != 0 else torch.zeros_like(kl)
    row_loss = torch.where(tokens.mask, penalty - surrogate, 0.0).sum(-1)
    # An empty sequence is left out, not multiplied by 0.
    loss = torch.where(tokens.count > 0, weights * row_loss, 0.0).sum()
    parts = torch.stack([flat.double(), kl_estimate(-log_ratio, K3), log_ratio.exp(), kl])
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
    epsilon_low: float,
    epsilon_high: float,
    kl_coef: float,
    estimator: int,
) -> Tensor:
    tokens = Tokens(logp, mask, cu_seqlens)
    clip = epsilon_low, epsilon_high
    _, _, flat, plain = _ppo_tokens(tokens, logp, old_logp, advantages, clip)
    slope = -torch.where(flat, 0.0, plain)
    if ref_logp is not None and kl_coef != 0:
        log_ratio = tokens.select(logp) - tokens.select(ref_logp)
        slope = slope + kl_coef * kl_estimate_slope(log_ratio, estimator)
    return tokens.unpad(grad.double() * row_weights.double()[:, None] * slope)


def _value_errors(
    tokens: Tokens, values: Tensor, returns: Tensor, old_values: Tensor | None, clip: float
) -> tuple[Tensor, Tensor]:
    """Squared error and its slope in the value, per token: 0 at masked positions."""
    v, r = tokens.select(values), tokens.select(returns)
    error, slope = (v - r) ** 2, v - r
    if old_values is not None:
        old = tokens.select(old_values)
        clipped = (v.clamp(old - clip, old + clip) - r) ** 2
        # `maximum` lets a NaN of the old value through.
        slope = torch.where(clipped.isnan(), clipped, torch.where(clipped > error, 0.0, slope))
        error = torch.maximum(clipped, error)
    return error, slope


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
    tokens = Tokens(values, mask, cu_seqlens)
    error, _ = _value_errors(tokens, values, returns, old_values, clip)
    count = tokens.count.sum().to(torch.float64)
    total = _divisor(normalizer, divisor, count.clamp(min=1))
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
    tokens = Tokens(values, mask, cu_seqlens)
    _, slope = _value_errors(tokens, values, returns, old_values, clip)
    return tokens.unpad(grad.double()[:, None, None] * scale * slope)
