"""`backward()` for several losses: gradients, Gram matrix, weights and their sum into `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _schemas as ops
from pama_ops.gradients import gram
from pama_ops.weights import min_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Callable[[Tensor], Tensor]


def pareto_backward(
    losses: Sequence[Tensor] | Tensor,
    parameters: Iterable[Tensor] | None = None,
    *,
    weighting: Weighting = min_norm,
    features: Tensor | Sequence[Tensor] | None = None,
    task_parameters: Sequence[Iterable[Tensor]] | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Add a Pareto combination of the losses' gradients to `.grad`: Σ_i w_i ∂L_i/∂θ.

    w = weighting(G), with G the Gram matrix of the gradients of all losses with respect to
    `parameters`. With `features` z, an output of the shared part of the model, G is that of the
    gradients with respect to z (MGDA-UB), and one backward of Σ_i w_i L_i follows: n backwards
    through the heads and one through the rest, instead of n through everything.

    `.grad` is added to, as `backward()` does, so micro-batches accumulate; weights are chosen for
    each call. Scaled losses (`scaler.scale(loss)` each) are fine: weights do not change with the
    scale, and gradients that are not finite give a `.grad` that is not, so that the scaler skips
    the step. What a loss does not reach counts as a gradient of zeros, and what none reaches keeps
    its `.grad`. Parameters that require no gradient are passed over. Hooks on parameters' gradient
    accumulation (DistributedDataParallel's) run with `features` only.

    Args:
        losses: n >= 1 one-element tensors of any floating dtype, or a tensor [n].
        parameters: the shared parameters, e.g. `model.parameters()`; those in `task_parameters`
            are left out of it. Either this or `features`.
        weighting: a function from G [n, n] in float64 to weights [n].
        features: a tensor, or several, that all losses are computed from.
        task_parameters: for each loss the parameters that belong to it alone (its head). They get
            that loss's own gradient, unweighted, and stay out of G: a head whose weight is 0 would
            never train.
        group: process group whose ranks hold disjoint parts of `parameters` (or of `features`).

    Returns:
        w, [n] in float64 (or what `weighting` returns), detached.

    Raises:
        TypeError, ValueError: naming the argument, the index, what came and what is wanted;
            nothing has been written then. Reentrant activation checkpointing is refused, since
            autograd cannot take gradients of chosen tensors through it.

    Complexity: n backwards, two reads of the gradients; memory for n + 1 gradients at most.
    Source: Désidéri 2012; Sener & Koltun, arXiv 1810.04650.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> pareto_backward([x[0] ** 2 / 2, x.sum() - x[0]], [x])
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> x.grad
    tensor([0.5000, 0.5000])
    """
    losses = _losses(losses)
    heads = _heads(task_parameters, len(losses))
    if (parameters is None) == (features is None):
        raise ValueError(
            "exactly one of parameters and features must be given, got "
            + ("neither" if parameters is None else "both")
        )
    if features is not None:
        return _through_features(losses, _features(features), heads, weighting, group)
    assert parameters is not None
    own = {id(x) for head in heads for x in head}
    shared = [x for x in _parameters("parameters", parameters) if id(x) not in own]
    if not shared:
        raise ValueError("parameters must hold a shared one that requires a gradient, got none")
    rows, tasks = _gradients(losses, shared, heads, retain_last=False)
    weights = _weights(weighting, rows, "parameters", group)
    reached = [p for p in range(len(shared)) if any(row[p] is not None for row in rows)]
    flat, _, _ = check.gradients("gradients", [[row[p] for p in reached] for row in rows])
    rows.clear()
    _add([shared[p] for p in reached], flat, weights)
    _add_own(heads, tasks)
    return weights


def _through_features(
    losses: list[Tensor],
    features: list[Tensor],
    heads: list[list[Tensor]],
    weighting: Weighting,
    group: ProcessGroup | None,
) -> Tensor:
    rows, tasks = _gradients(losses, features, heads, retain_last=True)
    weights = _weights(weighting, rows, "features", group)
    rows.clear()
    before = [[x.grad for x in head] for head in heads]
    for head in heads:
        for x in head:
            x.grad = None
    try:
        slopes = [weights[i].to(loss.dtype).expand_as(loss) for i, loss in enumerate(losses)]
        torch.autograd.backward(losses, slopes)
    finally:
        for head, grads in zip(heads, before, strict=True):
            for x, grad in zip(head, grads, strict=True):
                x.grad = grad
    _add_own(heads, tasks)
    return weights


# --- what it is made of -------------------------------------------------------------------------


def _gradients(
    losses: list[Tensor], shared: list[Tensor], heads: list[list[Tensor]], *, retain_last: bool
) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]]:
    """For each loss its gradients in the shared tensors and in its own parameters."""
    _refuse_reentrant_checkpoints(losses, shared)
    rows: list[list[Tensor | None]] = []
    tasks: list[list[Tensor | None]] = []
    for i, loss in enumerate(losses):
        keep = retain_last or i + 1 < len(losses)
        grads = torch.autograd.grad(
            loss, [*shared, *heads[i]], retain_graph=keep, allow_unused=True
        )
        rows.append(list(grads[: len(shared)]))
        tasks.append(list(grads[len(shared) :]))
    return rows, tasks


def _refuse_reentrant_checkpoints(losses: list[Tensor], shared: list[Tensor]) -> None:
    """Autograd would not raise: it would pass over what such a checkpoint hides, as unreached."""
    seen = {x.grad_fn for x in shared}
    nodes = [loss.grad_fn for loss in losses]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "losses must not pass through reentrant activation checkpointing, which hides "
                "parameters from torch.autograd.grad: call torch.utils.checkpoint.checkpoint "
                "with use_reentrant=False"
            )
        nodes.extend(following for following, _ in node.next_functions)


def _weights(
    weighting: Weighting,
    rows: list[list[Tensor | None]],
    name: str,
    group: ProcessGroup | None,
) -> Tensor:
    n = len(rows)
    for p in range(len(rows[0])):
        for i in range(n):
            x = rows[i][p]
            if x is not None and x.layout != torch.strided:
                raise TypeError(
                    f"{name}[{p}] must have dense gradients, got {x.layout} from losses[{i}]"
                )
    if all(x is None for row in rows for x in row):
        raise ValueError(f"losses must depend on {name}, but none of them reaches any")
    weights = weighting(gram(rows, group=group))
    if not isinstance(weights, Tensor):
        raise TypeError(f"weighting must return a torch.Tensor, got {type(weights).__name__}")
    if weights.shape != (n,) or not weights.dtype.is_floating_point:
        raise ValueError(
            f"weighting must return {n} floating-point weights for the {n} losses, "
            f"got {weights.dtype} {list(weights.shape)}"
        )
    return weights.detach()


def _add(parameters: list[Tensor], flat: list[Tensor], weights: Tensor) -> None:
    """`.grad` += Σ w_i g_i, without a temporary where there is a `.grad` to add to."""
    n, count = weights.shape[0], len(parameters)
    fresh = [p for p in range(count) if parameters[p].grad is None]
    there = [p for p in range(count) if parameters[p].grad is not None]
    if there:
        targets = [parameters[p].grad for p in there]
        ops.combine_into(
            targets, [flat[i * count + p] for i in range(n) for p in there], weights, True
        )
    if fresh:
        sums = ops.combine([flat[i * count + p] for i in range(n) for p in fresh], weights)
        for p, x in zip(fresh, sums, strict=True):
            parameters[p].grad = x


def _add_own(heads: list[list[Tensor]], tasks: list[list[Tensor | None]]) -> None:
    """`.grad` of each loss's own parameters += its own gradient."""
    for head, grads in zip(heads, tasks, strict=True):
        for x, grad in zip(head, grads, strict=True):
            if grad is not None:
                x.grad = grad if x.grad is None else x.grad.add_(grad)


# --- checks of the arguments --------------------------------------------------------------------


def _losses(losses: object) -> list[Tensor]:
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(f"losses must be a list or a tensor [n], got {list(losses.shape)}")
        losses = losses.unbind()
    if not isinstance(losses, Sequence):
        raise TypeError(f"losses must be a list of tensors, got {type(losses).__name__}")
    if len(losses) == 0:
        raise ValueError("losses must hold at least one loss, got none")
    for i, loss in enumerate(losses):
        check.floating(f"losses[{i}]", loss)
        if loss.numel() != 1:
            raise ValueError(f"losses[{i}] must have one element, got {list(loss.shape)}")
        if not loss.requires_grad:
            raise ValueError(
                f"losses[{i}] must have a graph to differentiate, but requires no gradient"
            )
    return list(losses)


def _parameters(name: str, parameters: object) -> list[Tensor]:
    """Those that require a gradient, each once; with the `.grad` of a dense gradient."""
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(f"{name} must be an iterable of tensors, got {type(parameters).__name__}")
    kept: dict[int, Tensor] = {}
    for p, x in enumerate(parameters):
        x = check.tensor(f"{name}[{p}]", x)
        if not x.requires_grad:
            continue
        if not x.is_leaf:
            raise ValueError(f"{name}[{p}] must be a leaf, which has a .grad, got a result of ops")
        if x.grad is not None and (x.grad.layout != torch.strided or x.grad.dtype != x.dtype):
            raise TypeError(
                f"{name}[{p}].grad must be dense and {x.dtype} like the parameter, "
                f"got {x.grad.layout} {x.grad.dtype}"
            )
        kept[id(x)] = x
    return list(kept.values())


def _features(features: object) -> list[Tensor]:
    tensors = [features] if isinstance(features, Tensor) else features
    if not isinstance(tensors, Sequence) or len(tensors) == 0:
        raise TypeError(f"features must be a tensor or a list of some, got {features!r}")
    for k, x in enumerate(tensors):
        check.floating(f"features[{k}]", x)
        if not x.requires_grad:
            raise ValueError(f"features[{k}] must require a gradient: take it before any detach")
    return list(tensors)


def _heads(task_parameters: object, n: int) -> list[list[Tensor]]:
    if task_parameters is None:
        return [[] for _ in range(n)]
    if isinstance(task_parameters, Tensor) or not isinstance(task_parameters, Sequence):
        raise TypeError(
            "task_parameters must be a list, an iterable of parameters for each loss, "
            f"got {type(task_parameters).__name__}"
        )
    if len(task_parameters) != n:
        raise ValueError(
            f"task_parameters must have one entry for each of the {n} losses, "
            f"got {len(task_parameters)}"
        )
    heads = [_parameters(f"task_parameters[{i}]", x) for i, x in enumerate(task_parameters)]
    owner: dict[int, int] = {}
    for i, head in enumerate(heads):
        for x in head:
            if owner.setdefault(id(x), i) != i:
                raise ValueError(
                    f"task_parameters[{i}] must not share a parameter with "
                    f"task_parameters[{owner[id(x)]}]: what two losses train is shared"
                )
    return heads
