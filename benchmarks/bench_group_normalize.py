"""group_normalize against the plain-PyTorch formula that trainers run, and a read pass.

pytest benchmarks/bench_group_normalize.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import OBJECTIVES, draw
from torch import Tensor

import pama_ops as po

GROUP = 8  # completions of a prompt


def plain_group_normalize(rewards: Tensor) -> Tensor:
    """As GRPO trainers write it: no reward of theirs is missing."""
    groups = rewards.unflatten(-1, (-1, GROUP))
    mean, std = groups.mean(-1, keepdim=True), groups.std(-1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten(-2)


@pytest.mark.parametrize("batch", [64, 1024, 65536])
def test_group_normalize(compare: Compare, device: str, batch: int) -> None:
    rewards = draw(OBJECTIVES, batch, device=device)
    torch.testing.assert_close(
        po.group_normalize(rewards, GROUP), plain_group_normalize(rewards), rtol=1e-4, atol=1e-4
    )
    bounds = {
        "plain PyTorch": lambda: plain_group_normalize(rewards),
        "read pass": read_pass(rewards, rewards),
    }
    case = f"group_normalize {OBJECTIVES}x{batch} groups of {GROUP} {device}"
    compare(case, lambda: po.group_normalize(rewards, GROUP), bounds, {"plain PyTorch": 1.0})
