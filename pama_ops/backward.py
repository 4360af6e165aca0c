"""`backward()` for several losses: gradients, Gram matrix, weights and their sum into `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pama_ops import _agreement as agreement
from pama_ops import _backward_arguments as arguments
from pama_ops import _checks as check
from pama_ops import _dtensors as dtensors
from pama_ops import _forward_mode as forward_mode
from pama_ops import _fsdp2 as fsdp2
from pama_ops import _gradient_lists as lists
from pama_ops import _memory as memory
from pama_ops import _ops as ops
from pama_ops import distributed
from pama_ops._dispatch import write
from pama_ops.gradients import gram
from pama_ops.weights import min_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Callable[[Tensor], Tensor]

# Nodes of a graph that stand for collectives in its backward: SyncBatchNorm's and FSDP2's.
COMMUNICATING = ("SyncBatchNormBackward", "RegisterPostBackwardFunctionBackward")


def pareto_backward(
    losses: Sequence[Tensor] | Tensor,
    parameters: Iterable[Tensor] | None = None,
    *,
    weighting: Weighting = min_norm,
    features: Tensor | Sequence[Tensor] | None = None,
    task_parameters: Sequence[Iterable[Tensor]] | None = None,
    group: ProcessGroup | None = None,
    data_group: ProcessGroup | str | None = "world",
    retain_graph: bool = False,
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
    its `.grad`. Parameters that require no gradient are passed over.

    Hooks of a tensor (`register_hook`) and `retain_grad()` see each loss's own gradient. With
    `features` they see the one backward as well, which is torch's: it writes `.grad` of all but
    `task_parameters`, with its checks alone, and runs hooks on the accumulation of gradients, which
    do not run on plain parameters otherwise: DistributedDataParallel's, or those that take the step
    of the trunk. Post-accumulate hooks of heads are refused then, and of DTensors always.

    In a distributed run each loss is a rank's own, and what counts is its mean over the data ranks,
    as DistributedDataParallel has it. Plain parameters: gradients are taken without such hooks and
    averaged over `data_group`. DTensors (FSDP2, HSDP, tensor parallel): one `backward()` a loss
    into these parameters only, in which FSDP2 averages; what is left Partial is summed. With
    `features`, G is summed over `data_group`, and the one backward's hooks average. All ranks raise
    where one refuses its arguments, where they disagree in what must be alike (`weighting` by name
    and by what functools.partial sets) or where one's gradients fail, unless backward communicates.

    Args:
        losses: n >= 1 one-element tensors of any floating dtype, or a tensor [n]. One without a
            graph, as `torch.tensor(0.)` for a task that has no sample in the batch, counts as a
            gradient of zeros. That is Pareto stationary to `min_norm`, which gives it all the
            weight: pass `functools.partial(min_norm, ignore_zero=True)` to leave such losses out.
            Refused where the parameters are DTensors, whose backward communicates.
        parameters: the shared parameters, e.g. `model.parameters()`, of float64, float32, float16
            or bfloat16; those in `task_parameters` are left out of it. Either this or `features`.
        weighting: a function from G [n, n] in float64 to weights [n].
        features: a tensor, or several, that all losses are computed from.
        task_parameters: for each loss the parameters that belong to it alone (its head). They get
            that loss's own gradient, unweighted, and stay out of G: a head whose weight is 0 would
            never train. Their gradients may be sparse, unless data ranks average them.
        group: process group whose ranks hold disjoint parts of `parameters` (or of `features`).
        data_group: process group whose ranks hold disjoint data and the same parameters; all must
            call. "world" is the default group of torch.distributed, if that is initialised,
            what gradients are taken of is plain and no `group` is given; None averages nothing.
        retain_graph: keep the losses' graph, as `backward` has it. It is retained between the
            losses in any case, for which a compiled model must not donate buffers:
            docs/trainers.md.

    Returns:
        w, [n] in float64 (or what `weighting` returns), detached; the first rank's on every rank.

    Raises:
        TypeError, ValueError: naming the argument, the index, what came and what is wanted;
            nothing has been written then. Reentrant activation checkpointing is refused, since
            autograd cannot take gradients of chosen tensors through it.

    Complexity: n backwards, two reads of the gradients, and a copy of those of `task_parameters`;
        memory for n + 1 gradients at most.
    Source: Désidéri 2012; Sener & Koltun, arXiv 1810.04650.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> pareto_backward([x[0] ** 2 / 2, x.sum() - x[0]], [x])
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> x.grad
    tensor([0.5000, 0.5000])
    """
    agreement.check_group(group)
    tensors = fsdp2.shards_of(parameters)
    ranks = distributed.data_ranks(data_group, group, [tensors, features])
    through = features is not None
    name = "features" if through else "parameters"
    given = [tensors, features, losses]
    with agreement.all_ranks_raise(given, ranks, group, wait=True) as agreed:
        # By where they stand in what was given, which refusals name.
        terms, named, owned = arguments.checked(losses, tensors, features, task_parameters)
        shared, heads = [*named.values()], [[*x.values()] for x in owned]
        forward_mode.refuse("pareto_backward", *terms, *shared)
        retain_graph = check.flag("retain_graph", retain_graph)
        arguments.refuse_reentrant_checkpoints(terms, shared)
        agreed.must_agree(
            shared,
            lambda over: _facts(name, terms, shared, heads, weighting, of_parts=over is group),
        )
    rows, tasks = _gradients_of_all(name, terms, named, owned, group, ranks, retain_graph)
    if ranks is not None:
        if not (through and dtensors.any_in(heads)):  # FSDP2 has averaged those
            distributed.average(tasks, heads, ranks)
        if not through:
            distributed.average(rows, [shared] * len(rows), ranks)
    weights = _weights(weighting, rows, name, group, ranks, summed=through)
    # One rank's chance and processor.
    for over in agreement.groups_of_all_ranks(shared, ranks, group):
        distributed.copy_first_rank(weights, over)
    _copy_own(heads, tasks)
    if through:
        rows.clear()
        _backward(terms, heads, weights, retain_graph)
    else:
        reached = [p for p in range(len(shared)) if any(row[p] is not None for row in rows)]
        flat, _, _ = lists.flattened("gradients", [[row[p] for p in reached] for row in rows])
        rows.clear()
        _add([shared[p] for p in reached], flat, weights)
    _add_own(heads, tasks)
    return weights


def _backward(
    losses: list[Tensor], heads: list[list[Tensor]], weights: Tensor, retain_graph: bool
) -> None:
    """`.grad` += the gradient of Σ w_i L_i, but of the losses' own parameters."""
    own = list(chain(*heads))
    # The values too: DistributedDataParallel may write to a `.grad` that is a view of its bucket.
    before = [(x.grad, None if x.grad is None else x.grad.detach().clone()) for x in own]
    for x in own:
        x.grad = None
    try:
        having = [(i, loss) for i, loss in enumerate(losses) if loss.requires_grad]
        slopes = [weights[i].to(loss.dtype).expand_as(loss) for i, loss in having]
        torch.autograd.backward([loss for _, loss in having], slopes, retain_graph=retain_graph)
    finally:
        for x, (grad, values) in zip(own, before, strict=True):
            if grad is not None and values is not None and x.grad is not None:
                with torch.no_grad():
                    grad.copy_(values)
            x.grad = grad


# --- what it is made of -------------------------------------------------------------------------


def _facts(
    name: str,
    losses: list[Tensor],
    shared: list[Tensor],
    heads: list[list[Tensor]],
    weighting: object,
    *,
    of_parts: bool,
) -> dict[str, object]:
    """What ranks share. Those of a group hold parts of their own shapes, and data ranks features of
    theirs; what else ranks share they hold in the same shapes.
    """
    facts: dict[str, object] = {
        "the function": "pareto_backward",
        "the number of losses": len(losses),
        "weighting": agreement.described(weighting),
        "what gradients are taken of": name,
        f"the number of shared {name}": len(shared),
        "the number of task_parameters": [len(head) for head in heads],
    }
    if of_parts:
        return facts
    if name == "parameters" or dtensors.any_in([shared]):
        facts |= agreement.placements_as_facts(f"shared {name}", shared)
    for i, head in enumerate(heads):
        facts |= agreement.placements_as_facts(f"task_parameters of loss {i}:", head)
    return facts


def _gradients_of_all(
    name: str,
    losses: list[Tensor],
    named: dict[str, Tensor],
    owned: list[dict[str, Tensor]],
    group: ProcessGroup | None,
    ranks: ProcessGroup | None,
    retain_graph: bool,
) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]]:
    """For each loss its gradients in the shared tensors and in its own parameters.

    Where one rank cannot take them all raise, unless backward itself communicates: a rank that
    fails has left the others in the middle.
    """
    through = name == "features"
    shared, heads = [*named.values()], [[*x.values()] for x in owned]
    wanted = [[*shared, *head] for head in heads]
    communicating = dtensors.any_in(wanted)

    def in_the_middle() -> bool:
        nodes = arguments.graph(losses, shared)
        return communicating or any(node.name() in COMMUNICATING for node in nodes)

    with agreement.all_ranks_raise(shared, ranks, group, wait=True, unless=in_the_middle) as agreed:
        if through and dtensors.any_in(heads):
            rows = _autograd(losses, [shared for _ in losses], retain_last=True)
            tasks = fsdp2.gradients_by_backward(losses, heads, retain_last=True)
        else:
            take = fsdp2.gradients_by_backward if communicating and not through else _autograd
            # Features are no leaves: the graph is kept for one more backward through them.
            both = take(losses, wanted, retain_last=through or retain_graph)
            rows, tasks = [row[: len(shared)] for row in both], [row[len(shared) :] for row in both]
        for i, row in enumerate(rows):
            _dense(named, i, row)
        for p, (at, x) in enumerate(named.items()):
            if x.dtype not in check.FLOATING and any(row[p] is not None for row in rows):
                check.floating(at, x)
        for i, row in enumerate(tasks if ranks is not None else []):  # which are averaged
            _dense(owned[i], i, row)
        if through or ranks is None:
            _reached(name, rows)
        if not communicating:
            agreed.must_agree(shared)
    return rows, tasks


def _reached(name: str, rows: list[list[Tensor | None]]) -> None:
    if all(x is None for row in rows for x in row):
        raise ValueError(f"losses must depend on {name}, but none of them reaches any")


def _autograd(
    losses: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]], *, retain_last: bool
) -> list[list[Tensor | None]]:
    rows: list[list[Tensor | None]] = []
    last = max(i for i, loss in enumerate(losses) if loss.requires_grad)
    with distributed.ddp_unaware(arguments.graph(losses, wanted[last])):
        for i, (loss, tensors) in enumerate(zip(losses, wanted, strict=True)):
            if not loss.requires_grad:
                rows.append([None] * len(tensors))
                continue
            keep = retain_last or i < last
            grads = torch.autograd.grad(loss, tensors, retain_graph=keep, allow_unused=True)
            # Without the graph that a gradient has where a function's backward returns a parameter.
            plain = [None if g is None else g.detach() for g in grads]
            rows.append(
                [dtensors.with_sums_taken(g, x) for g, x in zip(plain, tensors, strict=True)]
            )
    return rows


def _dense(names: Iterable[str], i: int, row: list[Tensor | None]) -> None:
    for at, x in zip(names, row, strict=True):
        if x is not None and x.layout != torch.strided:
            raise TypeError(f"{at} must have dense gradients, got {x.layout} from losses[{i}]")


def _weights(
    weighting: Weighting,
    rows: list[list[Tensor | None]],
    name: str,
    group: ProcessGroup | None,
    ranks: ProcessGroup | None,
    *,
    summed: bool,
) -> Tensor:
    """The weighting's answer; `summed`: data ranks hold rows of G's sum, not means of gradients."""
    n = len(rows)
    _reached(name, rows)
    matrix = gram(rows, group=group)
    if ranks is not None:
        distributed.unite_gram(matrix, ranks, summed=summed)
    weights = weighting(matrix)
    if not isinstance(weights, Tensor):
        raise TypeError(f"weighting must return a torch.Tensor, got {type(weights).__name__}")
    usable = weights.dtype in check.FLOATING and weights.device == matrix.device
    if weights.shape != (n,) or not usable:
        raise ValueError(
            f"weighting must return {n} floating-point weights (no float8) for the {n} losses on "
            f"{matrix.device}, got {weights.dtype} {list(weights.shape)} on {weights.device}"
        )
    return weights.detach().clone(memory_format=torch.contiguous_format)


def _add(parameters: list[Tensor], flat: list[Tensor], weights: Tensor) -> None:
    """`.grad` += Σ w_i g_i, without a temporary where there is a `.grad` to add to."""
    n, count = weights.shape[0], len(parameters)
    layouts = dtensors.representatives(flat, n)
    fresh = [p for p, x in enumerate(parameters) if x.grad is None]
    targets = {p: x.grad for p, x in enumerate(parameters) if x.grad is not None}
    both = [*(layouts[p] for p in targets), *targets.values()]
    dtensors.check_dtensors("gradients and .grad", both, 2)
    flat = [dtensors.local_part(x) for x in flat]

    def of(some: list[int]) -> list[Tensor]:
        return [flat[i * count + p] for i in range(n) for p in some]

    # First what is new: its gradients may lie in a .grad that is written next.
    new = ops.combine(of(fresh), weights) if fresh else []
    if targets:
        to = [dtensors.local_part(x) for x in targets.values()]
        try:
            write(ops.combine_into, to, of([*targets]), weights, True)
        except ValueError as error:
            raise ValueError(
                "a .grad that a gradient is added to must be that whole gradient or lie apart from "
                f"all that losses give (out[k]: of the k-th parameter with a .grad): {error}"
            ) from error
    for p in reversed(fresh):
        like, x = parameters[p], new.pop()
        plain = not dtensors.is_dtensor(like)
        if plain and memory.is_dense(like) and not memory.same_order(x, like):
            x = torch.empty_like(like, dtype=x.dtype).copy_(x)  # as torch's backward lays it out
        like.grad = dtensors.placed_as(layouts[p], x)


@torch.no_grad()
def _copy_own(heads: list[list[Tensor]], tasks: list[list[Tensor | None]]) -> None:
    """Replace each head's gradient, which may be expanded, another tensor's too, or a `.grad` that
    is about to be written, by a copy: laid out as its parameter is, a sparse one as it is.
    """
    for head, grads in zip(heads, tasks, strict=True):
        for p, (x, grad) in enumerate(zip(head, grads, strict=True)):
            if grad is not None and grad.layout == torch.strided:
                grads[p] = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
            elif grad is not None:
                grads[p] = grad.clone()


@torch.no_grad()
def _add_own(heads: list[list[Tensor]], tasks: list[list[Tensor | None]]) -> None:
    """`.grad` of each loss's own parameters += its own gradient; each may be sparse or dense."""
    for x, grad in zip(chain(*heads), chain(*tasks), strict=True):
        if grad is None:
            continue
        if x.grad is None:
            x.grad = grad
        elif x.grad.layout == torch.strided or grad.layout != torch.strided:
            x.grad.add_(grad)
        else:
            x.grad = grad.add_(x.grad)
