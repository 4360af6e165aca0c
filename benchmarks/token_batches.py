"""The batches that the suites of token space run on."""

from __future__ import annotations

import torch
from torch import Tensor

OBJECTIVES, BATCH, LENGTH = 4, 64, 1024


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def mask_of(kind: str, shape: tuple[int, int], device: str) -> Tensor:
    """Every token, or responses of half to full length followed by padding."""
    batch, length = shape
    generator = torch.Generator().manual_seed(9)
    ends = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    inside = torch.arange(length) < ends
    return (torch.ones_like(inside) if kind == "full" else inside).to(device)
