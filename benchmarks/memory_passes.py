"""Bounds: the bytes that some tensors hold, read, copied or written as fast as torch does."""

from __future__ import annotations

import torch
from timing import Call
from torch import Tensor

BEYOND_CACHES = 256_000_000  # bytes


def passes(*tensors: Tensor) -> tuple[int, Tensor]:
    """A buffer beyond the caches, and how often it must be read to read the tensors' bytes."""
    size = sum(x.numel() * x.element_size() for x in tensors)
    count = -(-size // BEYOND_CACHES)
    return count, torch.ones(-(-size // count // 4), device=tensors[0].device)


def read_pass(*tensors: Tensor) -> Call:
    """A sum over as many bytes as the tensors hold, as fast as torch reads memory."""
    count, buffer = passes(*tensors)
    return lambda: [buffer.sum() for _ in range(count)]


def copy_pass(*tensors: Tensor) -> Call:
    """A copy of as many bytes as the tensors hold: the least that concatenating them costs."""
    count, buffer = passes(*tensors)
    to = torch.empty_like(buffer)
    return lambda: [to.copy_(buffer) for _ in range(count)]


def reads_and_write(out: list[Tensor], *read: Tensor) -> Call:
    """Bytes of `read` read and bytes of `out` written, each as fast as torch does."""
    reading, blank = read_pass(*read), torch.cat([x.flatten() for x in out])

    def bound() -> None:
        reading()
        blank.zero_()

    return bound
