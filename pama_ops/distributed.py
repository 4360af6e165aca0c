"""All that is known of process groups: what is reduced, over which ranks, and how they agree.

A Gram matrix adds over disjoint parts of the parameters: over the ranks of `group`, and over the
mesh dimensions along which a DTensor gradient is sharded. Where it is replicated every rank holds
the whole sum already. Nothing else adds: data ranks average gradients before the products, since
the Gram matrix of averages is not the average of Gram matrices.

An all-reduce may round differently on different ranks, and weights must not: the first rank's
matrix is broadcast after every reduction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pama_ops import _schemas as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# Of one flat all-reduce of gradients; DistributedDataParallel's default.
BUCKET_BYTES = 25 * 2**20


# --- DTensors -----------------------------------------------------------------------------------


def is_dtensor(x: object) -> bool:
    """Whether `x` is a DTensor."""
    return _is_dtensor_class(type(x))


def _is_dtensor_class(kind: type) -> bool:
    if kind is Tensor or kind is torch.nn.Parameter or not issubclass(kind, Tensor):
        return False
    from torch.distributed.tensor import DTensor  # a second of imports that plain tensors save

    return issubclass(kind, DTensor)


def check_shards(name: str, flat: Sequence[Tensor], n: int) -> bool:
    """Whether the n x P gradients are DTensors; raises unless all are, or none (None is both)."""
    count = len(flat) // n
    if not any(map(_is_dtensor_class, {*map(type, flat)})):
        return False
    kinds = [is_dtensor(x) for x in flat]
    of: dict[int, DTensor] = {}
    for k, x in enumerate(flat):
        i, p = divmod(k, count)
        if x.dim() == 1 and x.numel() == 0:  # None, filled
            continue
        if not kinds[k]:
            first = kinds.index(True)
            raise TypeError(
                f"{name} must be DTensors all or none, got a DTensor for objective "
                f"{first // count}, parameter {first % count} and a plain tensor for objective "
                f"{i}, parameter {p}"
            )
        if x.requires_grad:
            raise ValueError(f"{name} must not require a gradient where they are DTensors")
        shard = cast("DTensor", x)
        like = of.setdefault(p, shard)
        if shard.placements != like.placements or shard.device_mesh != like.device_mesh:
            raise ValueError(
                f"{name} must have one placement for parameter {p}, got {like.placements} on "
                f"{like.device_mesh} and, for objective {i}, {shard.placements} on "
                f"{shard.device_mesh}"
            )
        for dim, placement in enumerate(shard.placements):
            if placement.is_partial():
                raise ValueError(
                    f"{name} must be Shard or Replicate, got Partial, {placement}, over "
                    f"dimension {dim} of the mesh for objective {i}, parameter {p}: a sum "
                    "that is not taken yet. Redistribute it first"
                )
    return True


def check_kinds(name: str, tensors: Sequence[Tensor]) -> None:
    """All or none are DTensors."""
    kinds = [is_dtensor(x) for x in tensors]
    if any(kinds) and not all(kinds):
        raise TypeError(
            f"{name} must be DTensors all or none, got a DTensor at {kinds.index(True)} and a "
            f"plain tensor at {kinds.index(False)}"
        )


def local(x: Tensor) -> Tensor:
    """This rank's part of `x`, which is `x` unless it is a DTensor."""
    if not is_dtensor(x):
        return x
    with torch.no_grad():
        return cast("DTensor", x).to_local()


def resolved(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """`grad` with the sums taken that are still open, laid out as `x` is."""
    if grad is None or not is_dtensor(grad):
        return grad
    pending, whole = cast("DTensor", grad), cast("DTensor", x)
    if pending.placements == whole.placements and pending.device_mesh == whole.device_mesh:
        return grad
    with torch.no_grad():
        return pending.redistribute(whole.device_mesh, whole.placements)


def laid_out_as(x: Tensor, part: Tensor) -> Tensor:
    """`part` as this rank's part of a tensor laid out as `x` is."""
    if not is_dtensor(x):
        return part
    from torch.distributed.tensor import DTensor

    whole = cast("DTensor", x)
    return DTensor.from_local(
        part,
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def layouts(flat: Sequence[Tensor], n: int) -> list[Tensor]:
    """For each of the P parameters a gradient that is not None's empty filling, if there is one."""
    count = len(flat) // n
    return [max(flat[p::count], key=lambda x: (is_dtensor(x), x.numel())) for p in range(count)]


def _groups(mesh: DeviceMesh, dims: Sequence[int]) -> list[ProcessGroup]:
    return [mesh.get_group(dim) for dim in dims if mesh.size(dim) > 1]


# --- gram ---------------------------------------------------------------------------------------


def gram(flat: Sequence[Tensor], n: int, group: ProcessGroup | None) -> Tensor:
    """The Gram matrix of the whole gradients from this rank's parts, the same bits on all ranks.

    One all-reduce for each distinct set of mesh dimensions that some parameter is sharded over.
    """
    count = len(flat) // n
    parts: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[int]] = {}
    for p, x in enumerate(layouts(flat, n)):
        if is_dtensor(x):
            shard = cast("DTensor", x)
            placements = shard.placements
            dims = tuple(d for d, y in enumerate(placements) if not y.is_replicate())
            parts.setdefault((shard.device_mesh, dims), []).append(p)
        else:
            parts.setdefault((None, ()), []).append(p)
    total: Tensor | None = None
    for (mesh, dims), columns in parts.items():
        part: Tensor = ops.gram([local(flat[i * count + p]) for i in range(n) for p in columns], n)
        for over in _groups(mesh, dims) if mesh is not None else []:
            _add_up(part, over)
        total = part if total is None else total + part
    assert total is not None
    if group is not None:
        _add_up(total, group)
    for over in meeting(flat, group):
        same(total, over)
    return total


def _add_up(matrix: Tensor, group: ProcessGroup) -> None:
    """The sum of the ranks' symmetric matrices.

    The order in which a ring adds up an element depends on where it lies: one triangle is mirrored.
    """
    dist.all_reduce(matrix, group=group)
    upper = matrix.triu()
    matrix.copy_(upper + upper.triu(1).mT)


def same(x: Tensor, group: ProcessGroup) -> None:
    """The first rank's `x` on every rank of the group."""
    dist.broadcast(x, group=group, group_src=0)


def meeting(flat: Sequence[object], *others: ProcessGroup | None) -> list[ProcessGroup]:
    """Groups which one after the other let every rank hear of every other: meshes', then others.

    A mesh of all ranks meets in the default group, the only one that a rank knows whose tensors are
    not on the mesh.
    """
    meshes = dict.fromkeys(cast("DTensor", x).device_mesh for x in flat if is_dtensor(x))
    groups: list[ProcessGroup | None] = []
    for mesh in meshes:
        groups += [dist.group.WORLD] if _of_all(mesh) else _groups(mesh, range(mesh.ndim))
    return [group for group in dict.fromkeys([*groups, *others]) if group is not None]


def _of_all(mesh: DeviceMesh) -> bool:
    return mesh.size() == dist.get_world_size() > 1 and serves(dist.group.WORLD, mesh.device_type)


def serves(group: ProcessGroup | None, device_type: str) -> bool:
    """Whether the group has a back end for tensors of such devices."""
    return f"{device_type}:" in dist.get_backend_config(group)


def settle(matrix: Tensor, ranks: ProcessGroup, *, summed: bool) -> None:
    """The data ranks' one Gram matrix: of means that all hold, or the sum of parts of them."""
    if summed:
        _add_up(matrix, ranks)
        matrix /= dist.get_world_size(ranks) ** 2
    same(matrix, ranks)


# --- agreement ----------------------------------------------------------------------------------

# What the ranks of a group must have alike, by its name in messages.
Facts = Mapping[str, object]


def layouts_as_facts(name: str, tensors: Sequence[Tensor | None]) -> dict[str, object]:
    """Dtype, shape and placements of each tensor, which ranks with the same parameters share."""
    return {f"{name} {p}": _layout(x) for p, x in enumerate(tensors)}


def _layout(x: Tensor | None) -> str:
    if x is None:
        return "None"
    placed = f" {cast('DTensor', x).placements}" if is_dtensor(x) else ""
    return f"{x.dtype} {list(x.shape)}{placed}"


def may_talk(device: torch.device, wait: bool) -> bool:
    """Whether ranks compare notes: on a GPU only if the caller waits for it, never in a graph."""
    return not torch.compiler.is_compiling() and (wait or device.type == "cpu")


def gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    """[ranks, ...]: the `x` of each rank, in their order and so the same bits everywhere."""
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, x.contiguous(), group=group)
    return torch.stack(rows)


def agree(
    meetings: Iterable[tuple[ProcessGroup, Facts]],
    device: torch.device,
    refusal: Exception | None = None,
) -> None:
    """Raise on every rank where one raises `refusal` or a fact differs between ranks.

    One all-gather of two integers for each group, whatever is called with whatever arguments. Where
    they differ, and all ranks of the group see that they do, the facts themselves travel. What a
    rank hears in one group it passes on in the next, so that all ranks of a mesh of several
    dimensions raise.
    """
    error = refusal
    for group, facts in meetings:
        table = gathered(torch.tensor([error is not None, _digest(facts)], device=device), group)
        if bool((table[:, 0] == 0).all() and (table[:, 1] == table[0, 1]).all()):
            continue
        notes: list[Any] = [None] * len(table)
        dist.all_gather_object(notes, (dict(facts), error and _said(error)), group=group)
        error = error or _disagreement(notes)
    if error is not None:
        raise error


def _digest(facts: Facts) -> int:
    text = repr(sorted(facts.items())).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _disagreement(notes: list[tuple[Facts, str | None]]) -> ValueError:
    refusing = {rank: text for rank, (_, text) in enumerate(notes) if text is not None}
    if refusing:
        return ValueError(
            "group must have ranks that all succeed, but ranks "
            f"{list(refusing)} raise {next(iter(refusing.values()))}"
        )
    for name in dict.fromkeys(name for facts, _ in notes for name in facts):
        ranks: dict[str, list[int]] = {}
        for rank, (facts, _) in enumerate(notes):
            ranks.setdefault(str(facts.get(name, "nothing")), []).append(rank)
        if len(ranks) > 1:
            said = ", ".join(f"{value} on ranks {where}" for value, where in ranks.items())
            return ValueError(f"group must have ranks that agree in {name}, got {said}")
    raise AssertionError("digests differ and facts do not")


def check_group(group: object) -> None:
    """Raise at once: there is nobody to tell."""
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a ProcessGroup or None, got {type(group).__name__}")


def refuse(
    error: Exception, tensors: object, *others: ProcessGroup | None, wait: object
) -> NoReturn:
    """Raise `error` here, and on the other ranks one that says so, in place of their waiting.
    `wait` may be the very argument that is refused.
    """
    found = list(_tensors(tensors))
    groups = meeting(found, *others)
    device = found[0].device if found else torch.device("cpu")
    if may_talk(device, wait is True) and all(serves(group, device.type) for group in groups):
        agree([(group, {}) for group in groups], device, error)
    raise error


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Sequence) and not isinstance(x, str):
        for y in x:
            yield from _tensors(y)


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
    elif group is None and dist.is_initialized() and not any(map(is_dtensor, _tensors(parameters))):
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
    spots = [(i, p) for i, row in enumerate(rows) for p in range(len(row))]
    if not spots:
        return
    reached = torch.tensor(
        [rows[i][p] is not None for i, p in spots],
        dtype=torch.int32,
        device=parameters[spots[0][0]][0].device,
    )
    dist.all_reduce(reached, op=dist.ReduceOp.MAX, group=group)
    bucket: list[tuple[int, int]] = []
    size = 0
    for (i, p), hit in zip(spots, reached.tolist(), strict=True):
        if not hit:
            continue
        x = parameters[i][p]
        dtype = _gradient_dtype(x)
        bytes_of_x = x.numel() * dtype.itemsize
        full = size + bytes_of_x > BUCKET_BYTES
        if bucket and (full or dtype != _gradient_dtype(parameters[bucket[0][0]][bucket[0][1]])):
            _average_bucket(rows, parameters, bucket, group)
            bucket, size = [], 0
        bucket.append((i, p))
        size += bytes_of_x
    if bucket:
        _average_bucket(rows, parameters, bucket, group)


def _gradient_dtype(parameter: Tensor) -> torch.dtype:
    """Of its gradients; where they may be of any (`grad_dtype` None), what ranks agree on."""
    return parameter.grad_dtype or parameter.dtype


def _average_bucket(
    rows: list[list[Tensor | None]],
    parameters: Sequence[Sequence[Tensor]],
    bucket: list[tuple[int, int]],
    group: ProcessGroup,
) -> None:
    pieces = []
    for i, p in bucket:
        x, part = rows[i][p], local(parameters[i][p])
        dtype = _gradient_dtype(parameters[i][p])
        # Zeros where this rank's part of a loss does not reach the parameter.
        y = torch.zeros_like(part, dtype=dtype) if x is None else local(x).to(dtype)
        pieces.append(y.flatten())
    mean = torch.cat(pieces).div_(dist.get_world_size(group))  # first, lest half overflow
    dist.all_reduce(mean, group=group)
    shapes = [local(parameters[i][p]).shape for i, p in bucket]
    for (i, p), shape, y in zip(bucket, shapes, mean.split([len(x) for x in pieces]), strict=True):
        rows[i][p] = laid_out_as(parameters[i][p], y.view(shape))


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


# --- FSDP2 --------------------------------------------------------------------------------------


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


def sharded(parameters: object) -> object:
    """With the plain parameter that FSDP2 shows between forward and backward replaced by the
    DTensor that it stands for; `model.parameters()` after a forward holds those of a root module.
    """
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        return parameters
    owner = {id(whole): shard for shard, whole in _fsdp_parameters()}
    return [owner.get(id(x), x) for x in parameters]


def collect(
    losses: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]], *, retain_last: bool
) -> list[list[Tensor | None]]:
    """For each loss its gradients in the tensors wanted of it, by `backward()`; all `.grad` stay.

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
            rows.append([resolved(x.grad, x) for x in tensors])
    finally:
        for x, grad in zip(everything, before, strict=True):
            x.grad = grad
    return rows
