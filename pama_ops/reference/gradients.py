"""Gradient space: Gram matrices and combinations of gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows(grads: list[Tensor], n: int, p: int) -> tuple[Tensor, Tensor]:
    """Which objectives have a p-th gradient, and these in float64, flat: [m, d_p].

    An empty tensor among others that are not is missing: it takes part in no product, so that no
    0 · ∞ arises.
    """
    mine = [x.detach().to(torch.float64).reshape(-1) for x in grads[p :: len(grads) // n]]
    size = max(x.numel() for x in mine)
    having = [i for i, x in enumerate(mine) if x.numel() == size]
    return torch.tensor(having, device=mine[0].device), torch.stack([mine[i] for i in having])


def inner_products(rows: Tensor) -> Tensor:
    """Symmetric to the bit, which a library's product of a matrix and its transpose need not be."""
    upper = (rows @ rows.mT).triu()
    return upper + upper.triu(1).mT


def gram(grads: list[Tensor], n: int) -> Tensor:
    total = grads[0].new_zeros((n, n), dtype=torch.float64)
    for p in range(len(grads) // n):
        having, rows = _rows(grads, n, p)
        total[having[:, None], having] += inner_products(rows)
    return total


def gram_accumulate(total: Tensor, grads: list[Tensor]) -> None:
    total += gram(grads, total.shape[0])


def combine(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    n, w = weights.shape[0], weights.detach().to(torch.float64)
    shapes = [
        max((x.shape for x in grads[p :: len(grads) // n]), key=lambda shape: shape.numel())
        for p in range(len(grads) // n)
    ]
    parts = (_rows(grads, n, p) for p in range(len(shapes)))
    return [
        (w[having] @ rows).reshape(shape)
        for (having, rows), shape in zip(parts, shapes, strict=True)
    ]


def _check_apart(out: list[Tensor], grads: list[Tensor]) -> None:
    """As csrc/gradient_list.h says."""
    count = len(out)

    def dense(x: Tensor) -> bool:
        return bool(torch.ops.aten.is_non_overlapping_and_dense(x))

    def meet(a: Tensor, b: Tensor) -> bool:
        first, other = a.data_ptr(), b.data_ptr()
        if a.device != b.device or 0 in (a.numel(), b.numel(), first, other):
            return False
        within = first < other + b.nbytes and other < first + a.nbytes
        return first == other or (within and dense(a) and dense(b))

    for p, x in enumerate(out):
        if any(size > 1 and step == 0 for size, step in zip(x.shape, x.stride(), strict=True)):
            raise ValueError(
                f"out[{p}] must have memory for each element, got an expanded tensor: clone() it"
            )
        for q in range(p):
            if meet(x, out[q]):
                raise ValueError(f"out[{p}] must share no memory with out[{q}], but does")
        for k, grad in enumerate(grads):
            itself = k % count == p and x.data_ptr() == grad.data_ptr()
            if not itself and meet(x, grad):
                raise ValueError(
                    f"out[{p}] must be a whole gradient of its parameter or share no memory with "
                    f"grads, but shares some with grads[{k // count}][{k % count}]"
                )


def combine_into(out: list[Tensor], grads: list[Tensor], weights: Tensor, accumulate: bool) -> None:
    _check_apart(out, grads)
    for to, combined in zip(out, combine(grads, weights), strict=True):
        to.copy_(to.detach().to(torch.float64) + combined if accumulate else combined)
