"""Gradient space: Gram matrices and combinations of gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows(grads: list[Tensor], n: int, p: int) -> Tensor:
    """The p-th gradient of each objective in float64, flat: [n, d_p]. An empty one is zeros."""
    mine = [x.detach().to(torch.float64).reshape(-1) for x in grads[p :: len(grads) // n]]
    size = max(x.numel() for x in mine)
    return torch.stack([x if x.numel() == size else x.new_zeros(size) for x in mine])


def inner_products(rows: Tensor) -> Tensor:
    """Symmetric to the bit, which a library's product of a matrix and its transpose need not be."""
    upper = (rows @ rows.mT).triu()
    return upper + upper.triu(1).mT


def gram(grads: list[Tensor], n: int) -> Tensor:
    total = grads[0].new_zeros((n, n), dtype=torch.float64)
    for p in range(len(grads) // n):
        total += inner_products(_rows(grads, n, p))
    return total


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
