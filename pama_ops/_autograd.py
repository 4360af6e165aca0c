"""The refusal to differentiate what is a constant of the optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pama_ops import _schemas as ops

Result = TypeVar("Result")


class _Constant(torch.autograd.Function):
    """The identity forwards; backwards, an error that names the function."""

    @staticmethod
    def forward(ctx: Any, name: str, result: Tensor, *inputs: Tensor) -> Tensor:
        ctx.name, ctx.inputs = name, len(inputs)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refused = ops.refuse_gradient(grad, ctx.name)
        return None, None, *(refused for _ in range(ctx.inputs))


def constant(name: str, result: Result, *inputs: Tensor | None) -> Result:
    """`result` of the op `name`; `backward()` through it raises if an input required a gradient."""
    if not torch.is_grad_enabled():
        return result
    traced = [x for x in inputs if x is not None and x.requires_grad]
    if not traced:
        return result
    apply = cast("Callable[..., Tensor]", _Constant.apply)
    if isinstance(result, Tensor):
        return cast("Result", apply(name, result, *traced))
    parts = cast("tuple[Tensor | None, ...]", result)
    return type(result)(
        *(x if x is None or not x.is_floating_point() else apply(name, x, *traced) for x in parts)
    )
