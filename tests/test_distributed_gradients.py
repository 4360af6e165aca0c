"""Process groups in gradient space: what ranks compute together is the unsharded answer."""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import pama_ops as po

N = 3
SHAPES = [(5, 4), (3,), (1, 6), (7, 2)]


def gradients(seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
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
    except (TypeError, ValueError) as error:
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


# --- disagreement -------------------------------------------------------------------------------


def disagreements(rank: int) -> dict[str, str]:
    """Calls that must fail on both ranks; the group must serve on after each."""
    world = dist.group.WORLD
    mesh = init_device_mesh("cpu", (2,))
    grads = gradients()
    shards: list[list[Any]] = [
        [distribute_tensor(x, mesh, [Shard(0)]) for x in row] for row in grads
    ]
    partial = [DTensor.from_local(grads[0][0], mesh, [Partial()])] * 2
    w = torch.ones(3, requires_grad=True)
    losses = [w.sum(), w.square().sum()]
    said = {
        "objectives": message(po.gram, grads[: 2 + rank], group=world),
        "tensors": message(po.gram, [row[rank:] for row in grads], group=world),
        "one refuses": message(po.gram, grads if rank == 0 else [], group=world),
        "mixed on one": message(po.gram, shards if rank == 0 else mixed_rows(shards, grads)),
        "mixed": message(po.gram, mixed_rows(shards, grads)),
        "partial": message(po.gram, partial),
        "losses": message(po.pareto_backward, losses[: 1 + rank], [w]),
        "parameters": message(po.pareto_backward, losses, [w] if rank == 0 else []),
    }
    assert w.grad is None
    assert bool(po.gram(grads, group=world).isfinite().all())
    return said


def mixed_rows(shards: list[list[Any]], grads: list[list[Any]]) -> list[list[Any]]:
    return [[*x[:-1], y[-1]] for x, y in zip(shards, grads, strict=True)]


def test_a_disagreement_is_an_error_on_every_rank_that_names_it(ranks):
    ours, theirs = ranks(disagreements)
    for said in (ours, theirs):
        assert "number of objectives, got 2 on ranks [0], 3 on ranks [1]" in said["objectives"]
        assert "number of tensors of an objective, got 4 on ranks [0], 3 on" in said["tensors"]
        assert "DTensors all or none" in said["mixed"]
        assert "Partial, P(sum), over dimension 0 of the mesh" in said["partial"]
        assert "number of losses, got 1 on ranks [0], 2 on ranks [1]" in said["losses"]
    for case in ("one refuses", "mixed on one", "parameters"):
        assert "ranks [1] refuse" in ours[case]
    assert "grads must hold at least one objective" in theirs["one refuses"]
    assert "DTensors all or none" in theirs["mixed on one"]
    assert "parameters must hold" in theirs["parameters"]


def outlive(rank: int, store: str, seconds: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=seconds),
    )
    group = dist.group.WORLD
    po.gram(gradients(), group=group)
    if rank == 1:
        os._exit(0)
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        po.gram(gradients(), group=group)
    assert time.monotonic() - start < 2 * seconds
    os._exit(0)


def test_a_rank_that_dies_leaves_the_other_with_an_error(tmp_path):
    torch.multiprocessing.spawn(outlive, (str(tmp_path / "store"), 5.0), nprocs=2)


# --- pareto_backward ----------------------------------------------------------------------------


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, N))


def rank_losses(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = net(x)
    return [(y[:, i] - i).square().mean() for i in range(N)]


def batches(world: int) -> torch.Tensor:
    return torch.randn(2, world, 4, 3, generator=torch.Generator().manual_seed(1))


def unsharded(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the second micro-batch and `.grad` after both, on one process."""
    net = model()
    for x in batches(world):
        w = po.pareto_backward(rank_losses(net, x.flatten(0, 1)), net.parameters())
    return w, flattened(x.grad for x in net.parameters())


def with_ddp(rank: int) -> Any:
    net = DistributedDataParallel(model())
    for x in batches(2):
        w = po.pareto_backward(rank_losses(net, x[rank]), net.parameters())
    return w, flattened(x.grad for x in net.parameters())


def sharded_net(mesh: Any) -> nn.Module:
    net = model()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net[2], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def with_fsdp(rank: int, shape: tuple[int, ...]) -> Any:
    """Parameters are taken after the forward, when those of the root are not DTensors."""
    names = ("replicate", "shard")[-len(shape) :]
    net = sharded_net(init_device_mesh("cpu", shape, mesh_dim_names=names))
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


def test_fsdp2_gives_the_gradient_of_the_whole_batch(ranks):
    check_backward(ranks(with_fsdp, (2,)))


def test_hsdp_gives_the_gradient_of_the_whole_batch(four_ranks):
    check_backward(four_ranks(with_fsdp, (2, 2)))


def through_features(trunk: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights, and the gradients of the trunk and of the losses' own heads."""
    torch.manual_seed(1)
    heads = [nn.Linear(7, 1) for _ in range(N)]
    z = trunk(x)
    losses = [(head(z) - i).square().mean() for i, head in enumerate(heads)]
    own = [head.parameters() for head in heads]
    w = po.pareto_backward(losses, features=z, task_parameters=own)
    return w, flattened(x.grad for m in (trunk, *heads) for x in m.parameters())


def features_with_ddp(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return through_features(DistributedDataParallel(model()[:4]), batches(2)[0, rank])


def test_features_under_ddp_give_the_gradient_of_the_whole_batch(ranks):
    w, grad = through_features(model()[:4], batches(2)[0].flatten(0, 1))
    results = ranks(features_with_ddp)
    assert torch.equal(results[0][0], results[1][0])
    for weights, got in results:
        close(weights, w)
        close(got, grad)


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


def alone(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    net = model()
    w = po.pareto_backward(rank_losses(net, batches(2)[0, rank]), net.parameters(), data_group=None)
    return w, flattened(x.grad for x in net.parameters())


def test_data_group_none_averages_nothing(ranks):
    for rank, (w, grad) in enumerate(ranks(alone)):
        mine, own = alone(rank)
        assert torch.equal(w, mine)
        assert torch.equal(grad, own)


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
