"""GAE against the loop over tokens that trainers run, and against a read pass.

pytest benchmarks/bench_gae.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import BATCH, LENGTH, draw, mask_of
from torch import Tensor

import pama_ops as po

GAMMA, LAM = 1.0, 0.95
BATCHED, SEPARATE = "loop over tokens, batched over N", "loop over tokens, one per objective"


def loop(rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as PPO trainers write it: a Python loop over tokens, right to left."""
    length, last, reversed_advantages = rewards.shape[-1], 0.0, []
    for t in reversed(range(length)):
        next_values = values[..., t + 1] if t < length - 1 else 0.0
        delta = rewards[..., t] + GAMMA * next_values - values[..., t]
        last = delta + GAMMA * LAM * last
        reversed_advantages.append(last)
    advantages = torch.stack(reversed_advantages[::-1], dim=-1)
    return advantages, advantages + values


@pytest.mark.parametrize("layout", ["[N, B, T]", "[B, T, N] permuted"])
@pytest.mark.parametrize("masked", [False, True])
def test_gae(compare: Compare, device: str, layout: str, masked: bool) -> None:
    n = 3
    rewards, values = (draw(n, BATCH, LENGTH, device=device, seed=seed) for seed in (0, 1))
    if layout != "[N, B, T]":
        rewards, values = (
            x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in (rewards, values)
        )
    mask = mask_of("padded", (BATCH, LENGTH), device) if masked else None

    plain = layout == "[N, B, T]" and not masked
    if plain:
        for got, want in zip(po.gae(rewards, values, mask), loop(rewards, values), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    peers = {
        BATCHED: lambda: loop(rewards, values),
        SEPARATE: lambda: [loop(r, v) for r, v in zip(rewards, values, strict=True)],
    }
    compare(
        f"gae N={n} B={BATCH} T={LENGTH} {layout}{' padded' if masked else ''} {device}",
        lambda: po.gae(rewards, values, mask, gamma=GAMMA, lam=LAM),
        {"read pass": read_pass(rewards, values), **(peers if plain else {})},
        {BATCHED: 1 / 100, SEPARATE: 1 / 250},
        rounds=30,
    )
