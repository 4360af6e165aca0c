"""DTensors: which gradients are some, how they are placed, and this rank's parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_dtensor(x: object) -> TypeGuard[DTensor]:
    """Whether `x` is a DTensor."""
    return _is_dtensor_class(type(x))


def _is_dtensor_class(kind: type) -> bool:
    if kind is Tensor or kind is torch.nn.Parameter or not issubclass(kind, Tensor):
        return False
    from torch.distributed.tensor import DTensor  # a second of imports that plain tensors save

    return issubclass(kind, DTensor)


def tensors_in(x: Any) -> Iterator[Tensor]:
    """Those in lists of lists of them."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Sequence) and not isinstance(x, str):
        for y in x:
            yield from tensors_in(y)


def any_in(x: object) -> bool:
    """Whether there is a DTensor among the tensors in `x`."""
    return any(map(is_dtensor, tensors_in(x)))


def check_dtensors(name: str, flat: Sequence[Tensor], n: int) -> bool:
    """Whether the n x P gradients are DTensors; raises unless all are, or none (None is both)."""
    count = len(flat) // n
    if not any(map(_is_dtensor_class, {*map(type, flat)})):
        return False
    of: dict[int, DTensor] = {}
    for k, x in enumerate(flat):
        i, p = divmod(k, count)
        if x.dim() == 1 and x.numel() == 0:  # None, filled
            continue
        if not is_dtensor(x):
            first = next(at for at, y in enumerate(flat) if is_dtensor(y))
            raise TypeError(
                f"{name} must be DTensors all or none, got a DTensor for objective "
                f"{first // count}, parameter {first % count} and a plain tensor for objective "
                f"{i}, parameter {p}"
            )
        if x.requires_grad:
            raise ValueError(f"{name} must not require a gradient where they are DTensors")
        like = of.setdefault(p, x)
        if not _placed_alike(x, like):
            raise ValueError(
                f"{name} must have one placement for parameter {p}, got {like.placements} on "
                f"{like.device_mesh} and, for objective {i}, {x.placements} on {x.device_mesh}"
            )
        for dim, placement in enumerate(x.placements):
            if placement.is_partial():
                raise ValueError(
                    f"{name} must be Shard or Replicate, got Partial, {placement}, over "
                    f"dimension {dim} of the mesh for objective {i}, parameter {p}: a sum "
                    "that is not taken yet. Redistribute it first"
                )
    return True


def _placed_alike(x: DTensor, y: DTensor) -> bool:
    return x.placements == y.placements and x.device_mesh == y.device_mesh


def check_all_or_none(name: str, tensors: Sequence[Tensor]) -> None:
    """All or none are DTensors."""
    kinds = [is_dtensor(x) for x in tensors]
    if any(kinds) and not all(kinds):
        raise TypeError(
            f"{name} must be DTensors all or none, got a DTensor at {kinds.index(True)} and a "
            f"plain tensor at {kinds.index(False)}"
        )


def local_part(x: Tensor) -> Tensor:
    """This rank's part of `x`, which is `x` unless it is a DTensor."""
    if not is_dtensor(x):
        return x
    with torch.no_grad():
        return x.to_local()


def with_sums_taken(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """`grad` with the sums taken that are still open, laid out as `x` is."""
    if not (is_dtensor(grad) and is_dtensor(x)) or _placed_alike(grad, x):
        return grad
    with torch.no_grad():
        return grad.redistribute(x.device_mesh, x.placements)


def placed_as(x: Tensor, part: Tensor) -> Tensor:
    """`part` as this rank's part of a tensor laid out as `x` is."""
    if not is_dtensor(x):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def representatives(flat: Sequence[Tensor], n: int) -> list[Tensor]:
    """For each of the P parameters a gradient that is not None's empty filling, if there is one."""
    count = len(flat) // n
    return [max(flat[p::count], key=lambda x: (is_dtensor(x), x.numel())) for p in range(count)]


def mesh_groups(mesh: DeviceMesh, dims: Sequence[int]) -> list[ProcessGroup]:
    return [mesh.get_group(dim) for dim in dims if mesh.size(dim) > 1]
