"""Gradient space: Gram matrices and combinations of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pama_ops import _memory as memory


def _columns(grads: list[Tensor], n: int) -> Iterator[tuple[Tensor, Tensor, torch.Size]]:
    """For each parameter which objectives have a gradient, these in float64, flat: [m, d], and
    their shape.

    An empty tensor among others that are not is missing: it takes part in no product, so that no
    0 · ∞ arises.
    """
    count = len(grads) // n
    for p in range(count):
        column = grads[p::count]
        size = max(x.numel() for x in column)
        having = [i for i, x in enumerate(column) if x.numel() == size]
        rows = torch.stack([column[i].detach().to(torch.float64).reshape(-1) for i in having])
        yield torch.tensor(having, device=rows.device), rows, column[having[0]].shape


def inner_products(rows: Tensor) -> Tensor:
    """Symmetric to the bit, which a library's product of a matrix and its transpose need not be."""
    upper = (rows @ rows.mT).triu()
    return upper + upper.triu(1).mT


def gram(grads: list[Tensor], n: int) -> Tensor:
    total = grads[0].new_zeros((n, n), dtype=torch.float64)
    for having, rows, _ in _columns(grads, n):
        total[having[:, None], having] += inner_products(rows)
    return total


def gram_accumulate(total: Tensor, grads: list[Tensor]) -> None:
    total += gram(grads, total.shape[0])


def combine(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    w = weights.detach().to(torch.float64)
    return [(w[having] @ rows).reshape(shape) for having, rows, shape in _columns(grads, len(w))]


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
