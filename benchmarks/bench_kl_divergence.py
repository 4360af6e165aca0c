"""kl_divergence against the plain-PyTorch formula that trainers run, and a read pass.

pytest benchmarks/bench_kl_divergence.py --benchmark-only
"""

from __future__ import annotations

import pytest
import torch
from conftest import Compare
from memory_passes import read_pass
from token_batches import BATCH, LENGTH, draw, mask_of
from torch import Tensor

import pama_ops as po


def plain_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    k = ref_logp - logp
    return (torch.exp(k) - k - 1) * mask


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
