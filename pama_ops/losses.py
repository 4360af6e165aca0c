"""Losses on tokens: the clipped policy loss, the value loss, estimates of the KL divergence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _forward_mode as forward_mode
from pama_ops import _ops as ops
from pama_ops._dispatch import call

AGGREGATES = ("token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum", "token-sum")
ESTIMATORS = ("k1", "k2", "k3")


class PPOLoss(NamedTuple):
    """Result of `ppo_loss`; all but `loss` are detached means over the masked tokens.

    Attributes:
        loss: [] scalar, differentiable in `logp`.
        clip_fraction: share of tokens where the clip holds the surrogate flat.
        approx_kl: k3 estimate of KL(π_old ‖ π), never negative.
        ratio_mean: mean of u.
        kl: mean estimate of the KL divergence to `ref_logp`, of which the loss holds β; 0 without.
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_mean: Tensor
    kl: Tensor


def kl_divergence(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor | None = None,
    *,
    estimator: str = "k3",
    check_values: bool = False,
) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from samples of π.

    With k = log π − log π_ref:  "k1": k;  "k2": ½ k²;  "k3": exp(−k) − 1 + k.

    Args:
        logp: log π of the sampled tokens, [B, T] or any 1- or 2-dimensional shape.
        ref_logp: log π_ref, same shape.
        mask: same shape, bool, integer or float 0/1; None is all ones.
        estimator: "k1", "k2" or "k3".
        check_values: check the values of `mask` on a GPU too (synchronises).

    Returns:
        Same shape, contiguous, at least float32, 0 at masked positions. Differentiable once in
        `logp` and `ref_logp`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Complexity: one pass. Source: Schulman, "Approximating KL divergence", 2020.

    >>> kl_divergence(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), estimator="k1")
    tensor([[0.5000]])
    """
    kind = 1 + check.choice("estimator", estimator, ESTIMATORS)
    forward_mode.refuse_constants("kl_divergence", mask=mask)
    towards: Tensor | None = None
    away: Tensor | None = None
    if forward_mode.carries(logp, ref_logp):
        (logp, towards), (ref_logp, away) = forward_mode.split(logp), forward_mode.split(ref_logp)
    kl: Tensor = call(ops.kl_divergence, logp, ref_logp, mask, kind, check_values=check_values)
    if towards is None and away is None:
        return kl
    ones = torch.ones_like(logp)
    slope = ops.kl_divergence_backward(ones, logp, ref_logp, mask, kind)
    total = torch.zeros_like(slope)
    for sign, tangent in (1, towards), (-1, away):
        if tangent is not None:
            total = total + sign * forward_mode.products(slope, tangent)
    return forward_mode.join("kl_divergence", kl, total)


def ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip: check.Clip = 0.2,
    aggregate: str = "token-mean",
    normalizer: Tensor | float | None = None,
    ref_logp: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    cu_seqlens: Tensor | None = None,
    check_values: bool = False,
) -> PPOLoss:
    """The clipped policy loss, its statistics in the same pass, its gradient in one more.

    With u = exp(logp − old_logp), the loss is the aggregate over masked tokens of

        −min(u A, clip(u, 1 − ε_low, 1 + ε_high) A) + β KL_t(logp, ref_logp)

    where "token-mean" sums and divides by the masked tokens, "sequence-mean-token-mean" averages
    each sequence, then the non-empty sequences, "sequence-mean-token-sum" sums each sequence and
    averages those, and "token-sum" sums. `normalizer` replaces the (last) divisor, e.g. by the
    token count over all ranks and micro-batches. `advantages`, `old_logp` and `ref_logp` are
    constants: no gradient flows to them.

    Args:
        logp: log π of the sampled tokens, [B, T] (ragged [total]), any strides.
        old_logp: log π_old, same shape.
        advantages: A, same shape, e.g. `pama_advantages(...).advantages`.
        mask: same shape, bool, integer or float 0/1; None is all ones.
        clip: ε, or the pair (ε_low, ε_high).
        aggregate: one of the four above.
        normalizer: positive number, or a tensor of one element (on a CPU checked not to be
            negative), a constant.
        ref_logp: log π_ref, same shape; needed when kl_coef is not 0.
        kl_coef: β; where it is 0, `ref_logp` only serves the statistic.
        kl_estimator: "k1", "k2" or "k3", see `kl_divergence`.
        cu_seqlens: ragged arrays, see `gae`.
        check_values: check the values of `mask`, `cu_seqlens` and `normalizer` on a GPU too
            (synchronises).

    Returns:
        `PPOLoss`, scalars in the widest dtype given (at least float32). Sums run in float64. No
        unmasked token gives 0. Differentiable once, in `logp`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Complexity: O(B T), one pass forwards and one backwards.
    Source: Schulman et al., arXiv 1707.06347, eq. 7; aggregates: Yu et al., arXiv 2503.14476.

    >>> zeros = torch.zeros(1, 2)
    >>> ppo_loss(zeros, zeros, torch.tensor([[1.0, 3.0]])).loss
    tensor(-2.)
    """
    epsilon_low, epsilon_high = check.clip(clip)
    kind = check.choice("aggregate", aggregate, AGGREGATES)
    estimator = 1 + check.choice("kl_estimator", kl_estimator, ESTIMATORS)
    kl_coef = check.finite("kl_coef", kl_coef)
    if kl_coef != 0 and ref_logp is None:
        raise ValueError(f"ref_logp must be given when kl_coef is not 0, got None and {kl_coef}")
    norm, divisor = check.normalizer(normalizer)
    tangent: Tensor | None = None
    if forward_mode.active():
        forward_mode.refuse_constants(
            "ppo_loss",
            old_logp=old_logp,
            advantages=advantages,
            mask=mask,
            ref_logp=ref_logp,
            normalizer=norm,
        )
        logp, tangent = forward_mode.split(logp)
    tokens, clips = (logp, old_logp, advantages, mask, ref_logp), (epsilon_low, epsilon_high)
    loss, statistics, row_weights = call(
        ops.ppo_loss, *tokens, norm, cu_seqlens, *clips, kind, divisor, kl_coef, estimator,
        check_values=check_values,
    )  # fmt: skip
    if tangent is not None:
        slope = ops.ppo_loss_backward(
            torch.ones_like(loss), row_weights, *tokens, cu_seqlens, *clips, kl_coef, estimator
        )
        loss = forward_mode.join("ppo_loss", loss, forward_mode.products(slope, tangent).sum())
    return PPOLoss(loss, *statistics.detach().unbind())


def value_loss(
    values: Tensor,
    returns: Tensor,
    mask: Tensor | None = None,
    *,
    old_values: Tensor | None = None,
    clip: float = 0.2,
    normalizer: Tensor | float | None = None,
    cu_seqlens: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """The squared error of N value heads, clipped around the old values if those are given.

    L_i = 1/Z Σ_t m_t ½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²), Z the masked tokens.

    Args:
        values: V, [N, B, T] (ragged [N, total]), any strides.
        returns: R, same shape, constants.
        mask: [B, T], bool, integer or float 0/1; None is all ones.
        old_values: V_old, same shape, constants; None is no clipping.
        clip: ε > 0.
        normalizer: positive number, or a tensor of one element, in place of Z; a constant.
        cu_seqlens: ragged arrays, see `gae`.
        check_values: see `gae`.

    Returns:
        Losses [N], at least float32, differentiable once in `values`; 0 without unmasked tokens.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Complexity: O(N B T), one pass forwards and one backwards.
    Source: Schulman et al., arXiv 1707.06347; the clip is that of OpenAI's baselines.

    >>> value_loss(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2))
    tensor([2.5000])
    """
    clip = check.positive("clip", clip)
    norm, divisor = check.normalizer(normalizer)
    tangent: Tensor | None = None
    if forward_mode.active():
        forward_mode.refuse_constants(
            "value_loss", returns=returns, mask=mask, old_values=old_values, normalizer=norm
        )
        values, tangent = forward_mode.split(values)
    loss: Tensor
    tokens = values, returns, mask, old_values
    loss, scale = call(
        ops.value_loss, *tokens, norm, cu_seqlens, clip, divisor, check_values=check_values
    )
    if tangent is None:
        return loss
    slope = ops.value_loss_backward(torch.ones_like(loss), scale, *tokens, cu_seqlens, clip)
    tangents = forward_mode.products(slope, tangent).flatten(1).sum(-1)
    return forward_mode.join("value_loss", loss, tangents)
