"""ppo_loss, forward and backward, against the plain-PyTorch formula and a read pass.

pytest benchmarks/bench_ppo_loss.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import BATCH, LENGTH, draw, mask_of
from torch import Tensor

import pama_ops as po


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()


def plain_ppo_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, ref_logp: Tensor | None = None
) -> Tensor:
    """Loss and statistics, one PyTorch operation at a time."""
    difference = logp - old_logp
    ratio = torch.exp(difference)
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)
    loss = torch.max(plain, clipped)
    if ref_logp is not None:
        k = ref_logp - logp
        loss = loss + 0.05 * (torch.exp(k) - k - 1)
    with torch.no_grad():
        masked_mean((clipped > plain).float(), mask)
        masked_mean(ratio - 1 - difference, mask)
        masked_mean(ratio, mask)
    return masked_mean(loss, mask)


@pytest.mark.parametrize(
    ("shape", "kind", "with_reference"),
    [
        ((BATCH, LENGTH), "full", False),
        ((BATCH, LENGTH), "padded", False),
        ((BATCH, LENGTH), "padded", True),
        ((512, 4096), "padded", False),
    ],
)
def test_ppo_loss_forward_and_backward(
    compare: Compare, device: str, shape: tuple[int, int], kind: str, with_reference: bool
) -> None:
    logp = (-2 + 0.1 * draw(*shape, device=device)).requires_grad_()
    old_logp = -2 + 0.1 * draw(*shape, device=device, seed=1)
    advantages, mask = draw(*shape, device=device, seed=2), mask_of(kind, shape, device)
    ref_logp = -2 + 0.1 * draw(*shape, device=device, seed=3) if with_reference else None

    def ours() -> None:
        out = po.ppo_loss(
            logp, old_logp, advantages, mask, ref_logp=ref_logp, kl_coef=0.05 * with_reference
        )
        logp.grad = None
        out.loss.backward()

    def plain() -> None:
        logp.grad = None
        plain_ppo_loss(logp, old_logp, advantages, mask, ref_logp).backward()

    inputs = [logp.detach(), old_logp, advantages, mask, *([ref_logp] if with_reference else [])]
    bounds = {"plain PyTorch": plain, "read pass": read_pass(*inputs, *inputs, logp.detach())}
    case = f"ppo_loss{' + kl' * with_reference} {shape[0]}x{shape[1]} {kind} {device}"
    compare(case, ours, bounds, rounds=60 if shape[0] == BATCH else 20)
