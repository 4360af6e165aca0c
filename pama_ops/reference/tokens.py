"""Token arrays, and the advantages of token space."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Tokens:
    """Token arrays of one call as padded float64 [..., B, T], whichever layout they came in."""

    def __init__(
        self,
        like: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        *,
        keep_rows: bool = False,
    ) -> None:
        self._index: Tensor | None = None
        # Rows without a token, of which there may be any number, are left out but on request.
        self._none = cu_seqlens is None and like.shape[-1] == 0 and not keep_rows
        self._rows = like.shape[-2] if self._none else 0
        if cu_seqlens is not None:
            starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
            longest = int(lengths.max()) if lengths.numel() else 0
            steps = torch.arange(longest, device=like.device)
            self._total = like.shape[-1]
            self._inside = steps < lengths[:, None]
            self._index = torch.where(self._inside, starts[:, None] + steps, 0)
        if mask is None:
            mask = like.new_ones(like.shape[-2 if cu_seqlens is None else -1 :])
        self.mask = self.pad(mask) != 0
        self.count = self.mask.sum(-1)

    def pad(self, x: Tensor) -> Tensor:
        """`x` in float64, padded by zeros to [..., B, T]."""
        x = x.detach().to(torch.float64)
        if self._none:
            return x[..., :0, :]
        if self._index is None:
            return x
        if self._total == 0:
            return x.new_zeros((*x.shape[:-1], *self._index.shape))
        return torch.where(self._inside, x[..., self._index], 0.0)

    def select(self, x: Tensor) -> Tensor:
        """`x` padded, with whatever stands at masked positions replaced by 0."""
        return torch.where(self.mask, self.pad(x), 0.0)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of `pad`, with 0 at masked positions."""
        x = x.masked_fill(~self.mask, 0)
        if self._none:
            return x.new_empty((*x.shape[:-2], self._rows, 0))
        if self._index is None:
            return x
        out = x.new_zeros((*x.shape[:-2], self._total))
        out[..., self._index[self._inside]] = x[..., self._inside]
        return out


def log_clip(epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """The bounds of a ratio as logarithms, in which the test against them is exact."""
    return math.log1p(-epsilon_low) if epsilon_low < 1 else -math.inf, math.log1p(epsilon_high)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None,
    last_values: Tensor | None,
    cu_seqlens: Tensor | None,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    if rewards.numel() == 0:  # of any number of rows or steps
        return torch.empty_like(rewards), torch.empty_like(rewards)
    tokens = Tokens(rewards, mask, cu_seqlens)
    r, v = tokens.select(rewards), tokens.select(values)
    advantages = torch.zeros_like(r)
    advantage = r.new_zeros(r.shape[:-1])
    value = advantage if last_values is None else last_values.detach().to(torch.float64)
    for t in reversed(range(r.shape[-1])):
        here = tokens.mask[:, t]
        delta = r[..., t] + gamma * value - v[..., t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        value = torch.where(here, v[..., t], value)
        advantages[..., t] = advantage
    return tokens.unpad(advantages), tokens.unpad(advantages + v)


def _unit(largest: Tensor) -> Tensor:
    """The power of two times which moments are taken of numbers: squares of those beyond 1e154
    leave the range of float64."""
    one = largest.new_ones(())
    return torch.where((largest > 2.0**480) & largest.isfinite(), 2.0**-600, one)


def whiten_moments(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Count, mean and root mean square deviation of each objective's masked tokens: [N, 3]."""
    tokens = Tokens(x, mask, cu_seqlens)
    inside, x = tokens.mask.flatten(), tokens.select(x).flatten(1)
    if x.shape[1] == 0:
        return x.new_zeros((len(x), 3))
    count = inside.sum().to(torch.float64)
    unit = _unit(x.abs().amax(1))
    x = x * unit[:, None]
    # Around one of them, so that equal numbers deviate by exactly 0.
    first = x[:, inside.int().argmax()]
    x = torch.where(inside, x - first[:, None], 0.0)
    offset = x.sum(1) / count.clamp(min=1)
    deviation = torch.where(inside, x - offset[:, None], 0.0)
    deviation = ((deviation**2).sum(1) / count.clamp(min=1)).sqrt()
    limits = torch.finfo(torch.float64)
    of_finite = [(y / unit).clamp(limits.min, limits.max) for y in (first + offset, deviation)]
    return torch.stack([count.expand_as(deviation), *of_finite], -1)


def merge_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the union of disjoint sets of tokens, [R, N, 3] -> [N, 3], in units of [N]."""
    count, mean, deviation = moments.unbind(-1)
    unit = _unit(torch.maximum(mean.abs(), deviation).amax(0))
    mean, deviation = mean * unit, deviation * unit
    total = count.sum(0)
    # Around one of them, so that equal means deviate by exactly 0.
    first = mean.gather(0, count.argmax(0, keepdim=True))
    offset = torch.where(count > 0, count * (mean - first), 0.0).sum(0) / total.clamp(min=1)
    union = first[0] + offset
    between = torch.where(count > 0, (mean - union) ** 2, 0.0)
    square = (count * (deviation**2 + between)).sum(0) / total.clamp(min=1)
    return torch.stack([total, union, square.sqrt()], -1), unit


def whiten_apply(
    x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, moments: Tensor, eps: float
) -> Tensor:
    tokens = Tokens(x, mask, cu_seqlens)
    merged, unit = merge_moments(moments)
    count, mean, deviation = merged[:, :, None, None].unbind(1)
    unit = unit[:, None, None]
    variance = deviation**2 * count / (count - 1).clamp(min=1)
    # In small units eps may come to 0; the least number keeps equal ones at 0.
    scale = torch.rsqrt(variance + (eps * unit * unit).clamp(min=torch.finfo(torch.float64).tiny))
    return tokens.unpad((tokens.pad(x) * unit - mean) * scale)


def group_normalize(rewards: Tensor, group_size: int, eps: float) -> Tensor:
    batch = rewards.shape[-1]
    r = rewards.detach().to(torch.float64)
    r = r.reshape(*r.shape[:-1], batch // group_size, group_size)
    valid = ~r.isnan()
    count = valid.sum(-1, keepdim=True)
    # In units of the largest, by a power of two, where squares would leave the range of numbers.
    largest = torch.where(valid, r.abs(), 0.0).amax(-1, keepdim=True)
    ordinary = (largest == 0) | ((largest > 2.0**-400) & (largest < 2.0**400))
    scaled = ~ordinary & largest.isfinite()
    exponent = torch.frexp(largest).exponent.double()
    unit = torch.where(scaled, 2.0 ** (1.0 - exponent).clamp(max=1000), 1.0)
    r = r * unit
    # Around the first valid reward, so that equal rewards deviate by exactly 0.
    r = r - r.gather(-1, valid.int().argmax(-1, keepdim=True))
    mean = torch.where(valid, r, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(valid, r - mean, 0.0)
    std = ((deviation**2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    normalized = deviation / (std + eps * unit)
    return torch.where((count > 1) & (deviation != 0), normalized, 0.0).reshape(rewards.shape)


def group_informative(rewards: Tensor, group_size: int) -> Tensor:
    """Whether a reward applies (is not NaN), in a group whose rewards are not all equal."""
    r = rewards.detach()
    r = r.reshape(*r.shape[:-1], r.shape[-1] // group_size, group_size)
    valid = ~r.isnan()
    first = r.gather(-1, valid.int().argmax(-1, keepdim=True))
    differs = (valid & (r != first)).any(-1, keepdim=True)
    return (valid & differs).reshape(rewards.shape)
