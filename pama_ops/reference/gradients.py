"""Gradient space: Gram matrices and combinations of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pama_ops import _memory as memory


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


def walked_in_place(column: list[Tensor]) -> bool:
    """Whether the kernels walk the gradients of a parameter where they lie, not through copies."""
    first = column[0]
    if first.is_contiguous():
        return all(x.is_contiguous() for x in column)
    return memory.is_dense(first) and all(memory.same_order(first, x) for x in column)


def _check_apart(out: list[Tensor], grads: list[Tensor]) -> None:
    """As csrc/tensors/gradient_list.h says."""
    count = len(out)
    for p, x in enumerate(out):
        memory.refuse_overlap(f"out[{p}]", x)
    if pair := memory.sharing(out):
        raise ValueError(f"out[{pair[1]}] must share no memory with out[{pair[0]}], but does")
    written = [run for run in memory.spans(out) if memory.is_dense(out[run.which])]
    columns = ([x for x in grads[p::count] if x.numel() > 0] for p in range(count))
    in_place = [not column or walked_in_place(column) for column in columns]
    for k, x in enumerate(grads):
        i, p = divmod(k, count)
        if not in_place[p] and not x.is_contiguous():
            continue  # read from a copy
        for run in memory.spans([x]):
            met = memory.meeting(run, written)
            if met and not (met.which == p and met.first == run.first):
                raise ValueError(
                    f"out[{met.which}] must be a whole gradient of its parameter or share no "
                    f"memory with grads, but shares some with grads[{i}][{p}]"
                )


def combine_into(out: list[Tensor], grads: list[Tensor], weights: Tensor, accumulate: bool) -> None:
    _check_apart(out, grads)
    for to, combined in zip(out, combine(grads, weights), strict=True):
        if to.numel() == 0:  # its shape need not be that of the gradients, which are empty too
            continue
        to.copy_(to.detach().to(torch.float64) + combined if accumulate else combined)
