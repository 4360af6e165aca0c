"""Forward-mode differentiation (dual tensors, `torch.func.jvp`): tangents are found here, and what
has none to give for them raises. The dispatcher would drop them in silence.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether tensors may carry tangents. Torch keeps the level in a private name; without it every
    tensor is asked, which is slower and as right.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def split(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor without its tangent, and the tangent. What is no tensor is refused elsewhere."""
    if not isinstance(x, Tensor):
        return x, None
    parts = forward_ad.unpack_dual(x)
    return parts.primal, parts.tangent


def join(name: str, x: Tensor, tangent: Tensor) -> Tensor:
    """A result of the function `name` with its tangent. A gradient taken of it at once, while
    tensors have tangents, would lack its own.
    """

    def refuse_gradient(_grad: Tensor) -> None:
        if active():
            raise _refusal(f"{name}'s gradient")

    if x.requires_grad:
        x.register_hook(refuse_gradient)
    return cast("Tensor", forward_ad.make_dual(x, tangent.to(x.dtype)))


def carries(*tensors: Tensor | None) -> bool:
    """Whether any of them has a tangent."""
    return active() and any(x is not None and split(x)[1] is not None for x in tensors)


def refuse(name: str, *tensors: Tensor | None) -> None:
    """Raise if a tensor has a tangent, which the function `name` would lose."""
    if carries(*tensors):
        raise _refusal(name)


def refuse_constants(name: str, **constants: Tensor | None) -> None:
    """`refuse`, naming the argument, for those that the function `name` has no derivative in."""
    for argument, x in constants.items():
        if carries(x):
            raise _refusal(name, argument)


def _refusal(name: str, argument: str | None = None) -> RuntimeError:
    which = (
        "here, and one of its arguments has" if argument is None else f"in {argument}, which has"
    )
    return RuntimeError(
        f"pama_ops.{name} has no forward-mode derivative {which} a tangent (torch.func.jvp, "
        "torch.autograd.forward_ad). Detach that argument"
    )


def products(slope: Tensor, tangent: Tensor) -> Tensor:
    """slope · tangent in float64. Where the slope is 0, as at masked positions, the tangent is not
    read.
    """
    return torch.where(slope == 0, 0.0, slope.double() * tangent.double())
