"""Inputs that hypothesis draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MASK_DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16]


def arrange(x: Tensor, layout: str) -> Tensor:
    """`x` with the same values in other strides."""
    if layout == "permuted":  # tokens outermost in memory for 1-D and 2-D, [B, T, N] for 3-D
        order = (1, 2, 0) if x.dim() == 3 else tuple(reversed(range(x.dim())))
        back = (2, 0, 1) if x.dim() == 3 else order
        return x.permute(order).contiguous().permute(back)
    if layout == "sliced":  # every second token of a longer array, one past its start
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


@dataclass
class Tokens:
    """Shapes and masks of a batch; arrays drawn from one seed in assorted dtypes and layouts."""

    objectives: int
    mask: Tensor | None  # [B, T] or [total]
    shape: tuple[int, ...]  # [B, T] or [total]
    cu_seqlens: Tensor | None
    dtype: torch.dtype
    layout: str
    generator: torch.Generator
    device: torch.device

    @property
    def sequences(self) -> int:
        return self.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    def values(self, *lead: int, scale: float = 1.0, garbage: bool = True) -> Tensor:
        """Normal draws [*lead, *shape]; NaN at masked positions, which nobody may read."""
        x = scale * torch.randn((*lead, *self.shape), generator=self.generator)
        if garbage and self.mask is not None:
            x = torch.where(self.mask.cpu() != 0, x, torch.nan)
        return arrange(x.to(self.dtype), self.layout).to(self.device)

    def per_sequence(self, *lead: int) -> Tensor:
        x = torch.randn((*lead, self.sequences), generator=self.generator)
        return arrange(x.to(self.dtype), self.layout).to(self.device)


@st.composite
def tokens(
    draw: st.DrawFn,
    device: torch.device,
    *,
    max_objectives: int = 6,
    max_length: int = 300,
    dtypes: list[torch.dtype] = DTYPES,
) -> Tokens:
    """Batches with masks left, right, in the middle, full and empty; padded or ragged."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    objectives = draw(st.integers(1, max_objectives))
    batch = draw(st.integers(0, 5))
    # Lengths on both sides of the kernels' tiles (32, 128 and 256 tokens).
    length = draw(st.one_of(st.integers(0, 40), st.sampled_from([127, 128, 129, 256, 257]),
                            st.integers(0, max_length)))  # fmt: skip
    cu_seqlens, shape = None, (batch, length)
    if draw(st.booleans()):
        lengths = torch.randint(0, length + 1, (batch,), generator=generator)
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        cu_seqlens = cu_seqlens.to(draw(st.sampled_from([torch.int32, torch.int64]))).to(device)
        shape = (int(lengths.sum()),)
    mask = None
    kind = draw(st.sampled_from(["none", "ones", "right", "left", "scattered", "zeros"]))
    if kind != "none":
        mask = torch.ones(shape)
        if kind == "scattered":
            mask = (torch.rand(shape, generator=generator) < draw(st.floats(0.05, 0.95))).float()
        elif kind == "zeros":
            mask = torch.zeros(shape)
        elif kind in ("left", "right") and cu_seqlens is None:
            start = torch.randint(0, length + 1, (batch, 1), generator=generator)
            position = torch.arange(length)
            mask = (position >= start if kind == "left" else position < start).float()
        mask = mask.to(draw(st.sampled_from(MASK_DTYPES))).to(device)
        mask = arrange(mask, draw(st.sampled_from(["contiguous", "permuted", "sliced"])))
    return Tokens(
        objectives,
        mask,
        shape,
        cu_seqlens,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(["contiguous", "permuted", "sliced"])),
        generator,
        device,
    )
