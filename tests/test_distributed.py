"""Process groups: two processes over gloo, started once and handed functions of this module."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

import pama_ops as po

WORLD = 2
# Of one task, start included; a collective that not all ranks reach would wait for ever.
TIMEOUT = 120


def serve(rank: int, store: str, tasks: Any, results: Any) -> None:
    """A rank's life: join the group, run what comes, answer with its result or its traceback."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD
    )
    while (task := tasks.get()) is not None:
        function, arguments = task
        try:
            results.put((True, function(rank, *arguments)))
        except Exception:
            results.put((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Calls `function(rank, *arguments)` on every rank and returns their results in order."""
    store = Path(tmp_path_factory.mktemp("gloo")) / "store"
    context = torch.multiprocessing.get_context("spawn")
    tasks = [context.Queue() for _ in range(WORLD)]
    results = [context.Queue() for _ in range(WORLD)]
    processes = [
        context.Process(target=serve, args=(rank, str(store), tasks[rank], results[rank]))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for q in tasks:
            q.put((function, arguments))
        answers = []
        for rank, q in enumerate(results):
            try:
                good, answer = q.get(timeout=TIMEOUT)
            except queue.Empty:
                pytest.fail(f"rank {rank} did not answer within {TIMEOUT} s")
            assert good, f"on rank {rank}:\n{answer}"
            answers.append(answer)
        return answers

    yield run
    for q in tasks:
        q.put(None)
    for process in processes:
        process.join(timeout=30)
        if process.is_alive():
            process.terminate()


def shard(rank: int, first: int, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Rank 0 holds the first entries of a dimension, rank 1 the others."""
    return x.narrow(dim, 0, first) if rank == 0 else x.narrow(dim, first, x.shape[dim] - first)


# --- whiten -------------------------------------------------------------------------------------


def whiten_shard(rank: int, first: int, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    group = torch.distributed.group.WORLD
    return po.whiten(shard(rank, first, x, 1), shard(rank, first, mask, 0), group=group)


@pytest.mark.parametrize("first", [2, 5, 0])
def test_whiten_over_ranks_is_that_of_the_whole_batch(ranks, first):
    """Also where a rank holds no sequence."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2, 5, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 40, generator=generator) < 0.6
    got = torch.cat(ranks(whiten_shard, first, x, mask), 1)
    torch.testing.assert_close(got, po.whiten(x, mask), rtol=1e-13, atol=1e-13)


def whiten_twin(rank: int, x: torch.Tensor) -> torch.Tensor:
    return po.whiten(x, group=torch.distributed.group.WORLD)


def test_whiten_gives_ranks_the_same_bits(ranks):
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1))
    ours, theirs = ranks(whiten_twin, x)
    assert torch.equal(ours, theirs)


# --- pama_advantages ----------------------------------------------------------------------------


def pama_shard(
    rank: int, first: int, x: torch.Tensor, mask: torch.Tensor, reduction: str
) -> tuple[torch.Tensor, ...]:
    x, mask = shard(rank, first, x, 1), shard(rank, first, mask, 0)
    group = torch.distributed.group.WORLD
    step = po.pama_advantages(x, mask, reduction=reduction, group=group)
    return step.advantages, step.weights, step.active


@pytest.mark.parametrize("reduction", ["token", "sequence", "gram", "batch"])
@pytest.mark.parametrize("first", [2, 0])
def test_pama_over_ranks_is_that_of_the_whole_batch(ranks, first, reduction):
    """An objective that is active on one rank alone is active on all, and in one problem."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 40, generator=generator, dtype=torch.float64)
    x[1, :4] = 0
    mask = torch.rand(5, 40, generator=generator) < 0.6
    whole = po.pama_advantages(x, mask, reduction=reduction)
    parts = ranks(pama_shard, first, x, mask, reduction)
    got = torch.cat([advantages for advantages, _, _ in parts])
    torch.testing.assert_close(got, whole.advantages, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(active, whole.active) for _, _, active in parts)
    if reduction in ("gram", "batch"):
        assert torch.equal(parts[0][1], parts[1][1])
