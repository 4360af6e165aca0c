"""Token space under DeepSpeed ZeRO, on a CPU: one loss, one `engine.backward`.

Run by `make test-deepspeed` in an environment of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from strategies import normal
from torch import Tensor, nn

import pama_ops as po

pytest.importorskip("deepspeed", reason="needs DeepSpeed: make test-deepspeed")


def policy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(net: nn.Module, k: slice, group: Any) -> Tensor:
    """Of some sequences of a batch, over the token count of all of it."""
    generator = torch.Generator().manual_seed(1)
    x = normal(6, 8, 4, generator=generator)
    advantages = normal(2, 6, 8, generator=generator)[:, k]
    mask = torch.arange(8) < (1 + torch.arange(6))[:, None]
    count, mask = mask.sum(), mask[k]
    whitened = po.whiten(advantages, mask, group=group)
    step = po.pama_advantages(whitened, mask, reduction="gram", group=group)
    logp = nn.functional.logsigmoid(net(x[k])).squeeze(-1)
    return po.ppo_loss(logp, logp.detach(), step.advantages, mask, normalizer=count).loss


def after_step(net: nn.Module) -> list[Tensor]:
    return [x.detach().clone() for x in net.parameters()]


def under_zero(rank: int, stage: int) -> list[Tensor]:
    """The parameters after a step, with two sequences on one rank and four on the other."""
    import deepspeed

    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = "2"
    # Not its shared-memory collectives, which compile for a minute at first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    net = policy()
    engine, *_ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
        },
    )
    world = torch.distributed.group.WORLD
    loss = loss_of(engine, (slice(0, 2), slice(2, 6))[rank], world)
    engine.backward(2 * loss)  # ZeRO averages over the ranks
    engine.step()
    with deepspeed.zero.GatheredParameters(list(net.parameters()), enabled=stage == 3):
        return after_step(net)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_under_zero_is_that_of_the_whole_batch(
    ranks: Callable[..., list[Any]], stage: int
) -> None:
    net = policy()
    loss_of(net, slice(0, 6), None).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for got in ranks(under_zero, stage):
        for x, y, start in zip(got, net.parameters(), policy().parameters(), strict=True):
            torch.testing.assert_close(x, y.detach())
            assert not torch.equal(x, start)
