"""Which tensors share memory, also of those with holes, by their strides, as
csrc/tensors/overlap.h tells it for kernels. None that do are missed; where strides are so odd that
an answer is not found soon, they are said to. Tensors whose spans meet are asked pair by pair.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Where a tensor lies, the which-th of a list: from its first byte to before `end`."""

    first: int
    end: int
    which: int


class Steps(NamedTuple):
    """Some multiples of a step: 0 to `most` of them."""

    step: int
    most: int


def spans(tensors: Iterable[Tensor]) -> list[Span]:
    """Of those that have elements and an address, in the order of their addresses."""
    begins = ((k, x, x.data_ptr()) for k, x in enumerate(tensors) if x.numel() > 0)
    found = [Span(at, at + _bytes(x), k) for k, x, at in begins if at != 0]
    return sorted(found, key=lambda x: (x.first, x.which))


def _bytes(x: Tensor) -> int:
    if x.is_contiguous():
        return x.nbytes
    return x.itemsize + sum(step * most for step, most in _steps(x, x.itemsize))


def _steps(x: Tensor, unit: int) -> list[Steps]:
    """How far the dimensions step, in bytes of `unit` an element."""
    sizes = zip(x.stride(), x.shape, strict=True)
    return [Steps(step * unit, size - 1) for step, size in sizes if size > 1]


def _makes(steps: list[Steps], total: int) -> bool:
    """Whether `total` is a sum of steps, each in any number it allows; also true where the search
    is given up.
    """
    merged: list[Steps] = []
    for step, most in sorted(steps):
        if step == 0 or most == 0:
            continue
        if (
            merged
            and step % merged[-1].step == 0
            and step // merged[-1].step <= merged[-1].most + 1
        ):
            last = merged.pop()  # together without a gap
            merged.append(Steps(last.step, last.most + step // last.step * most))
        else:
            merged.append(Steps(step, most))
    largest = [0]  # of the first k
    for step, most in merged:
        largest.append(largest[-1] + step * most)
    tries = 1 << 16

    def holds(total: int, count: int) -> bool:
        nonlocal tries
        if not 0 <= total <= largest[count]:
            return False
        tries -= 1
        if count == 0 or tries < 0:
            return True
        common = 0
        for k in reversed(range(count)):  # what the longer steps leave, the shorter ones must make
            common = math.gcd(common, merged[k].step)
            if total % common > largest[k]:
                return False
        step, most = merged[count - 1]
        least = max(total - largest[count - 1] + step - 1, 0) // step
        return any(
            holds(total - k * step, count - 1)
            for k in range(min(most, total // step), least - 1, -1)
        )

    return holds(total, len(merged))


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a run of memory in some order of the dimensions."""
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def same_order(x: Tensor, y: Tensor) -> bool:
    """Whether walking two dense tensors of one shape meets their elements in the same order."""
    steps = zip(x.shape, x.stride(), y.stride(), strict=True)
    return all(size == 1 or one == other for size, one, other in steps)


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements lie in one place: by a walk that takes a step or more on in one
    dimension, any number on or back in the others, and ends where it began.
    """
    if x.numel() == 0 or x.is_contiguous():
        return False
    steps = _steps(x, 1)
    reach = sum(step * most for step, most in steps)
    if reach + 1 < x.numel() or any(step == 0 for step, _ in steps):
        return True
    if torch.compiler.is_compiling():  # sizes may be symbols; the op that writes asks again
        return False
    steps.sort()
    shorter = accumulate((step * most for step, most in steps), initial=0)
    if all(step > below for (step, _), below in zip(steps, shorter, strict=False)):
        return False
    for d, one in enumerate(steps):
        walk = [Steps(step, 2 * most) for step, most in steps]  # from as far back as can be
        walk[d] = Steps(one.step, one.most - 1)  # from one step on
        if _makes(walk, reach - one.step * (one.most + 1)):
            return True
    return False


def refuse_overlap(name: str, x: Tensor) -> None:
    if overlaps_itself(x):
        raise ValueError(
            f"{name} must have memory for each element, got one that shares some: clone() it"
        )


def sharing(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two of the tensors that share memory, the lower index first; None if none do."""
    reaching: list[Span] = []  # to the one at hand
    for b in spans(tensors):
        reaching = [a for a in reaching if a.end > b.first]
        for a in reaching:
            if _meet(a, tensors[a.which], b, tensors[b.which]):
                return min(a.which, b.which), max(a.which, b.which)
        reaching.append(b)
    return None


def _meet(a: Span, x: Tensor, b: Span, y: Tensor) -> bool:
    """Whether a byte belongs to both: one is found from a's first byte on, the other from b's last
    one back.
    """
    inside = Steps(1, x.itemsize - 1 + y.itemsize - 1)
    return _makes([*_steps(x, x.itemsize), *_steps(y, y.itemsize), inside], b.end - 1 - a.first)


def meeting(run: Span, apart: Sequence[Span]) -> Span | None:
    """The one of some spans, in order and apart from each other, that shares bytes with `run`."""
    after = bisect_right(apart, run.first, key=lambda x: x.first)
    near = [*apart[after : after + 1], *apart[max(after - 1, 0) : after]]
    return next((x for x in near if x.first < run.end and run.first < x.end), None)
