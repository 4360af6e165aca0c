"""The refusal to differentiate what is a constant of the optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pama_ops import _forward_mode as forward_mode
from pama_ops import _ops as ops

Result = TypeVar("Result")


class _Constant(torch.autograd.Function):
    """The identity forwards; backwards, an error that names the function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, result: Tensor, *inputs: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, _, *tensors = inputs
        ctx.alike = ops.alike(tensors)
        ctx.set_materialize_grads(False)  # no gradient that comes is not one of zeros

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, *(None for _ in ctx.alike)
        return None, None, *ops.refused(grad, ctx.name, ctx.alike)


def constant(name: str, result: Result, *inputs: Tensor | None) -> Result:
    """`result` of the op `name`; `backward()` through it raises if an input required a gradient,
    and so does this if one has a tangent.
    """
    forward_mode.refuse(name, *inputs)
    if not torch.is_grad_enabled():
        return result
    traced = [x for x in inputs if x is not None and x.requires_grad]
    if not traced:
        return result

    def apply(x: Tensor) -> Tensor:
        x = x.detach()  # torch warns of a backward that reaches the op itself, be it with none
        if torch.compiler.is_compiling():  # by an op: a function may not take a tensor twice there
            return cast("Tensor", ops.constant(x, traced, name))
        return cast("Callable[..., Tensor]", _Constant.apply)(name, x, *traced)

    if isinstance(result, Tensor):
        return cast("Result", apply(result))
    parts = cast("tuple[Tensor | None, ...]", result)
    return type(result)(*(x if x is None or not x.is_floating_point() else apply(x) for x in parts))
