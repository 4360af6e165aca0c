"""Which tensors share memory, as csrc/gradient_list.h tells it: by where they begin and how much
they hold. Of tensors with holes only those that begin together are told.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Extent(NamedTuple):
    """The bytes from a tensor's first element on that as many elements without holes would lie in,
    and which tensor of a list it is.
    """

    first: int
    last: int
    which: int


def extents(tensors: Iterable[Tensor]) -> list[Extent]:
    """Of those that have elements and an address, in the order of their addresses."""
    begins = ((k, x, x.data_ptr()) for k, x in enumerate(tensors) if x.numel() > 0)
    found = [Extent(at, at + x.nbytes, k) for k, x, at in begins if at != 0]
    return sorted(found, key=lambda x: x.first)


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a run of memory in some order of the dimensions."""
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def same_order(x: Tensor, y: Tensor) -> bool:
    """Whether walking two dense tensors of one shape meets their elements in the same order."""
    steps = zip(x.shape, x.stride(), y.stride(), strict=True)
    return all(size == 1 or one == other for size, one, other in steps)


def must_overlap_itself(x: Tensor) -> bool:
    """Whether elements must share places, by a stride of 0 or too few of them: not all that do."""
    if x.numel() == 0 or x.is_contiguous():
        return False
    steps = [(size - 1, step) for size, step in zip(x.shape, x.stride(), strict=True) if size > 1]
    places = 1 + sum(most * step for most, step in steps)
    return places < x.numel() or any(step == 0 for _, step in steps)


def refuse_overlap(name: str, x: Tensor) -> None:
    if must_overlap_itself(x):
        raise ValueError(
            f"{name} must have memory for each element, got one that shares some: clone() it"
        )


def sharing(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two of the tensors that share memory, the lower index first; None if none do."""
    runs = extents(tensors)
    for one, other in pairwise(runs):
        if one.first == other.first:
            return min(one.which, other.which), max(one.which, other.which)
    for one, other in pairwise([run for run in runs if is_dense(tensors[run.which])]):
        if other.first < one.last:
            return min(one.which, other.which), max(one.which, other.which)
    return None


def meeting(run: Extent, apart: Sequence[Extent]) -> Extent | None:
    """The one of some extents, in order and apart from each other, that shares bytes with `run`."""
    after = bisect_right(apart, run.first, key=lambda x: x.first)
    near = [*apart[after : after + 1], *apart[max(after - 1, 0) : after]]
    return next((x for x in near if x.first < run.last and run.first < x.last), None)
