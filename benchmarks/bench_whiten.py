"""whiten against the plain-PyTorch formula that trainers run, and a read pass.

pytest benchmarks/bench_whiten.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import BATCH, LENGTH, OBJECTIVES, draw, mask_of
from torch import Tensor

import pama_ops as po


def plain_whiten(x: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum()
    mean = (x * mask).sum((-2, -1), keepdim=True) / count
    variance = ((x - mean) ** 2 * mask).sum((-2, -1), keepdim=True) / (count - 1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


@pytest.mark.parametrize("kind", ["full", "padded"])
def test_whiten(compare: Compare, device: str, kind: str) -> None:
    x, mask = draw(OBJECTIVES, BATCH, LENGTH, device=device), mask_of(kind, (BATCH, LENGTH), device)
    bounds = {
        "plain PyTorch": lambda: plain_whiten(x, mask),
        "read pass": read_pass(x, mask, x, mask, x),
    }
    case = f"whiten {OBJECTIVES}x{BATCH}x{LENGTH} {kind} {device}"
    compare(case, lambda: po.whiten(x, mask), bounds)
