"""Process groups in token space: the statistics of two ranks' tokens are those of the batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed

import pama_ops as po


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
