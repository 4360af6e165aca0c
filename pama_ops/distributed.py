"""Sums and averages over ranks: which ranks, and of what.

A Gram matrix adds over disjoint parts of the parameters: over the ranks of `group`, and over the
mesh dimensions along which a DTensor gradient is sharded. Where it is replicated every rank holds
the whole sum already. Nothing else adds: data ranks average gradients before the products, since
the Gram matrix of averages is not the average of Gram matrices.

An all-reduce may round differently on different ranks, and weights must not: the first rank's
matrix is broadcast after every reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pama_ops import _agreement as agreement
from pama_ops import _dtensors as dtensors
from pama_ops import _ops as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# Of one flat all-reduce of gradients; DistributedDataParallel's default.
BUCKET_BYTES = 25 * 2**20
# The gradients of a loss, which of them, and the parameter that it is of.
Spot = tuple[list[Tensor | None], int, Tensor]


def gram(flat: Sequence[Tensor], n: int, group: ProcessGroup | None) -> Tensor:
    """The Gram matrix of the whole gradients from this rank's parts, the same bits on all ranks.

    One all-reduce for each distinct set of mesh dimensions that some parameter is sharded over.
    """
    count = len(flat) // n
    parts: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[int]] = {}
    for p, x in enumerate(dtensors.representatives(flat, n)):
        sharded: tuple[DeviceMesh | None, tuple[int, ...]] = None, ()
        if dtensors.is_dtensor(x):
            dims = tuple(d for d, y in enumerate(x.placements) if not y.is_replicate())
            sharded = x.device_mesh, dims
        parts.setdefault(sharded, []).append(p)
    total: Tensor | None = None
    for (mesh, dims), columns in parts.items():
        part: Tensor = ops.gram(
            [dtensors.local_part(flat[i * count + p]) for i in range(n) for p in columns], n
        )
        for over in dtensors.mesh_groups(mesh, dims) if mesh is not None else []:
            _add_up(part, over)
        total = part if total is None else total + part
    assert total is not None
    if group is not None:
        _add_up(total, group)
    for over in agreement.groups_of_all_ranks(flat, group):
        copy_first_rank(total, over)
    return total


def _add_up(matrix: Tensor, group: ProcessGroup) -> None:
    """The sum of the ranks' symmetric matrices.

    The order in which a ring adds up an element depends on where it lies: one triangle is mirrored.
    """
    dist.all_reduce(matrix, group=group)
    upper = matrix.triu()
    matrix.copy_(upper + upper.triu(1).mT)


def copy_first_rank(x: Tensor, group: ProcessGroup) -> None:
    """The first rank's `x` on every rank of the group."""
    dist.broadcast(x, group=group, group_src=0)


def unite_gram(matrix: Tensor, ranks: ProcessGroup, *, summed: bool) -> None:
    """The data ranks' one Gram matrix: of means that all hold, or the sum of parts of them."""
    if summed:
        _add_up(matrix, ranks)
        matrix /= dist.get_world_size(ranks) ** 2
    copy_first_rank(matrix, ranks)


# --- data ranks ---------------------------------------------------------------------------------


def data_ranks(
    data_group: object, group: ProcessGroup | None, parameters: object
) -> ProcessGroup | None:
    """The group whose ranks' gradients are to be averaged; None where nothing is."""
    if data_group != "world":
        if data_group is not None and not isinstance(data_group, dist.ProcessGroup):
            raise TypeError(
                'data_group must be a ProcessGroup, None or "world", '
                f"got {type(data_group).__name__}"
            )
        chosen = data_group
    elif group is None and dist.is_initialized() and not dtensors.any_in(parameters):
        chosen = dist.group.WORLD
    else:
        chosen = None
    return chosen if chosen is not None and dist.get_world_size(chosen) > 1 else None


def average(
    rows: list[list[Tensor | None]], parameters: Sequence[Sequence[Tensor]], group: ProcessGroup
) -> None:
    """Replace gradients by their means over the ranks, a bucket at a time.

    What a loss does not reach on one rank, but on another, counts as zeros there. Gradients may
    alias one another or be expanded, so none is written to.
    """
    spots = [
        (row, p, x)
        for row, tensors in zip(rows, parameters, strict=True)
        for p, x in enumerate(tensors)
    ]
    if not spots:
        return
    reached = torch.tensor(
        [row[p] is not None for row, p, _ in spots], dtype=torch.int32, device=spots[0][2].device
    )
    dist.all_reduce(reached, op=dist.ReduceOp.MAX, group=group)
    bucket: list[Spot] = []
    dtype, size = torch.float32, 0  # of the bucket
    for spot, hit in zip(spots, reached.tolist(), strict=True):
        if not hit:
            continue
        x = spot[2]
        of_x = x.grad_dtype or x.dtype  # where it is None they may be of any: what ranks agree on
        bytes_of_x = x.numel() * of_x.itemsize
        if bucket and (size + bytes_of_x > BUCKET_BYTES or of_x != dtype):
            _average_bucket(bucket, dtype, group)
            bucket, size = [], 0
        bucket.append(spot)
        dtype, size = of_x, size + bytes_of_x
    if bucket:
        _average_bucket(bucket, dtype, group)


def _average_bucket(bucket: list[Spot], dtype: torch.dtype, group: ProcessGroup) -> None:
    pieces = []
    for row, p, x in bucket:
        grad, part = row[p], dtensors.local_part(x)
        # Zeros where this rank's part of a loss does not reach the parameter.
        y = torch.zeros_like(part, dtype=dtype) if grad is None else dtensors.local_part(grad)
        pieces.append(y.to(dtype).flatten())
    mean = torch.cat(pieces).div_(dist.get_world_size(group))  # first, lest half overflow
    dist.all_reduce(mean, group=group)
    for (row, p, x), y in zip(bucket, mean.split([len(y) for y in pieces]), strict=True):
        row[p] = dtensors.placed_as(x, y.view_as(dtensors.local_part(x)))


@contextmanager
def ddp_unaware(nodes: Iterable[torch.autograd.graph.Node]) -> Iterator[None]:
    """For `autograd.grad` through a graph of these nodes. With `static_graph` a
    DistributedDataParallel takes the first pass through its outputs for a `backward()`, learns from
    it what is used, here nothing as no hook runs, and would average nothing from then on.
    """
    waiting = []
    if dist.is_available() and dist.is_initialized():
        sinks = (node for node in nodes if node.name() == "_DDPSinkBackward")
        nets = {cast("Any", node).ddp_weakref() for node in sinks}  # None if gone
        static = [net for net in nets if getattr(net, "static_graph", False)]
        waiting = [net for net in static if not net._static_graph_delay_allreduce_enqueued]
    for net in waiting:
        net._static_graph_delay_allreduce_enqueued = True
    try:
        yield
    finally:
        for net in waiting:
            net._static_graph_delay_allreduce_enqueued = False
