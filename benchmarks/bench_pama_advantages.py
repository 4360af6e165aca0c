"""pama_advantages against its budget, a read pass and the plain-PyTorch formula.

pytest benchmarks/bench_pama_advantages.py --benchmark-only
"""

from __future__ import annotations

import time

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import draw, mask_of
from torch import Tensor

import pama_ops as po

N, BATCH, LENGTH = 4, 64, 512
REDUCTIONS = ["token", "sequence", "gram", "batch"]
BUDGET, FORMULA = "4 read passes + 25 us", "plain PyTorch"


def budget(advantages: Tensor) -> None:
    for _ in range(4):
        advantages.sum()
    end = time.perf_counter() + 25e-6
    while time.perf_counter() < end:
        pass


def plain(advantages: Tensor, mask: Tensor, log_ratio: Tensor, reduction: str) -> Tensor:
    """Noon, active part and weights (preference uniform), one PyTorch operation at a time."""
    a = advantages.clamp(min=0) * mask
    part = torch.where(log_ratio.exp() <= 1.2, a, 0.0)
    if reduction == "token":
        ties = part == part.amin(0)
        weights = ties / ties.sum(0)
    elif reduction == "sequence":
        means = part.sum(-1) / mask.sum(-1)
        ties = means == means.amin(0)
        weights = (ties / ties.sum(0)).unsqueeze(-1)
    elif reduction == "batch":
        means = part.sum((1, 2)) / mask.sum()
        ties = means == means.amin()
        weights = (ties / ties.sum()).view(-1, 1, 1)
    else:
        flat = part.flatten(1)
        weights = po.min_norm(flat @ flat.T).view(-1, 1, 1)
    return (weights * a).sum(0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_on_policy(compare: Compare, device: str, reduction: str) -> None:
    """Before the first update there is no ratio, and nothing is masked."""
    a = draw(N, BATCH, LENGTH, device=device)
    compare(
        f"pama_advantages N={N} B={BATCH} T={LENGTH} {reduction} {device}",
        lambda: po.pama_advantages(a, reduction=reduction),
        {BUDGET: lambda: budget(a), "read pass": read_pass(a)},
        {BUDGET: 1.0},
        rounds=300,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_with_ratio_and_padding(compare: Compare, device: str, reduction: str) -> None:
    a = draw(N, BATCH, LENGTH, device=device)
    log_ratio = 0.2 * draw(BATCH, LENGTH, device=device, seed=1)
    mask = mask_of("padded", (BATCH, LENGTH), device)
    got = po.pama_advantages(a, mask, log_ratio, reduction=reduction).advantages
    torch.testing.assert_close(got, plain(a, mask, log_ratio, reduction), rtol=1e-4, atol=1e-5)
    compare(
        f"pama_advantages N={N} B={BATCH} T={LENGTH} {reduction} ratio, padded {device}",
        lambda: po.pama_advantages(a, mask, log_ratio, reduction=reduction),
        {FORMULA: lambda: plain(a, mask, log_ratio, reduction), "read pass": read_pass(a)},
        rounds=100,
    )
