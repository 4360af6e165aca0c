"""Losses, whitening and KL estimates against the plain-PyTorch formulas that trainers run.

    pytest benchmarks/bench_losses.py --benchmark-only

Each op is also measured against a read pass of the bytes it must read and write.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare, read_pass
from torch import Tensor

import pama_ops as po

OBJECTIVES, BATCH, LENGTH = 4, 64, 1024
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def mask_of(kind: str, shape: tuple[int, int], device: str) -> Tensor:
    """Every token, or responses of half to full length followed by padding."""
    batch, length = shape
    generator = torch.Generator().manual_seed(9)
    ends = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    inside = torch.arange(length) < ends
    return (torch.ones_like(inside) if kind == "full" else inside).to(device)


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


@pytest.mark.parametrize("device", DEVICES)
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


def plain_value_loss(values: Tensor, returns: Tensor, old_values: Tensor, mask: Tensor) -> Tensor:
    clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    worst = torch.max(torch.square(values - returns), torch.square(clipped - returns))
    return 0.5 * (worst * mask).sum((-2, -1)) / mask.sum()


@pytest.mark.parametrize("device", DEVICES)
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


def plain_whiten(x: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum()
    mean = (x * mask).sum((-2, -1), keepdim=True) / count
    variance = ((x - mean) ** 2 * mask).sum((-2, -1), keepdim=True) / (count - 1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["full", "padded"])
def test_whiten(compare: Compare, device: str, kind: str) -> None:
    x, mask = draw(OBJECTIVES, BATCH, LENGTH, device=device), mask_of(kind, (BATCH, LENGTH), device)
    bounds = {
        "plain PyTorch": lambda: plain_whiten(x, mask),
        "read pass": read_pass(x, mask, x, mask, x),
    }
    case = f"whiten {OBJECTIVES}x{BATCH}x{LENGTH} {kind} {device}"
    compare(case, lambda: po.whiten(x, mask), bounds)


def plain_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    k = ref_logp - logp
    return (torch.exp(k) - k - 1) * mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["full", "padded"])
def test_kl_divergence(compare: Compare, device: str, kind: str) -> None:
    shape = (BATCH, LENGTH)
    logp, ref_logp = (-2 + 0.1 * draw(*shape, device=device, seed=s) for s in (0, 1))
    mask = mask_of(kind, shape, device)
    bounds = {
        "plain PyTorch": lambda: plain_kl(logp, ref_logp, mask),
        "read pass": read_pass(logp, ref_logp, mask, logp),
    }
    case = f"kl_divergence {BATCH}x{LENGTH} {kind} {device}"
    compare(case, lambda: po.kl_divergence(logp, ref_logp, mask), bounds)
