"""value_loss, forward and backward, against the plain-PyTorch formula and a read pass.

pytest benchmarks/bench_value_loss.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import BATCH, LENGTH, OBJECTIVES, draw, mask_of
from torch import Tensor

import pama_ops as po


def plain_value_loss(values: Tensor, returns: Tensor, old_values: Tensor, mask: Tensor) -> Tensor:
    clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    worst = torch.max(torch.square(values - returns), torch.square(clipped - returns))
    return 0.5 * (worst * mask).sum((-2, -1)) / mask.sum()


@pytest.mark.parametrize("kind", ["full", "padded"])
def test_value_loss_forward_and_backward(compare: Compare, device: str, kind: str) -> None:
    shape = (OBJECTIVES, BATCH, LENGTH)
    values = draw(*shape, device=device).requires_grad_()
    returns, old_values = (draw(*shape, device=device, seed=s) for s in (1, 2))
    mask = mask_of(kind, (BATCH, LENGTH), device)

    def ours() -> None:
        values.grad = None
        po.value_loss(values, returns, mask, old_values=old_values).sum().backward()

    def plain() -> None:
        values.grad = None
        plain_value_loss(values, returns, old_values, mask).sum().backward()

    inputs = [values.detach(), returns, old_values, mask]
    bounds = {"plain PyTorch": plain, "read pass": read_pass(*inputs, *inputs, values.detach())}
    compare(f"value_loss {OBJECTIVES}x{BATCH}x{LENGTH} {kind} {device}", ours, bounds)
