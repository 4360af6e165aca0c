"""How ranks that call a function together agree, and raise together where they do not."""

from __future__ import annotations

import functools
import hashlib
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _dtensors as dtensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# What the ranks of a group must have alike, by its name in messages.
Facts = Mapping[str, object]


def placements_as_facts(name: str, tensors: Sequence[Tensor | None]) -> dict[str, object]:
    """Dtype, shape and placements of each tensor, which ranks with the same parameters share."""
    return {f"{name} {p}": _layout(x) for p, x in enumerate(tensors)}


def _layout(x: Tensor | None) -> str:
    if x is None:
        return "None"
    placed = f" {x.placements}" if dtensors.is_dtensor(x) else ""
    return f"{x.dtype} {list(x.shape)}{placed}"


def described(x: object) -> str:
    """A weighting's name and what functools.partial sets, of tensors, which may be state whose last
    bits differ, the shape alone; not what closures and objects hold.
    """
    if isinstance(x, functools.partial):
        options = (f"{name}={described(value)}" for name, value in sorted(x.keywords.items()))
        return f"partial({', '.join([*map(described, (x.func, *x.args)), *options])})"
    if isinstance(x, Tensor):
        return f"{x.dtype} {list(x.shape)}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(described, x))}]"
    x = check.plain(x)  # of numpy's numbers, too
    if x is None or isinstance(x, (bool, str)):
        return repr(x)
    if isinstance(x, (numbers.Real, Decimal)):
        with suppress(OverflowError, ValueError):
            return repr(float(x))
    named = x if hasattr(x, "__qualname__") else type(x)
    return f"{named.__module__}.{named.__qualname__}"


class all_ranks_raise:  # noqa: N801, as contextlib's own
    """A block of a call that ranks make together, in which each checks its arguments.

    Where one raises in it, the others raise an error that says so, in place of waiting for it; so
    do all where the facts differ that they state in it by `must_agree`.

    Ranks meet over the meshes of the tensors among `arguments`, and over `groups`. On a GPU they do
    so only if the caller waits for it (`wait`, which may be the very argument that is refused), and
    never in a program that is compiled. `unless` is asked where this rank has raised: if it says
    True, the others are in the middle of something else, and are not told.
    """

    def __init__(
        self,
        arguments: object,
        *groups: ProcessGroup | None,
        wait: object,
        unless: Callable[[], bool] | None = None,
    ) -> None:
        self.arguments, self.groups, self.wait, self.unless = arguments, groups, wait, unless
        self.facts: Callable[[ProcessGroup], Facts] | None = None

    def must_agree(
        self, tensors: Sequence[Tensor], facts: Callable[[ProcessGroup], Facts] = lambda _: {}
    ) -> None:
        """What the ranks of a group must have alike at the end of the block, and which tensors of
        the arguments say where they meet.
        """
        self.arguments, self.facts = tensors, facts

    def __enter__(self) -> all_ranks_raise:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if (error is None and self.facts is None) or torch.compiler.is_compiling():
            return
        tensors = list(dtensors.tensors_in(self.arguments))
        device = tensors[0].device if tensors else torch.device("cpu")
        if device.type != "cpu" and check.plain(self.wait) is not True:
            return
        groups = groups_of_all_ranks(tensors, *self.groups)
        if error is None and self.facts is not None:
            heard = _hear_all([(over, self.facts(over)) for over in groups], device, None)
            try:
                if heard is not None:
                    raise heard
            finally:
                del heard  # its traceback holds this frame, and with it the arguments
        elif isinstance(error, Exception) and not (self.unless and self.unless()):
            able = all(serves(over, device.type) for over in groups)
            _hear_all([(over, {}) for over in groups if able], device, error)


def groups_of_all_ranks(flat: Sequence[object], *others: ProcessGroup | None) -> list[ProcessGroup]:
    """Groups which one after the other let every rank hear of every other: meshes', then others.

    A mesh of all ranks meets in the default group, the only one that a rank knows whose tensors are
    not on the mesh.
    """
    meshes = dict.fromkeys(x.device_mesh for x in flat if dtensors.is_dtensor(x))
    groups: list[ProcessGroup | None] = []
    for mesh in meshes:
        groups += (
            [dist.group.WORLD] if _of_all(mesh) else dtensors.mesh_groups(mesh, range(mesh.ndim))
        )
    return [group for group in dict.fromkeys([*groups, *others]) if group is not None]


def _of_all(mesh: DeviceMesh) -> bool:
    return mesh.size() == dist.get_world_size() > 1 and serves(dist.group.WORLD, mesh.device_type)


def serves(group: ProcessGroup | None, device_type: str) -> bool:
    """Whether the group has a back end for tensors of such devices."""
    return f"{device_type}:" in dist.get_backend_config(group)


def gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    """[ranks, ...]: the `x` of each rank, in their order and so the same bits everywhere."""
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, x.contiguous(), group=group)
    return torch.stack(rows)


def _hear_all(
    meetings: Iterable[tuple[ProcessGroup, Facts]], device: torch.device, error: Exception | None
) -> Exception | None:
    """This rank's `error`, or else one that tells of another rank's, or of facts that differ.

    One all-gather of two integers for each group, whatever is called with whatever arguments. Where
    they differ, and all ranks of the group see that they do, the facts themselves travel. What a
    rank hears in one group it passes on in the next, so that all ranks of a mesh of several
    dimensions raise.
    """
    for group, facts in meetings:
        table = gathered(torch.tensor([error is not None, _digest(facts)], device=device), group)
        if bool((table[:, 0] == 0).all() and (table[:, 1] == table[0, 1]).all()):
            continue
        notes: list[Any] = [None] * len(table)
        said = error and f"{type(error).__name__}: {error}"
        dist.all_gather_object(notes, (dict(facts), said), group=group)
        error = error or _disagreement(notes)
    return error


def _digest(facts: Facts) -> int:
    text = repr(sorted(facts.items())).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


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
