"""Process groups in gradient space: what ranks compute together is the unsharded answer."""

from __future__ import annotations

import datetime
import functools
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from strategies import normal
from test_pareto_backward import Widened
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import pama_ops as po
from pama_ops import _fsdp2

DOCS = Path(__file__).parents[1] / "docs" / "distributed.md"
N = 3
SHAPES = [(5, 4), (3,), (1, 6), (7, 2)]


def gradients(seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [normal(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        for _ in range(N)
    ]


def flattened(tensors: Any) -> torch.Tensor:
    return torch.cat([x.flatten() for x in tensors])


def full(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def message(function: Any, *arguments: Any, **options: Any) -> str:
    try:
        function(*arguments, **options)
    except (TypeError, ValueError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# --- gram and combine of DTensors ---------------------------------------------------------------


def gram_of_dtensors(rank: int, shape: tuple[int, ...], layouts: list[Any], missing: bool) -> Any:
    """Also combine: its shards, put together, and whether the placements were kept."""
    mesh = init_device_mesh("cpu", shape)
    grads: list[list[Any]] = [
        [distribute_tensor(x, mesh, y) for x, y in zip(row, layouts, strict=True)]
        for row in gradients()
    ]
    if missing:
        grads[1][2] = None
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    combined = po.combine(grads, weights)
    out = [torch.empty_like(x) for x in grads[0]]
    po.combine(grads, weights, out=out)
    assert all(torch.equal(x.to_local(), y.to_local()) for x, y in zip(out, combined, strict=True))
    assert all(x.placements == tuple(y) for x, y in zip(combined, layouts, strict=True))
    empty = any(x.to_local().numel() == 0 for x in grads[0])
    return po.gram(grads), [full(x) for x in combined], empty


def check_gram(results: list[Any], missing: bool = False) -> None:
    whole: list[list[Any]] = gradients()
    if missing:
        whole[1][2] = None
    want = po.gram(whole)
    sums = po.combine(whole, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    for gram, combined, _ in results:
        assert torch.equal(gram, results[0][0])
        close(gram, want)
        close(flattened(combined), flattened(sums))


@pytest.mark.parametrize("missing", [False, True])
def test_gram_of_uneven_and_empty_shards_is_that_of_the_whole(ranks, missing):
    """(1, 6) over two ranks leaves one with nothing; a replicated parameter counts once."""
    layouts = [[Shard(0)], [Replicate()], [Shard(0)], [Shard(1)]]
    results = ranks(gram_of_dtensors, (2,), layouts, missing)
    assert any(empty for _, _, empty in results)
    check_gram(results, missing)


def test_gram_over_a_mesh_of_two_dimensions_reduces_sharded_ones_only(four_ranks):
    """HSDP's layout, both dimensions sharded, and none."""
    layouts = [
        [Replicate(), Shard(0)],
        [Replicate(), Replicate()],
        [Shard(0), Shard(1)],
        [Shard(0), Replicate()],
    ]
    check_gram(four_ranks(gram_of_dtensors, (2, 2), layouts, False))


def gram_of_parts(rank: int) -> torch.Tensor:
    rows = [[x[rank:1] if rank < 1 else x[1:] for x in row] for row in gradients()]
    return po.gram(rows, group=dist.group.WORLD)


def test_gram_adds_the_parts_that_ranks_of_a_group_hold(ranks):
    ours, theirs = ranks(gram_of_parts)
    assert torch.equal(ours, theirs)
    close(ours, po.gram(gradients()))


def gram_of_many_rows(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    rows = [[normal(5, generator=generator, dtype=torch.float64)] for _ in range(40)]
    return po.gram(rows, group=dist.group.WORLD)


def test_gram_of_a_group_is_symmetric_to_the_bit(four_ranks):
    """A ring of ranks begins the sum of each stretch of the matrix at another of them."""
    ours, *theirs = four_ranks(gram_of_many_rows)
    assert torch.equal(ours, ours.T)
    assert all(torch.equal(ours, other) for other in theirs)


def collectives(rank: int) -> list[list[tuple[str, int, torch.dtype]]]:
    """What `gram` of a group sends, then `pareto_backward` of plain parameters."""
    sent: list[tuple[str, int, torch.dtype]] = []

    def counted(name: str) -> Any:
        inner = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            x = arguments[name == "all_gather"]
            sent.append((name, x.numel(), x.dtype))
            return inner(*arguments, **options)

        return call

    net = model()
    losses = rank_losses(net, batches(2)[0, rank])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "broadcast"):
            patch.setattr(dist, name, counted(name))
        po.gram(gradients(), group=dist.group.WORLD)
        first, sent = sent, []
        po.pareto_backward(losses, net.parameters())
    return [first, sent]


def test_what_travels_is_a_header_and_the_matrix_and_for_data_ranks_the_means(ranks):
    header = ("all_gather", 2, torch.int64)
    matrix = (N * N, torch.float64)
    counts = [x.numel() for x in model().parameters()]
    want = [
        [header, ("all_reduce", *matrix), ("broadcast", *matrix)],
        [
            *(header, header),
            ("all_reduce", N * len(counts), torch.int32),
            ("all_reduce", N * sum(counts), torch.float32),
            ("broadcast", *matrix),
            ("broadcast", N, torch.float64),
        ],
    ]
    assert ranks(collectives) == 2 * [want]


# --- disagreement -------------------------------------------------------------------------------


def disagreements(rank: int) -> dict[str, str]:
    """Calls that must fail on both ranks; the group must serve on after each."""
    world = dist.group.WORLD
    mesh = init_device_mesh("cpu", (2,))
    grads = gradients()
    shards: list[list[Any]] = [
        [distribute_tensor(x, mesh, [Shard(0)]) for x in row] for row in grads
    ]
    odd = DTensor.from_local(torch.ones(2 + rank, 4, dtype=torch.float64), mesh, [Shard(0)])
    partial = [DTensor.from_local(grads[0][0], mesh, [Partial()])] * 2
    w = torch.ones(3, requires_grad=True)
    losses = [w.sum(), w.square().sum()]
    other = torch.ones(3 + rank, requires_grad=True)
    half = torch.ones(3, requires_grad=True, dtype=(torch.float64, torch.float32)[rank])
    spread = distribute_tensor(torch.ones(3), mesh, [Shard(0)]).requires_grad_()
    z = w * 1
    saved = checkpoint(torch.square, w, use_reentrant=bool(rank)).sum()
    strict, lax = (functools.partial(po.cagrad, c=c) for c in (0.4, 0.5))

    def backward(x: torch.Tensor, **options: Any) -> str:
        return message(po.pareto_backward, [x.sum(), x.square().sum()], [x], **options)

    said = {
        "objectives": message(po.gram, grads[: 2 + rank], group=world),
        "tensors": message(po.gram, [row[rank:] for row in grads], group=world),
        "one refuses": message(po.gram, grads if rank == 0 else [], group=world),
        "mixed on one": message(po.gram, shards if rank == 0 else mixed_rows(shards, grads)),
        "mixed": message(po.gram, mixed_rows(shards, grads)),
        "partial": message(po.gram, partial),
        "losses": message(po.pareto_backward, losses[: 1 + rank], [w]),
        "parameters": message(po.pareto_backward, losses, [w] if rank == 0 else []),
        "shapes of shards": message(po.gram, [[shards[0][1], odd]] * 2),
        "shapes": backward(other),
        "dtypes": backward(half),
        "heads": backward(w, task_parameters=[[other], []]),
        "plain on one": backward(spread if rank else w),
        "features on one": (
            message(po.pareto_backward, [z.sum(), z.square().sum()], features=z)
            if rank
            else message(po.pareto_backward, losses, [w])
        ),
        "reentrant": message(po.pareto_backward, [saved, w.sum()], [w]),
        "fails in backward": message(po.pareto_backward, [Fragile.apply(w, rank), w.sum()], [w]),
        "reaches nothing": message(
            po.pareto_backward, [(w if rank else z).sum()] * 2, features=z, data_group=world
        ),
        "weighting": backward(w, weighting=lax if rank else po.upgrad),
        "its arguments": backward(w, weighting=lax if rank else strict),
        "function": message(po.gram if rank else po.whiten, [w.detach()] * 2, group=world)
        if rank
        else message(po.whiten, torch.ones(2, 3, 4), group=world),
    }
    assert all(x.grad is None for x in (w, other, half, spread))
    assert bool(po.gram(grads, group=world).isfinite().all())
    return said


class Fragile(torch.autograd.Function):
    """A sum whose backward fails on one rank."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fails: int) -> torch.Tensor:
        ctx.fails = fails
        return x.sum()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.fails:
            raise ArithmeticError("too much")
        return slope.expand(3), None


def mixed_rows(shards: list[list[Any]], grads: list[list[Any]]) -> list[list[Any]]:
    return [[*x[:-1], y[-1]] for x, y in zip(shards, grads, strict=True)]


def test_a_disagreement_is_an_error_on_every_rank_that_names_it(ranks):
    ours, theirs = ranks(disagreements)
    both = {
        "mixed": "DTensors all or none",
        "partial": "Partial, P(sum), over dimension 0 of the mesh",
    }
    apart = {
        "objectives": "the number of objectives, got 2 on ranks [0], 3 on ranks [1]",
        "tensors": "the number of tensors of an objective, got 4 on ranks [0], 3 on ranks [1]",
        "shapes of shards": "tensor 1, got torch.float64 [4, 4] (Shard(dim=0),) on ranks [0], "
        "torch.float64 [6, 4] (Shard(dim=0),) on ranks [1]",
        "losses": "the number of losses, got 1 on ranks [0], 2 on ranks [1]",
        "shapes": "shared parameters 0, got torch.float32 [3] on ranks [0], "
        "torch.float32 [4] on ranks [1]",
        "dtypes": "shared parameters 0, got torch.float64 [3] on ranks [0], "
        "torch.float32 [3] on ranks [1]",
        "heads": "task_parameters of loss 0: 0, got torch.float32 [3] on ranks [0], "
        "torch.float32 [4] on ranks [1]",
        "plain on one": "shared parameters 0, got torch.float32 [3] on ranks [0], "
        "torch.float32 [3] (Shard(dim=0),) on ranks [1]",
        "features on one": "what gradients are taken of, got parameters on ranks [0], "
        "features on ranks [1]",
        "weighting": "weighting, got pama_ops.weights.upgrad on ranks [0], "
        "partial(pama_ops.weights.cagrad, c=0.5) on ranks [1]",
        "its arguments": "weighting, got partial(pama_ops.weights.cagrad, c=0.4) on ranks [0], "
        "partial(pama_ops.weights.cagrad, c=0.5) on ranks [1]",
        "function": "the function, got whiten on ranks [0], gram on ranks [1]",
    }
    for said in (ours, theirs):
        for case, text in both.items():
            assert text in said[case]
        for case, text in apart.items():
            assert said[case] == f"ValueError: group must have ranks that agree in {text}"
    one = {
        "one refuses": "grads must hold at least one objective",
        "mixed on one": "grads must be DTensors all or none",
        "parameters": "parameters must hold",
        "reentrant": "losses must not pass through reentrant",
        "fails in backward": "ArithmeticError: too much",
        "reaches nothing": "losses must depend on features",
    }
    assert ours.keys() == {*both, *apart, *one}
    for case, text in one.items():
        assert text in theirs[case]
        assert ours[case].endswith(f"but ranks [1] raise {theirs[case]}")


def one_of_four(rank: int) -> list[str]:
    """On a mesh of two dimensions one rank has an objective less, then refuses, then is no part."""
    mesh = init_device_mesh("cpu", (2, 2))
    rows = [[distribute_tensor(x, mesh, [Replicate(), Shard(0)]) for x in y] for y in gradients()]
    odd = rank == 2
    short = [rows[0][1:], *rows[1:]]
    spread = distribute_tensor(torch.ones(4), mesh, [Replicate(), Shard(0)])
    x = (torch.ones(4) if odd else spread).requires_grad_()
    losses = [x.sum(), x.square().sum()]
    said = [
        message(po.gram, rows[odd:]),
        message(po.gram, short if odd else rows),
        message(po.pareto_backward, losses, [x]),
        message(po.pareto_backward, losses, [] if odd else [x]),
    ]
    close(po.gram(rows), po.gram(gradients()))
    return said


def test_all_ranks_of_a_mesh_of_two_dimensions_hear_of_one(four_ranks):
    for count, refused, plain, none in four_ranks(one_of_four):
        assert "number of objectives, got" in count
        assert "2 on ranks" in count
        assert "grads[1] must have as many tensors as grads[0], 3, got 4" in refused
        assert plain.endswith(
            "shared parameters 0, got torch.float32 [4] (Replicate(), Shard(dim=0)) on ranks "
            "[0, 1, 3], torch.float32 [4] on ranks [2]"
        )
        assert "parameters must hold a shared one that requires a gradient, got none" in none


def no_part(rank: int, rows: list[list[torch.Tensor]]) -> str:
    """`gram` of DTensors on rank 0 of two alone, on a mesh that gives up after two seconds."""
    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=2))
    if rank > 1:
        return ""
    mesh = DeviceMesh.from_group(group, "cpu")
    if rank == 1:
        return message(po.gram, rows)
    shards = [
        [DTensor.from_local(x, mesh, [Shard(0)], run_check=False) for x in gradients()[0]]
    ] * 2
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)timed out"):
        po.gram(shards)
    assert time.monotonic() - start < 30
    return "timed out"


@pytest.mark.parametrize(
    ("rows", "said"), [(gradients(), "no error"), ([], "ValueError: grads must")]
)
def test_gram_of_plain_gradients_or_none_is_a_call_of_that_rank_alone(four_ranks, rows, said):
    """No rank hears of it: those that hold DTensors end at their group's timeout."""
    ours, theirs, *_ = four_ranks(no_part, rows)
    assert ours == "timed out"
    assert theirs.startswith(said)


def call(name: str) -> None:
    x = torch.ones(3, requires_grad=True)
    {
        "gram": lambda: po.gram(gradients(), group=dist.group.WORLD),
        "pareto_backward": lambda: po.pareto_backward([x.sum(), x.square().sum()], [x]),
        "whiten": lambda: po.whiten(torch.ones(2, 3, 4), group=dist.group.WORLD),
        "pama_advantages": lambda: po.pama_advantages(torch.ones(2, 3, 4), group=dist.group.WORLD),
    }[name]()


CALLS = ["gram", "pareto_backward", "whiten", "pama_advantages"]


def outlive(rank: int, store: str, seconds: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=seconds),
    )
    for name in CALLS:
        call(name)
    if rank == 1:
        os._exit(0)
    for name in CALLS:
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            call(name)
        assert time.monotonic() - start < 2 * seconds
    os._exit(0)


def test_a_rank_that_dies_leaves_the_other_with_an_error(tmp_path):
    torch.multiprocessing.spawn(outlive, (str(tmp_path / "store"), 20.0), nprocs=2)


# --- pareto_backward ----------------------------------------------------------------------------


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, N))


def rank_losses(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = net(x)
    return [(y[:, i] - i).square().mean() for i in range(N)]


def batches(world: int) -> torch.Tensor:
    return normal(2, world, 4, 3, generator=torch.Generator().manual_seed(1))


def unsharded(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the second micro-batch and `.grad` after both, on one process."""
    net = model()
    for x in batches(world):
        w = po.pareto_backward(rank_losses(net, x.flatten(0, 1)), net.parameters())
    return w, flattened(x.grad for x in net.parameters())


def with_ddp(rank: int) -> Any:
    net = DistributedDataParallel(model())
    for x in batches(dist.get_world_size()):
        w = po.pareto_backward(rank_losses(net, x[rank]), net.parameters())
    return w, flattened(x.grad for x in net.parameters())


def sharded_net(mesh: Any) -> nn.Module:
    net = model()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net[2], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def with_fsdp(rank: int, shape: tuple[int, ...], saved: bool = False) -> Any:
    """Parameters are taken after the forward, when those of the root are not DTensors."""
    names = ("replicate", "shard")[-len(shape) :]
    net = sharded_net(init_device_mesh("cpu", shape, mesh_dim_names=names))
    if saved:
        inner = net[2].forward
        net[2].forward = lambda x: checkpoint(inner, x, use_reentrant=False)
    for x in batches(dist.get_world_size()):
        w = po.pareto_backward(rank_losses(net, x[rank]), net.parameters())
    return w, flattened(x.grad.full_tensor() for x in net.parameters())


def check_backward(results: list[Any]) -> None:
    w, grad = unsharded(len(results))
    for weights, got in results:
        assert torch.equal(weights, results[0][0])
        close(weights, w)
        close(got, grad)


def test_ddp_gives_the_gradient_of_the_whole_batch(ranks):
    check_backward(ranks(with_ddp))


def test_ddp_on_four_ranks_gives_the_gradient_of_the_whole_batch(four_ranks):
    check_backward(four_ranks(with_ddp))


class Losses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = model()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        z = self.layers(x) - y
        return [z[:, i].square().mean() for i in range(N)]


def documented(rank: int, how: str) -> torch.Tensor:
    """The parameters after docs/distributed.md's snippet."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    first, loop = code.split("\n", 1)
    by_ddp, by_fsdp = re.fullmatch(r"model = (.*)  # or (.*), FSDP2 or HSDP", first).groups()
    x = batches(4)
    names: dict[str, Any] = {
        "torch": torch,
        "DistributedDataParallel": DistributedDataParallel,
        "fully_shard": fully_shard,
        "pareto_backward": po.pareto_backward,
        "model": Losses(),
        "loader": [(y, torch.ones(N)) for y in (x.flatten(1, 2) if how == "one" else x[:, rank])],
    }
    if how.endswith("sdp"):
        shape, axes = {"fsdp": ((4,), ["s"]), "hsdp": ((2, 2), ["r", "s"])}[how]
        names["mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=axes)
    if how != "one":
        names["model"] = eval(by_ddp if how == "ddp" else by_fsdp, names)
    exec(loop, names)
    return flattened(full(y.detach()) for y in names["model"].parameters())


@pytest.mark.parametrize("how", ["ddp", "fsdp", "hsdp"])
def test_the_documented_snippet_takes_the_steps_of_one_process(four_ranks, how):
    for got in four_ranks(documented, how):
        close(got, documented(0, "one"))


@pytest.mark.parametrize("saved", [False, True])
def test_fsdp2_gives_the_gradient_of_the_whole_batch(ranks, saved):
    """With activation checkpointing or without."""
    check_backward(ranks(with_fsdp, (2,), saved))


def test_fsdp2_with_empty_shards_gives_the_gradient_of_the_whole_batch(four_ranks):
    """A bias of 5 over four ranks is 2, 2, 1, 0; one of 3 is 1, 1, 1, 0."""
    check_backward(four_ranks(with_fsdp, (4,)))


def test_hsdp_gives_the_gradient_of_the_whole_batch(four_ranks):
    check_backward(four_ranks(with_fsdp, (2, 2)))


def fails_under_fsdp(rank: int) -> str:
    """On a mesh of two of four ranks that gives up after two seconds, rank 1 fails in backward."""
    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=2))
    if rank > 1:
        return ""
    net = sharded_net(DeviceMesh.from_group(group, "cpu"))
    y = net(batches(2)[0, rank])
    start = time.monotonic()
    try:
        po.pareto_backward([Fragile.apply(y[0], rank), y.square().sum()], net.parameters())
    except (ArithmeticError, RuntimeError) as error:
        assert time.monotonic() - start < 30
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_rank_that_fails_in_fsdp2s_backward_leaves_the_other_with_an_error(four_ranks):
    """FSDP2 communicates in backward: the other rank is in the middle of it."""
    ours, theirs, *_ = four_ranks(fails_under_fsdp)
    assert theirs == "ArithmeticError: too much"
    assert ours.startswith("RuntimeError")
    assert "timed out" in ours.lower()


def left_out(rank: int) -> tuple[Any, bool]:
    """Only the last layer is named; the first must not notice."""
    net = sharded_net(init_device_mesh("cpu", (2,)))
    losses = rank_losses(net, batches(2)[0, rank])
    w = po.pareto_backward(losses, net[4].parameters())
    rest = [x for part in (net[0], net[2]) for x in part.parameters()]
    grads = flattened(x.grad.full_tensor() for x in net[4].parameters())
    return (w, grads), all(x.grad is None for x in rest)


def test_fsdp2_leaves_parameters_that_are_not_named_alone(ranks):
    net = model()
    w = po.pareto_backward(rank_losses(net, batches(2)[0].flatten(0, 1)), net[4].parameters())
    grad = flattened(x.grad for x in net[4].parameters())
    for (weights, got), untouched in ranks(left_out):
        close(weights, w)
        close(got, grad)
        assert untouched


class Norm(nn.Module):
    """Its scale's gradient is a sum over tokens, of which each rank holds a part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.tanh(self.up(self.norm(x))))
        return y.clone()  # FSDP2 warns of views


def norm() -> Norm:
    torch.manual_seed(0)
    return Norm()


def norm_losses(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = net(x)
    return [(y[..., i] - i).square().mean() for i in range(N)]


def parallel(net: Norm, mesh: Any) -> Norm:
    """Tensor parallel, and between the two linear maps sequence parallel."""
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(net, mesh, plan)


def tokens(world: int) -> torch.Tensor:
    return normal(world, 2, 8, 4, generator=torch.Generator().manual_seed(3))


def with_tensor_parallel(rank: int, sharded: bool) -> Any:
    """On two ranks, or with data ranks in the first dimension of the mesh, by FSDP2 or plain."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "model"))
    net = parallel(norm(), mesh["model"])
    if sharded:
        fully_shard(net, mesh=mesh["data"])
    group = None if sharded or world == 2 else mesh.get_group("data")
    for _ in range(2):
        losses = norm_losses(net, tokens(world // 2)[rank // 2])
        options = {} if group is None else {"data_group": group}
        w = po.pareto_backward(losses, net.parameters(), **options)
    return w, flattened(full(x.grad) for x in net.parameters())


def check_tensor_parallel(results: list[Any]) -> None:
    net = norm()
    for _ in range(2):
        losses = norm_losses(net, tokens(len(results) // 2).flatten(0, 1))
        w = po.pareto_backward(losses, net.parameters())
    grad = flattened(x.grad for x in net.parameters())
    for weights, got in results:
        assert torch.equal(weights, results[0][0])
        close(weights, w)
        close(got, grad)


def test_tensor_parallel_gives_the_unsharded_gradient(ranks):
    """Gradients that come as open sums (Partial) are summed."""
    check_tensor_parallel(ranks(with_tensor_parallel, False))


def open_sums(rank: int) -> tuple[str, str, torch.Tensor]:
    """Of a norm's scale, each rank's gradient is a sum over its tokens."""
    net = parallel(norm(), init_device_mesh("cpu", (2,)))
    losses = norm_losses(net, tokens(1)[0])
    scale = net.norm.weight
    grads = [torch.autograd.grad(loss, scale, retain_graph=True)[0] for loss in losses]
    said = message(po.gram, grads)
    whole = [x.redistribute(placements=[Replicate()]) for x in grads]
    return str(grads[0].placements), said, po.gram(whole)


def test_open_sums_arise_are_refused_by_name_and_count_once_when_summed(ranks):
    net = norm()
    losses = norm_losses(net, tokens(1)[0])
    want = po.gram([torch.autograd.grad(x, net.norm.weight, retain_graph=True)[0] for x in losses])
    for placements, said, got in ranks(open_sums):
        assert placements == "(Partial(sum),)"
        assert "must be Shard or Replicate, got Partial, P(sum), over dimension 0" in said
        assert "for objective 0, parameter 0" in said
        close(got, want)


@pytest.mark.parametrize("sharded", [False, True])
def test_tensor_parallel_with_data_ranks_gives_the_gradient_of_the_whole_batch(four_ranks, sharded):
    check_tensor_parallel(four_ranks(with_tensor_parallel, sharded))


class Headed(nn.Module):
    """Its output is what all losses are computed from, which it keeps too, and the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = model()[:4]
        self.decoder = nn.Linear(7, 7)  # of all losses, after the features
        self.heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(N))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.z = z = self.trunk(x)
        y = self.decoder(z)
        return z, [(head(y) - i).square().mean() for i, head in enumerate(self.heads)]


def through_features(net: nn.Module, whole: Headed, x: torch.Tensor, named: bool) -> Any:
    """The weights, and all gradients after two batches."""
    for y in x:
        z, losses = net(y)
        if getattr(net, "static_graph", False):
            z = whole.z  # what the losses know, where DistributedDataParallel returns another
        own = [head.parameters() for head in whole.heads] if named else None
        w = po.pareto_backward(losses, features=z, task_parameters=own)
    return w, flattened(full(x.grad) for x in _fsdp2.shards_of(whole.parameters()))


def headed() -> Headed:
    torch.manual_seed(2)
    return Headed()


def features_with(rank: int, how: str, named: bool) -> Any:
    net = headed()
    x = batches(dist.get_world_size())[:, rank]
    if how.startswith("ddp"):
        options = {"ddp": {}, "ddp, bucket views": {"gradient_as_bucket_view": True},
                   "ddp, static graph": {"static_graph": True}}[how]  # fmt: skip
        return through_features(DistributedDataParallel(net, **options), net, x, named)
    shape, names = {"fsdp": ((2,), ("shard",)), "hsdp": ((2, 2), ("replicate", "shard"))}[how]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for part in (net.trunk, *net.heads, net):
        fully_shard(part, mesh=mesh)
    return through_features(net, net, x, named)


def check_features(results: list[Any], named: bool) -> None:
    x = batches(len(results)).flatten(1, 2)
    net = headed()
    w, grad = through_features(net, net, x, named)
    for weights, got in results:
        assert torch.equal(weights, results[0][0])
        close(weights, w)
        close(got, grad)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("how", ["ddp", "ddp, bucket views", "ddp, static graph", "fsdp"])
def test_features_give_the_gradient_of_the_whole_batch(ranks, how, named):
    """With the losses' own heads named as `task_parameters` or not."""
    check_features(ranks(features_with, how, named), named)


def through_a_static_graph(rank: int) -> torch.Tensor:
    """`.grad` of `backward()` on a DistributedDataParallel that met `pareto_backward` first."""
    net = DistributedDataParallel(model(), static_graph=True)
    x = batches(2)[0, rank]
    po.pareto_backward(rank_losses(net, x), net.parameters())
    net.zero_grad()
    sum(rank_losses(net, x)).backward()
    return flattened(x.grad for x in net.parameters())


def test_a_static_graph_is_learned_from_the_first_backward_alone(ranks):
    net = model()
    sum(rank_losses(net, batches(2)[0].flatten(0, 1))).backward()
    for grad in ranks(through_a_static_graph):
        close(grad, flattened(x.grad for x in net.parameters()))


def test_features_under_hsdp_give_the_gradient_of_the_whole_batch(four_ranks):
    check_features(four_ranks(features_with, "hsdp", True), True)


def independent(z: torch.Tensor, i: int) -> torch.Tensor:
    """One of losses whose gradients are independent, so that weights are unique."""
    return (z ** (i + 1) - i).square().sum()


def features_in_parts(rank: int) -> Any:
    """Features that a mesh holds in parts: their Gram matrix is that of the whole."""
    mesh = init_device_mesh("cpu", (2,))
    whole = batches(2)[0].flatten(0, 1).double()
    x = distribute_tensor(whole, mesh, [Shard(0)]).requires_grad_()
    z = torch.tanh(x)
    losses = [independent(z, i).full_tensor() for i in range(N)]
    w = po.pareto_backward(losses, features=z)
    return w, x.grad.full_tensor()


def test_features_may_be_dtensors(ranks):
    x = batches(2)[0].flatten(0, 1).double().requires_grad_()
    z = torch.tanh(x)
    w = po.pareto_backward([independent(z, i) for i in range(N)], features=z)
    for weights, got in ranks(features_in_parts):
        close(weights, w)
        close(got, x.grad)


def lopsided(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The second loss reaches b on rank 1 alone."""
    a, b = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    losses = [a.sum() + b.sum(), a.square().sum() + rank * (b.square().sum() if rank else 0)]
    w = po.pareto_backward(losses, [a, b])
    return w, flattened([a.grad, b.grad])


def test_what_a_loss_reaches_on_one_rank_only_counts_as_zeros_on_the_other(ranks):
    a, b = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    want = po.pareto_backward([a.sum() + b.sum(), a.square().sum() + b.square().sum() / 2], [a, b])
    for w, grad in ranks(lopsided):
        close(w, want)
        close(grad, flattened([a.grad, b.grad]))


def by_chance(rank: int) -> torch.Tensor:
    net = model()
    losses = rank_losses(net, batches(2)[0, rank])
    torch.manual_seed(rank)
    return po.pareto_backward(losses, net.parameters(), weighting=random_weights)


def random_weights(gram: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(gram))


def test_a_weighting_that_draws_has_the_first_rank_draw_for_all(ranks):
    ours, theirs = ranks(by_chance)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.rand(N))
    assert torch.equal(ours, theirs)


def alone(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    net = model()
    w = po.pareto_backward(rank_losses(net, batches(2)[0, rank]), net.parameters(), data_group=None)
    return w, flattened(x.grad for x in net.parameters())


def test_data_group_none_averages_nothing(ranks):
    for rank, (w, grad) in enumerate(ranks(alone)):
        mine, own = alone(rank)
        assert torch.equal(w, mine)
        assert torch.equal(grad, own)


def sparse_head(rank: int) -> str:
    w, table = torch.ones(3, requires_grad=True), nn.EmbeddingBag(5, 3, sparse=True)
    own = table(torch.tensor([[1, 2]]))
    losses = [(w * own).sum(), w.sum()]
    said = message(po.pareto_backward, losses, [w], task_parameters=[table.parameters(), []])
    assert w.grad is None
    assert table.weight.grad is None
    return said


def test_sparse_gradients_that_would_be_averaged_are_refused_by_name(ranks):
    for said in ranks(sparse_head):
        assert said.startswith("TypeError: task_parameters[0][0] must have dense gradients")


def placed_apart(rank: int) -> tuple[torch.Tensor, Any, str]:
    """Of a parameter whose losses give gradients of two placements, and of one with a hook."""
    mesh = init_device_mesh("cpu", (2,))
    x = distribute_tensor(torch.arange(12.0).view(4, 3), mesh, [Shard(0)]).requires_grad_()

    def losses() -> list[torch.Tensor]:
        return [x.square().sum().full_tensor(), x.sum().full_tensor()]

    w = po.pareto_backward(losses(), [x])
    want = w[0].float() * 2 * torch.arange(12.0).view(4, 3) + w[1].float()
    assert torch.equal(x.grad.full_tensor(), want)
    grad = x.grad
    x.register_post_accumulate_grad_hook(torch.Tensor.size)
    said = message(po.pareto_backward, losses(), [x])
    assert x.grad is grad
    return w, grad.placements, said


def test_gradients_of_dtensors_are_placed_as_their_parameter(ranks):
    for _, placements, said in ranks(placed_apart):
        assert placements == (Shard(0),)
        assert said.startswith("ValueError: parameters[0] must have no post-accumulate-grad hook")


def averaged_in_float32(rank: int, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """Of bfloat16 parameters, each of which one rank alone reaches."""
    x, y = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    x.grad_dtype = y.grad_dtype = dtype
    for _ in range(2):
        reached = Widened.apply((x, y)[rank])
        po.pareto_backward([reached.sum(), reached.sum()], [x, y])
    return [x.grad, y.grad]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_gradients_are_averaged_in_the_dtype_that_they_have_on_all_ranks(ranks, dtype):
    want = torch.full((3,), 1.001).to(dtype or torch.bfloat16)
    for grads in ranks(averaged_in_float32, dtype):
        assert all(torch.equal(grad, want) for grad in grads)


# --- the mistakes that the documentation warns of -----------------------------------------------


def twice_through_ddp(rank: int) -> torch.Tensor:
    """Each loss's gradient by a `backward()` of its own on one forward."""
    net = DistributedDataParallel(model())
    rows = []
    for loss in rank_losses(net, batches(2)[0, rank]):
        net.zero_grad()
        loss.backward(retain_graph=True)
        rows.append(flattened(x.grad for x in net.parameters()))
    return torch.stack(rows)


def test_a_second_backward_on_one_ddp_forward_is_not_averaged(ranks):
    ours, theirs = ranks(twice_through_ddp)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[1], theirs[1], rtol=0.1)


def features_that_ddp_returns(rank: int) -> str:
    net = DistributedDataParallel(headed(), find_unused_parameters=True)
    z, losses = net(batches(2)[0, rank])
    said = message(po.pareto_backward, losses, features=z)
    po.pareto_backward(losses, features=net.module.z)
    return said


def test_features_that_ddp_returns_are_others_where_it_finds_unused_parameters(ranks):
    for said in ranks(features_that_ddp_returns):
        assert said.startswith("ValueError: losses must depend on features")


def autograd_through_fsdp(rank: int) -> str:
    net = sharded_net(init_device_mesh("cpu", (2,)))
    parameters = list(net.parameters())
    losses = rank_losses(net, batches(2)[0, rank])
    try:
        torch.autograd.grad(losses[0], parameters)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_autograd_grad_raises_under_fsdp2(ranks):
    for said in ranks(autograd_through_fsdp):
        assert "appears to not have been used in the graph" in said


def without_synchronisation(rank: int) -> str:
    net = sharded_net(init_device_mesh("cpu", (2,)))
    net.set_requires_gradient_sync(False)
    losses = rank_losses(net, batches(2)[0, rank])
    return message(po.pareto_backward, losses, net.parameters())


def test_fsdp2_without_gradient_synchronisation_is_an_error(ranks):
    for said in ranks(without_synchronisation):
        assert said.startswith("ValueError: losses must depend on parameters")
