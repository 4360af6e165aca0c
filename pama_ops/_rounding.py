"""What rounding may cost an op, from its arguments: the bounds of `python -m pama_ops check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pama_ops import _ops, reference
from pama_ops.reference.pama import active_part
from pama_ops.reference.tokens import Tokens, merge_moments

U64, U32 = 2.0**-53, 2.0**-24
CHAIN = 64  # float32 products that `gram` may chain before it adds in float64, but on tensor cores


def bound(name: str, args: Sequence[Any], want: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding may cost: that of the result, and that of what it is computed from.

    - Gram matrices and combinations of float32 and half gradients: products and chains in float32,
      relative to the sum of magnitudes (their docstrings say how long a chain may be).
    - Weights from a Gram matrix: linear systems of at most n + 1 rows, solved in float64, err by
      64 n κ(G) u of the largest weight.
    - All else runs in float64, as its definition does: both may err by what `ERRORS` says.
      `pama_combine` may choose and apply a token's weights in float32: n + 2 roundings of the
      largest entry.
    """
    names = [x.name for x in getattr(_ops, name)._schema.arguments]
    a = SimpleNamespace(**dict(zip(names, args, strict=False)))
    u = torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0
    rounding = 1.001 * u * want.double().abs() + torch.finfo(torch.float64).tiny
    if name in ("gram", "gram_accumulate", "combine", "combine_into"):
        return rounding + _of_gradients(a.grads, getattr(a, "weights", None), want)
    if name in reference.WEIGHTINGS:
        return rounding + _of_weights(a.gram) * U64 * want.double().abs().max()
    if name == "pama_combine":
        n = len(a.advantages)
        rounding = rounding + (n + 2) * u * max(1.0, _largest(a.advantages))
    return rounding + 2 * U64 * ERRORS[name](a)


def _of_gradients(grads: list[Tensor], weights: Tensor | None, want: Tensor) -> Tensor:
    magnitudes = [x.abs() for x in grads]
    wide = grads[0].dtype == torch.float64
    if weights is None:
        n = want.shape[0]
        sums, length = reference.gram(magnitudes, n), sum(x.numel() for x in grads) // n
        return sums.mul(2 * length * U64 if wide else (CHAIN + 2) * U32)
    sums = torch.stack([x.max() for x in reference.combine(magnitudes, weights.abs())]).max()
    return (sums + want.abs()).mul((len(weights) + 2) * (U64 if wide else U32))


def _of_weights(gram: Tensor) -> float:
    g = gram.double()
    values: Tensor = torch.linalg.eigvalsh((g + g.mT) / 2)
    return 64 * g.shape[-1] * float((values.amax(-1) / values.amin(-1)).max())


# --- what float64 may cost ----------------------------------------------------------------------
#
# Errors in units of u, from an op's arguments `a`, by name. A sum of n terms, each formed by a few
# roundings, errs by at most 8 n of the sum of magnitudes, in whatever order it is added; a product
# by at most 8 of itself (Higham, Accuracy and Stability of Numerical Algorithms, §3.1 and §4.2).


def _largest(*tensors: Tensor | None) -> float:
    finite = [x.double()[x.isfinite()].abs().flatten() for x in tensors if x is not None]
    return float(torch.cat(finite).max())


def _of_ratio(logp: Tensor, other: Tensor) -> Tensor:
    """e^|x| of a difference x, which exceeds the ratio and every estimate of a divergence, times
    1 + |x|: x is rounded, and |x| is the condition number of e^x."""
    x = (logp.double() - other.double()).abs()
    return (1 + x) * x.exp()


def _whiten_apply(a: Any) -> float:
    """The difference from a mean that R ranks' moments merge into, in units of √(σ² + ε)."""
    merged, unit = merge_moments(a.moments.double())
    deviation = math.hypot(float((merged[:, 2] / unit).min()), math.sqrt(a.eps))
    return 8 * len(a.moments) * 2 * _largest(a.advantages, a.moments[..., 1:]) / deviation


def _group_normalize(a: Any) -> float:
    """A deviation d and σ err alike, and d / (σ + ε) is at most √size. Of size rewards that spread
    over s, σ is at least s / √(2 (size − 1)); in a group of equal rewards all is exactly 0."""
    size: int = a.group_size
    groups = a.rewards.double().unflatten(-1, (-1, size))
    spread = groups.nan_to_num(-math.inf).amax(-1) - groups.nan_to_num(math.inf).amin(-1)
    spread = spread[spread > 0]
    if not len(spread):
        return 0.0
    deviation: float = float(spread.min()) / math.sqrt(2 * (size - 1)) + a.eps
    return 8 * size * 2 * _largest(a.rewards) * math.sqrt(size) / deviation


def _active_part(a: Any) -> Tensor:
    tokens = Tokens(a.advantages, a.mask, a.cu_seqlens)
    rule = a.epsilon_low, a.epsilon_high, a.noon, a.ratio_weighted
    return active_part(tokens, a.advantages, a.log_ratio, *rule)[1]


def _pama_statistics(a: Any) -> float:
    """Sums over the tokens of an active part, or of products of two."""
    part = _active_part(a)
    return 8 * part[0].numel() * float((part.abs() + part**2).sum((-2, -1)).max())


def _of_theorem_1(n: int, error_of_a_value: float) -> float:
    """The weights where values differ in sign solve Σ c = 1 and Σ c a = 0 on their support. That
    holds both signs, so that the rows are far from parallel however the values a are scaled: the n
    weights err by the relative errors of the values. Elsewhere they are sums of preferences."""
    return 8 * n * error_of_a_value


def _pama_combine(a: Any) -> float:
    """The weights' error, in sums of n advantages.

    The values that they are of are tokens, or come with the statistics; or they are means over a
    sequence, whose relative error is that of T terms times the condition number of their sum.
    """
    n, error = len(a.advantages), 1.0
    if a.reduction == reference.SEQUENCE:
        part = _active_part(a)
        condition = part.abs().sum(-1) / part.sum(-1).abs()  # 0 / 0: nothing was rounded
        error = part.shape[-1] * float(condition.nan_to_num(1.0).max())
    weights = _of_theorem_1(n, error)
    if a.reduction == reference.GRAM:
        active = a.statistics[:n] != 0
        weights = _of_weights(a.statistics[n:].view(n, n)[active][:, active])
    return weights * max(1.0, n * _largest(a.advantages))


def _ppo_loss(a: Any) -> float:
    """Ratios, ratios times advantages, and estimates of a divergence: means of them, by whatever
    weights, or sums over no less than 1."""
    tokens = Tokens(a.logp, a.mask, a.cu_seqlens)

    def kept(x: Tensor) -> Tensor:
        return tokens.select(x)[tokens.mask]

    logp = kept(a.logp)
    size = _of_ratio(logp, kept(a.old_logp)) * (1 + kept(a.advantages).abs())
    if a.ref_logp is not None:
        size = size + (1 + a.kl_coef) * _of_ratio(logp, kept(a.ref_logp))
    means = (reference.TOKEN_MEAN, reference.SEQUENCE_MEAN_TOKEN_MEAN)
    is_mean = a.aggregate in means and a.normalizer is None and a.divisor == 0
    return 8 * len(logp) * max(_largest(size), 0.0 if is_mean else float(size.sum()))


def _ppo_loss_backward(a: Any) -> float:
    """A token's own slope: nothing is summed but the penalty's."""
    slope = _of_ratio(a.logp, a.old_logp) * a.advantages.abs()
    if a.ref_logp is not None:
        slope = slope + a.kl_coef * _of_ratio(a.logp, a.ref_logp)
    return 8 * _largest(a.grad) * _largest(a.row_weights) * _largest(slope)


def _value_loss(a: Any) -> float:
    """Half the square of the distance from a return to a value, or to a clipped one, which lies
    between the value and one within `clip` of the old: a mean, or a sum over no less than 1. What
    a token counts is 1 at most."""
    farthest: float = _largest(a.values, a.old_values) + a.clip + _largest(a.returns)
    is_mean = a.normalizer is None and a.divisor == 0
    count: int = a.values[0].numel()
    return 8 * count * max(1.0, farthest**2 / 2) * (1 if is_mean else count)


def _gae(a: Any) -> float:
    """A discounted sum of δ, each of three numbers; a step of it rounds all that came before."""
    steps: float = min(float(a.rewards.shape[-1]), 1 / max(1 - a.gamma * a.lam, U64))  # in effect
    return 8 * steps**2 * 3 * _largest(a.rewards, a.values, a.last_values)


ERRORS: dict[str, Callable[[Any], float]] = {
    "gae": _gae,
    # Means of deviations, which are at most twice the largest number; and the root of a mean of
    # their squares, which errs no more than they do.
    "whiten_moments": lambda a: 8 * a.advantages[0].numel() * 2 * _largest(a.advantages),
    "whiten_apply": _whiten_apply,
    "group_normalize": _group_normalize,
    "group_informative": lambda _: 0.0,  # compares, and computes nothing
    "pama_statistics": _pama_statistics,
    "pama_combine": _pama_combine,
    # The values are given, and the optimum is a combination of them.
    "pama_weights": lambda a: _of_theorem_1(a.values.shape[-1], 1.0) * max(1.0, _largest(a.values)),
    "ppo_loss": _ppo_loss,
    "ppo_loss_backward": _ppo_loss_backward,
    "value_loss": _value_loss,
    # A difference, times two numbers.
    "value_loss_backward": lambda a: (
        8 * _largest(a.grad) * _largest(a.scale) * (_largest(a.values) + _largest(a.returns))
    ),
    # A token's own estimate; and its slope, which is 1, a difference or e^x - 1.
    "kl_divergence": lambda a: 8 * _largest(_of_ratio(a.logp, a.ref_logp)),
    "kl_divergence_backward": lambda a: (
        8 * _largest(a.grad) * _largest(_of_ratio(a.logp, a.ref_logp))
    ),
    # wᵀ G w - min (G w), of weights that sum to 1: in a row two sums of n.
    "duality_gap": lambda a: 8 * 2 * a.gram.shape[-1] * _largest(a.gram),
}
