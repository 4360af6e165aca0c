"""Lists of gradients as users pass them: checked, and made the flat list that the ops take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from pama_ops import _checks as check


def flattened(name: str, grads: object, *, at_once: bool = False) -> tuple[list[Tensor], int, bool]:
    """n tensors or n lists of P tensors or None, as one flat list, n, and whether tensors came.

    None becomes an empty tensor, which the ops read as a missing one. Whether the gradients of a
    parameter are alike is said by the op that is called next, in the words of `alike`, unless
    `at_once`: with thousands of small tensors to ask here would take longer than the op does.
    """
    if isinstance(grads, Tensor) or not isinstance(grads, Sequence):
        raise TypeError(
            f"{name} must be a list of tensors, or of lists of tensors, one an objective, "
            f"got {type(grads).__name__}"
        )
    if len(grads) == 0:
        raise ValueError(f"{name} must hold at least one objective, got none")
    single = all(x is None or isinstance(x, Tensor) for x in grads)
    lists: list[Sequence[Tensor | None]] = [[x] for x in grads] if single else list(grads)
    for i, row in enumerate(lists):
        if isinstance(row, Tensor) or not isinstance(row, Sequence):
            raise TypeError(
                f"{name}[{i}] must be a list of tensors like {name}[0], got {type(row).__name__}"
            )
        if len(row) != len(lists[0]):
            raise ValueError(
                f"{name}[{i}] must have as many tensors as {name}[0], {len(lists[0])}, "
                f"got {len(row)}"
            )
    rows: Iterable[Sequence[Tensor | None]] = lists
    # The op does not know that tensors stood for lists of one.
    if single or at_once or not _can_be_handed_over(lists):

        def where(i: int, p: int) -> str:
            return f"{name}[{i}]" if single else f"{name}[{i}][{p}]"

        rows = zip(*_filled_columns(name, lists, where), strict=True)
    return cast("list[Tensor]", list(chain.from_iterable(rows))), len(lists), single


def _can_be_handed_over(rows: Sequence[Sequence[object]]) -> bool:
    """Whether an op can be handed these, and says itself what is wrong with them: plain tensors,
    none of them empty, which it would take for None. Where objectives begin on different devices,
    so that other arguments had none to be on, and where a call is compiled, all is asked here.
    """
    if torch.compiler.is_compiling() or not rows[0]:
        return False
    if not {*map(type, chain.from_iterable(rows))} <= {Tensor, torch.nn.Parameter}:
        return False
    tensors = cast("Sequence[Sequence[Tensor]]", rows)
    if len({row[0].device for row in tensors}) > 1:
        return False
    return all(0 not in map(Tensor.numel, row) for row in tensors)


def alike(at: str, x: object, of: str, like: Tensor) -> None:
    """`x` is such a tensor as `like`, the one at `of`. csrc/tensors/gradient_list.h has these words
    for the lists of an op.
    """
    x = check.tensor(at, x)
    if x.shape != like.shape:
        raise ValueError(
            f"{at} must have the shape {list(like.shape)} of {of}, got {list(x.shape)}"
        )
    if x.dtype != like.dtype:
        raise TypeError(f"{at} must have the dtype {like.dtype} of {of}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{at} must be on {like.device} like {of}, got {x.device}")


def largest(column: Sequence[Tensor]) -> tuple[int, Tensor]:
    """Of a parameter's gradients the first with elements, or else the first; and its objective."""
    first = 0
    for i, x in enumerate(column):  # Dynamo knows no max(key=)
        first = i if x.numel() > column[first].numel() else first
    return first, column[first]


def all_alike(
    columns: Iterable[Sequence[tuple[int, object]]], where: Callable[[int, int], str]
) -> torch.device | None:
    """The gradients (i, x) of each parameter, one or none for an objective i, are such tensors as
    the first of them, and all lie on one device, which is returned. `where(i, p)` says what x is.
    """
    device: torch.device | None = None
    for p, column in enumerate(columns):
        first: Tensor | None = None
        for i, x in column:
            if first is None:
                of = where(i, p)
                first = check.floating(of, x)
                shape, dtype = first.shape, first.dtype
                device = device or first.device
                if first.device != device:
                    raise ValueError(
                        f"{of} must be on {device} like the others, got {first.device}"
                    )
            elif not (
                isinstance(x, Tensor)
                and check.dense(x)  # a nested one has no shape to ask for
                and x.shape == shape
                and x.dtype is dtype
                and x.device == device
            ):
                alike(where(i, p), x, of, first)  # raises
    return device


def _filled_columns(
    name: str, lists: Sequence[Sequence[Tensor | None]], where: Callable[[int, int], str]
) -> list[tuple[Tensor, ...]]:
    """The gradients parameter by parameter, None replaced, once all is checked."""
    columns = list(zip(*lists, strict=True))
    present = [[(i, x) for i, x in enumerate(column) if x is not None] for column in columns]
    device = all_alike(present, where)
    if device is None:
        raise ValueError(f"{name} must hold at least one tensor, got none but None")
    return [_fill(column, device) for column in columns]


def _fill(column: tuple[Tensor | None, ...], device: torch.device) -> tuple[Tensor, ...]:
    present = [x for x in column if x is not None]
    if len(present) == len(column):
        return cast("tuple[Tensor, ...]", column)
    if present:  # an empty parameter's own shape is what the result takes
        like = present[0]
        empty = like.new_empty(0 if like.numel() else like.shape)
    else:
        empty = torch.empty(0, dtype=torch.float32, device=device)
    return tuple(empty if x is None else x for x in column)


def outputs(
    name: str, out: Sequence[Tensor], flat: Sequence[Tensor], n: int, *, at_once: bool = False
) -> None:
    """`out` may be written, and holds one tensor like each of the P gradients. `at_once`: as for
    `flattened`.
    """
    if not at_once and _can_be_handed_over([out]):
        for p, x in enumerate(out):
            if x.requires_grad or x.is_neg() or not check.dense(x):
                check.tensor(f"{name}[{p}]", x)
                check.no_gradient(f"{name}[{p}]", x)
                check.without_signs_to_turn(f"{name}[{p}]", x)
        return
    count = len(flat) // n
    if len(out) != count:
        raise ValueError(f"{name} must have as many tensors as grads[0], {count}, got {len(out)}")
    for p, x in enumerate(out):
        alike(f"{name}[{p}]", x, f"grads[0][{p}]", largest(flat[p::count])[1])
        check.no_gradient(f"{name}[{p}]", x)
        check.writable(f"{name}[{p}]", x)
