"""FSDP2: its parameters as they stand between forward and backward, and backward through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pama_ops import _dtensors as dtensors


def _fsdp_parameters() -> Iterator[tuple[Tensor, Tensor]]:
    """(sharded, unsharded): the DTensor with a `.grad`, and the leaf of the graph it stands for.

    Torch has no public way from one to the other.
    """
    from torch.distributed import _composable_state as composable

    for reference in composable._module_state_mapping.values():
        for part in getattr(reference(), "_fsdp_param_groups", ()):
            for x in part.fsdp_params:
                whole = getattr(x, "_unsharded_param", None)
                if whole is not None:
                    yield x.sharded_param, whole


def shards_of(parameters: object) -> object:
    """With the plain parameter that FSDP2 shows between forward and backward replaced by the
    DTensor that it stands for; `model.parameters()` after a forward holds those of a root module.
    """
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        return parameters
    owner = {id(whole): shard for shard, whole in _fsdp_parameters()}
    return [owner.get(id(x), x) for x in parameters]


def gradients_by_backward(
    losses: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]], *, retain_last: bool
) -> list[list[Tensor | None]]:
    """For each loss its gradients in the tensors wanted of it, by `backward()`, which leaves the
    `.grad` of other tensors alone; those of the wanted ones stay what they were.

    FSDP2 gathers parameters and scatters gradients in hooks of `backward()`; to autograd.grad its
    DTensors are no part of the graph.
    """
    everything = list({id(x): x for row in wanted for x in row}.values())
    before = [x.grad for x in everything]
    leaf = {id(shard): whole for shard, whole in _fsdp_parameters()}
    rows: list[list[Tensor | None]] = []
    try:
        for i, (loss, tensors) in enumerate(zip(losses, wanted, strict=True)):
            for x in everything:
                x.grad = None
            if tensors:
                inputs = [leaf.get(id(x), x) for x in tensors]
                keep = retain_last or i + 1 < len(losses)
                torch.autograd.backward(loss, retain_graph=keep, inputs=inputs)
            rows.append([dtensors.with_sums_taken(x.grad, x) for x in tensors])
    finally:
        for x, grad in zip(everything, before, strict=True):
            x.grad = grad
    return rows
