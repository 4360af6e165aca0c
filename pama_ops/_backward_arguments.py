"""The arguments of `pareto_backward`, checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _dtensors as dtensors
from pama_ops import _fsdp2 as fsdp2
from pama_ops import _memory as memory


def checked(
    losses: object, parameters: object, features: object, task_parameters: object
) -> tuple[list[Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    """The losses, what G is of (shared parameters or features), and each loss's own parameters."""
    terms = _losses(losses)
    heads = _heads(task_parameters, len(terms))
    of_heads = {at: x for head in heads for at, x in head.items()}
    if (parameters is None) == (features is None):
        raise ValueError(
            "exactly one of parameters and features must be given, got "
            + ("neither" if parameters is None else "both")
        )
    through = features is not None
    if through:
        name, shared = "features", _features(features)
        trained = of_heads
    else:
        own = {id(x) for x in of_heads.values()}
        name, everything = "parameters", _parameters("parameters", parameters)
        shared = {at: x for at, x in everything.items() if id(x) not in own}
        if not shared:
            raise ValueError("parameters must hold a shared one that requires a gradient, got none")
        trained = shared | of_heads
    _check_apart(trained)
    _refuse_hooks({at: x for at, x in trained.items() if through or dtensors.is_dtensor(x)})
    dtensors.check_all_or_none(name, [*shared.values()])
    if through:
        dtensors.check_all_or_none("task_parameters", [*of_heads.values()])
    else:
        for i, head in enumerate(heads):
            kinds = [next(iter(shared.values())), *head.values()]
            dtensors.check_all_or_none(f"parameters[:1] + task_parameters[{i}]", kinds)
    if dtensors.any_in([*trained.values()]):
        _check_graphs(terms)
    return terms, shared, heads


def _refuse_hooks(parameters: dict[str, Tensor]) -> None:
    """Of parameters that take part in a `backward()`: a hook that takes the step there would take
    it by one loss's gradient, or by the weighted one of a head. Those that average, of
    DistributedDataParallel, may run.
    """
    for at, x in parameters.items():
        for hook in (getattr(x, "_post_accumulate_grad_hooks", None) or {}).values():
            of = getattr(getattr(hook, "func", hook), "__module__", None) or ""
            if not of.startswith("torch.nn.parallel"):
                raise ValueError(
                    f"{at} must have no post-accumulate-grad hook, which would see another "
                    "gradient than .grad gets: remove it, and do after the call what it does"
                )


def _check_graphs(losses: list[Tensor]) -> None:
    for i, loss in enumerate(losses):
        if not loss.requires_grad:
            raise ValueError(
                f"losses[{i}] must have a graph to differentiate where parameters are DTensors, "
                "whose backward communicates, but requires no gradient"
            )


def _losses(losses: object) -> list[Tensor]:
    if isinstance(losses, Tensor):
        if check.floating("losses", losses).dim() != 1:
            raise ValueError(f"losses must be a list or a tensor [n], got {list(losses.shape)}")
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller's mode
            losses = losses.unbind()
    if not isinstance(losses, Sequence):
        raise TypeError(f"losses must be a list of tensors, got {type(losses).__name__}")
    if len(losses) == 0:
        raise ValueError("losses must hold at least one loss, got none")
    for i, loss in enumerate(losses):
        check.floating(f"losses[{i}]", loss)
        if loss.numel() != 1:
            raise ValueError(f"losses[{i}] must have one element, got {list(loss.shape)}")
    if not any(loss.requires_grad for loss in losses):
        raise ValueError("losses must have a graph to differentiate, but none requires a gradient")
    return list(losses)


def _parameters(name: str, parameters: object, *, sparse: bool = False) -> dict[str, Tensor]:
    """Those that require a gradient, each once, by where they stand; with a dense `.grad`, or a
    sparse one too.
    """
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(f"{name} must be an iterable of tensors, got {type(parameters).__name__}")
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for p, x in enumerate(cast("Iterable[object]", fsdp2.shards_of(parameters))):
        x = check.tensor(f"{name}[{p}]", x)
        if not x.requires_grad or id(x) in seen:
            continue
        seen.add(id(x))
        if not x.is_leaf:
            raise ValueError(f"{name}[{p}] must be a leaf, which has a .grad, got a result of ops")
        if x.grad is not None:
            if x.grad.layout != torch.strided and not (sparse and x.grad.is_sparse):
                raise TypeError(f"{name}[{p}].grad must be dense, got {x.grad.layout}")
            check.writable(f"{name}[{p}].grad", x.grad)
        kept[f"{name}[{p}]"] = x
    return kept


def _check_apart(parameters: dict[str, Tensor]) -> None:
    """That no `.grad` shares memory with another one."""
    grads = {
        at: dtensors.local_part(x.grad)
        for at, x in parameters.items()
        if x.grad is not None and x.grad.layout == torch.strided
    }
    if pair := memory.sharing([*grads.values()]):
        first, last = (list(grads)[k] for k in pair)
        raise ValueError(f"{last}.grad must share no memory with {first}.grad, but does")


def _features(features: object) -> dict[str, Tensor]:
    tensors = [features] if isinstance(features, Tensor) else features
    if not isinstance(tensors, Sequence) or len(tensors) == 0:
        raise TypeError(f"features must be a tensor or a list of some, got {features!r}")
    for k, x in enumerate(tensors):
        check.floating(f"features[{k}]", x)
        if not x.requires_grad:
            raise ValueError(f"features[{k}] must require a gradient: take it before any detach")
    return {f"features[{k}]": x for k, x in enumerate(tensors)}


def _heads(task_parameters: object, n: int) -> list[dict[str, Tensor]]:
    """Each loss's own parameters, by where they stand."""
    if task_parameters is None:
        return [{} for _ in range(n)]
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
    heads = [
        _parameters(f"task_parameters[{i}]", x, sparse=True) for i, x in enumerate(task_parameters)
    ]
    owner: dict[int, int] = {}
    for i, head in enumerate(heads):
        for x in head.values():
            if owner.setdefault(id(x), i) != i:
                raise ValueError(
                    f"task_parameters[{i}] must not share a parameter with "
                    f"task_parameters[{owner[id(x)]}]: what two losses train is shared"
                )
    return heads


def refuse_reentrant_checkpoints(losses: list[Tensor], shared: list[Tensor]) -> None:
    """Autograd would not raise: it would pass over what such a checkpoint hides, as unreached."""
    if any(node.name() == "CheckpointFunctionBackward" for node in graph(losses, shared)):
        raise ValueError(
            "losses must not pass through reentrant activation checkpointing, which hides "
            "parameters from torch.autograd.grad: call torch.utils.checkpoint.checkpoint "
            "with use_reentrant=False"
        )


def graph(
    losses: Sequence[Tensor], shared: Sequence[Tensor]
) -> Iterator[torch.autograd.graph.Node]:
    """Between the losses and the shared tensors, if those are no leaves."""
    seen = {x.grad_fn for x in shared}
    nodes = [loss.grad_fn for loss in losses]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        nodes.extend(following for following, _ in node.next_functions)
