"""Derivatives of the ops, and the refusal to differentiate constants of the optimisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pama_ops import _forward_mode as forward_mode
from pama_ops import _ops as ops
from pama_ops._dispatch import NAMESPACE

# --- derivatives ----------------------------------------------------------------------------------


def _saved(x: Tensor) -> Tensor:
    """What autograd can save: not a tensor made under torch.inference_mode(), which may be written
    to without a trace, but a copy.
    """
    return x.clone() if x.is_inference() else x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save all of an op's arguments, and of its results those after the first."""
    extra = output[1:] if isinstance(output, tuple) else ()
    ctx.save_for_backward(*(_saved(x) for x in (*inputs, *extra) if isinstance(x, Tensor)))
    ctx.plan = [None if isinstance(x, Tensor) else (x,) for x in (*inputs, *extra)]
    ctx.set_materialize_grads(False)


def _kept(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if entry is None else entry[0] for entry in ctx.plan]


def _kl_divergence_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    logp, ref_logp, mask, estimator = _kept(ctx)
    forward_mode.refuse("kl_divergence's gradient", grad, logp, ref_logp)
    slope = ops.kl_divergence_backward(grad, logp, ref_logp, mask, estimator)
    ours = slope.to(logp.dtype) if ctx.needs_input_grad[0] else None
    theirs = slope.neg().to(ref_logp.dtype) if ctx.needs_input_grad[1] else None
    return ours, theirs, None, None


def _in_the_first(slope: Callable[..., Tensor]) -> Callable[..., Any]:
    """The backward of an op with a derivative in its first argument alone, slope(grad, *kept)."""

    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        first, *constants = ctx.needs_input_grad
        mine = slope(grad, *_kept(ctx)) if grad is not None and first else None
        return mine, *(None for _ in constants)

    return backward


@_in_the_first
def _ppo_loss_backward(grad: Tensor, *kept: Any) -> Tensor:
    *tokens, _normalizer, cu, low, high, _, _, kl_coef, estimator, _, row_weights = kept
    forward_mode.refuse("ppo_loss's gradient", grad, row_weights, *tokens, cu)
    slope = ops.ppo_loss_backward(grad, row_weights, *tokens, cu, low, high, kl_coef, estimator)
    return cast("Tensor", slope.to(tokens[0].dtype))


@_in_the_first
def _value_loss_backward(grad: Tensor, *kept: Any) -> Tensor:
    *tokens, _normalizer, cu, clip, _, scale = kept
    forward_mode.refuse("value_loss's gradient", grad, scale, *tokens)
    slope = ops.value_loss_backward(grad, scale, *tokens, cu, clip)
    return cast("Tensor", slope.to(tokens[0].dtype))


def _gram_backward(ctx: Any, grad: Tensor | None) -> tuple[list[Tensor | None] | None, None]:
    """(S + Sᵀ) J, row by row."""
    if grad is None:
        return None, None
    *grads, n = _kept_list(ctx)
    forward_mode.refuse("gram's gradient", grad, *grads)
    rows = grad + grad.mT
    result: list[Tensor | None] = []
    for i in range(n):
        mine = grads[i * (len(grads) // n) : (i + 1) * (len(grads) // n)]
        if any(x.requires_grad for x in mine):
            combined = ops.combine(grads, rows[i])
            result += [c if x.requires_grad else None for c, x in zip(combined, mine, strict=True)]
        else:
            result += [None] * len(mine)
    return result, None


def _combine_backward(
    ctx: Any, slopes: list[Tensor | None]
) -> tuple[list[Tensor | None] | None, Tensor | None]:
    *grads, weights = _kept_list(ctx)
    forward_mode.refuse("combine's gradient", weights, *grads, *slopes)
    n, count = weights.shape[0], len(grads) // weights.shape[0]
    given = [p for p in range(count) if slopes[p] is not None]
    if not given:
        return None, None
    slope = [cast("Tensor", slopes[p]) for p in given]
    result: list[Tensor | None] = [None] * len(grads)
    for i in range(n):
        if any(grads[i * count + p].requires_grad for p in given):
            scaled = ops.combine(slope, weights[i : i + 1])
            for p, x in zip(given, scaled, strict=True):
                if grads[i * count + p].requires_grad:
                    result[i * count + p] = x
    if not weights.requires_grad:
        return result, None
    # Row 0 of the Gram matrix of the slope beside the gradients: ⟨slope, g_i⟩.
    beside = slope + [grads[i * count + p] for i in range(n) for p in given]
    return result, ops.gram(beside, n + 1)[0, 1:].to(weights.dtype)


def _keep_list(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the list of gradients and the argument after it."""
    grads, last = inputs
    tensors = (*grads, last) if isinstance(last, Tensor) else tuple(grads)
    ctx.save_for_backward(*map(_saved, tensors))
    ctx.last = None if isinstance(last, Tensor) else last


def _kept_list(ctx: Any) -> list[Any]:
    return [*ctx.saved_tensors] if ctx.last is None else [*ctx.saved_tensors, ctx.last]


def _refuse_again(name: str) -> Callable[..., Any]:
    def backward(_ctx: Any, *_grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"pama_ops.{name} can be differentiated once, not twice: its gradient has none. "
            "Detach that gradient, or write the formula in plain PyTorch."
        )

    return backward


def _keep_constant(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, ctx.name = inputs
    ctx.alike = _alike(tensors)
    ctx.set_materialize_grads(False)


def _constant_backward(ctx: Any, grad: Tensor | None) -> tuple[None, list[Any] | None, None]:
    if grad is None:
        return None, [None] * len(ctx.alike), None
    return None, list(_refused(grad, ctx.name, ctx.alike)), None


def register(namespace: str) -> None:
    """Make the losses of a namespace differentiable once, and `gram` and `combine` without end.

    The tests have namespaces of their own.
    """
    for name, backward in {
        "kl_divergence": _kl_divergence_backward,
        "ppo_loss": _ppo_loss_backward,
        "value_loss": _value_loss_backward,
    }.items():
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=_keep)
        torch.library.register_autograd(f"{namespace}::{name}_backward", _refuse_again(name))
    of_lists: dict[str, Callable[..., Any]] = {"gram": _gram_backward, "combine": _combine_backward}
    for name, slopes in of_lists.items():
        torch.library.register_autograd(f"{namespace}::{name}", slopes, setup_context=_keep_list)
    torch.library.register_autograd(
        f"{namespace}::constant", _constant_backward, setup_context=_keep_constant
    )


# --- constants ------------------------------------------------------------------------------------

Result = TypeVar("Result")
_Alike = list[tuple[torch.Size, torch.dtype]]


def _alike(tensors: Sequence[Tensor]) -> _Alike:
    """What the gradients of tensors look like."""
    return [(x.shape, x.dtype) for x in tensors]


def _refused(grad: Tensor, name: str, inputs: _Alike) -> list[Tensor]:
    """Raise, as a gradient has come to a constant.

    Where a program is traced it need not have: its backward is traced for all of its results, and
    gets zeros for those that nobody differentiates. Then the op that finds out is traced, and what
    it returns becomes the zeros that the inputs get.
    """
    if type(grad) in (Tensor, torch.nn.Parameter):
        raise RuntimeError(ops.not_differentiable(name))
    zero = ops.refuse_gradient(grad, name)
    return [zero.to(dtype).expand(shape).contiguous() for shape, dtype in inputs]


class _Constant(torch.autograd.Function):
    """The identity forwards; backwards, an error that names the function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, result: Tensor, *inputs: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, _, *tensors = inputs
        ctx.alike = _alike(tensors)
        ctx.set_materialize_grads(False)  # where none flows None comes, not zeros

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, *(None for _ in ctx.alike)
        return None, None, *_refused(grad, ctx.name, ctx.alike)


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


register(NAMESPACE)
