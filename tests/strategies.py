"""Inputs that hypothesis draws. Their bits are the same on every processor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import exactly
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MASK_DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16]


def normal(
    *shape: int | tuple[int, ...],
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """As torch.randn, whose bits depend on the processor's vectors, from integers and so the same
    everywhere: sums of three uniform ones, with mean 0 and variance 1, within ±3."""
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    x = torch.randint(-(2**50), 2**50, (3, *sizes), generator=generator).sum(0)
    return (x.double() * 2.0**-50).to(dtype).to(device).requires_grad_(requires_grad)


def down_decades(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Factors from 1 down to 10^-count, their logarithms about uniform, and 53 bits long."""
    octaves = torch.randint(0, round(count * 3.33), shape, generator=generator)
    fraction = torch.rand(shape, generator=generator, dtype=torch.float64)
    return exactly.powers_of_two(-octaves - 1) * (1 + fraction)


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
        x = scale * normal((*lead, *self.shape), generator=self.generator)
        if garbage and self.mask is not None:
            x = torch.where(self.mask.cpu() != 0, x, torch.nan)
        return arrange(x.to(self.dtype), self.layout).to(self.device)

    def per_sequence(self, *lead: int) -> Tensor:
        x = normal((*lead, self.sequences), generator=self.generator)
        return arrange(x.to(self.dtype), self.layout).to(self.device)


def long_batch(device: torch.device, ragged: bool) -> Tokens:
    """Sequences beyond the 1024 tokens that a block of the CUDA kernels takes at a time."""
    generator = torch.Generator().manual_seed(0)
    shape = (4501,) if ragged else (2, 2500)
    mask = (torch.rand(shape, generator=generator) < 0.7).to(device)
    cu_seqlens = torch.tensor([0, 4000, 4001, 4501], device=device) if ragged else None
    layout = "contiguous"
    return Tokens(2, mask, shape, cu_seqlens, torch.float32, layout, generator, device)


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


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows: those of the unit matrix, reflected at random planes."""
    q = torch.eye(rows, columns, dtype=torch.float64)
    for _ in range(rows):
        v = normal(columns, generator=generator, dtype=torch.float64)
        q = q - exactly.times(q, v)[:, None] * (v * (2 / exactly.dot(v, v)))
    return q


def _ill_conditioned(n: int, condition: float, generator: torch.Generator) -> Tensor:
    """Gradients whose Gram matrix has this condition number, to a factor of 2."""
    octaves = round(math.log2(condition) / 2)
    spread = exactly.powers_of_two(-torch.arange(n) * octaves // max(n - 1, 1))
    left, right = _orthogonal(n, n, generator), _orthogonal(n, 4 * n, generator)
    return exactly.product(left * spread, right)


def _near_stationary(n: int, distance: float, d: int, generator: torch.Generator) -> Tensor:
    """Gradients with a convex combination of norm `distance`."""
    j = normal(n, d, generator=generator, dtype=torch.float64)
    c = torch.rand(n, generator=generator, dtype=torch.float64)
    rest = normal(d, generator=generator, dtype=torch.float64)
    mean = exactly.times(j.mT, c) / exactly.total(c)
    return j - mean + distance * rest / exactly.norm(rest)


def gradients(family: str, n: int, generator: torch.Generator) -> Tensor:
    """Gradients [n, d] in float64, of one of GRADIENT_FAMILIES."""
    j = normal((n, 4 * n), generator=generator, dtype=torch.float64)
    half = n // 2
    if family == "common":
        j += 1
    elif family == "rank-deficient":
        j = j[:, : max(half, 1)]
    elif family == "rank-deficient common":
        j = j[:, : max(half, 1)] + 1
    elif family == "duplicated":
        j[n - half :] = j[:half]
    elif family == "opposite":
        j[n - half :] = -j[:half]
    elif family == "integers times a basis":
        shares = torch.randint(-3, 4, (n, max(half, 1)), generator=generator).double()
        j = exactly.product(shares, j[: max(half, 1)])
    elif family.startswith("integers"):  # everything that can be degenerate is
        j = torch.randint(-2, 3, (n, max(half, 2)), generator=generator).double()
        if family == "integers of nine decades":
            decades = torch.tensor([1 / 10**k for k in range(10)], dtype=torch.float64)
            j *= decades[torch.randint(0, 10, (n, 1), generator=generator)]
    elif family == "zero rows":
        j[half] = 0
        j[n - 1] = 0
    elif family == "twelve decades":
        j *= down_decades(12, (n, 1), generator)
    elif family.startswith("condition"):
        j = _ill_conditioned(n, float(family.split()[1]), generator)
    elif family.startswith("near-stationary"):
        _, distance, *low = family.split()
        j = _near_stationary(n, float(distance), max(half, 2) if low else 4 * n, generator)
    return j


GRADIENT_FAMILIES = [
    "gaussian",
    "common",
    "rank-deficient",
    "rank-deficient common",
    "duplicated",
    "opposite",
    "zero rows",
    "integers",
    "integers of nine decades",
    "integers times a basis",
    "twelve decades",
    "condition 1e6",
    "condition 1e12",
    "near-stationary 1e-3",
    "near-stationary 1e-6",
    "near-stationary 1e-8",
    "near-stationary 1e-12",
    "near-stationary 1e-6 flat",
    "near-stationary 1e-12 flat",
]


def draw_gradients(family: str, n: int, seed: int = 0) -> Tensor:
    return gradients(family, n, torch.Generator().manual_seed(seed))


def gram_of(j: Tensor) -> Tensor:
    """J Jᵀ, symmetric to the bit."""
    return exactly.gram(j)


def indefinite(n: int, generator: torch.Generator) -> Tensor:
    """A matrix of lengths and cosines that no vectors have together, as a rule."""
    cosines = 2 * torch.rand((n, n), generator=generator, dtype=torch.float64) - 1
    norm = 0.1 + torch.rand(n, generator=generator, dtype=torch.float64)
    g = (cosines / 2 + cosines.mT / 2) * norm * norm[:, None]
    return g.diagonal_scatter(norm**2)


def matrix_on(backend, *rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device=backend.device)


@st.composite
def gram_matrices(
    draw: st.DrawFn,
    device: torch.device,
    *,
    families: list[str] = GRADIENT_FAMILIES,
    dtypes: list[torch.dtype] = DTYPES,
    max_rows: int = 10,
) -> Tensor:
    """G = J Jᵀ of gradients of one family, rounded to a dtype (and so perhaps indefinite).

    The gradients are rounded first, to float64 or less, so that those which depend on each other do
    so but for that.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = draw(st.integers(1, max_rows))
    j = gradients(draw(st.sampled_from(families)), n, generator)
    j = j.to(draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))).double()
    dtype = draw(st.sampled_from(dtypes))
    # Norms are about sqrt(4 n): the factor keeps their squares within float16. Squares below its
    # normal numbers keep too few bits for the matrix to be within rounding of a Gram matrix.
    j /= 8
    j[exactly.dot(j, j) < torch.finfo(dtype).smallest_normal] = 0
    gram = gram_of(j).to(dtype)
    return arrange(gram, draw(st.sampled_from(["contiguous", "permuted", "sliced"]))).to(device)


@st.composite
def preferences(draw: st.DrawFn, n: int) -> list[float]:
    """Nonnegative numbers, n of them, some or all but one of them 0."""
    if draw(st.integers(0, 3)) == 0:
        lone = draw(st.integers(0, n - 1))
        return [float(i == lone) for i in range(n)]
    numbers = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
    p = draw(st.lists(numbers, min_size=n, max_size=n))
    return p if any(p) else [1.0] * n


# --- gradients over the same parameters ---------------------------------------------------------

SHAPES = [(), (0,), (3, 0), (1,), (7,), (16,), (3, 5), (2, 3, 4, 5), (1023,), (1025,), (33, 65)]
LAYOUTS = ["contiguous", "odd", "transposed", "channels last", "sliced", "mixed"]


def lay(x: Tensor, layout: str) -> Tensor:
    """`x` with the same values in another layout, for any number of dimensions."""
    if layout == "odd":  # one element past where the allocator aligns to
        return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)
    if layout == "transposed":
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if layout == "channels last" and x.dim() == 4:
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced" and x.dim() > 0:
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x.clone()


def tiny_gradients(backend) -> list[list[Tensor]]:
    """Three objectives, hundreds or thousands of parameters, each too small for a register."""
    count = 2000 if backend.name == "cpu" else 300
    generator = torch.Generator().manual_seed(0)
    return [
        [normal(p % 7, generator=generator).to(backend.device) for p in range(count)]
        for _ in range(3)
    ]


@st.composite
def gradient_lists(
    draw: st.DrawFn,
    device: torch.device,
    *,
    max_objectives: int = 18,
    dtypes: list[torch.dtype] = DTYPES,
    missing: bool = True,
) -> list[list[Tensor | None]]:
    """n lists of P gradients: assorted shapes, dtypes and layouts; constant, normal or spread."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = draw(st.one_of(st.integers(1, 9), st.integers(1, max_objectives)))
    rows: list[list[Tensor | None]] = [[] for _ in range(n)]
    for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5)):
        dtype, layout = draw(st.sampled_from(dtypes)), draw(st.sampled_from(LAYOUTS))
        kind = draw(st.sampled_from(["normal", "constant", "decades"]))
        for i, row in enumerate(rows):
            x = normal(shape, generator=generator, dtype=torch.float64)
            if kind == "constant":
                x = torch.full(shape, float(normal(generator=generator)) / 3).double()
            elif kind == "decades":
                x = x * down_decades(4, shape, generator)
            of = LAYOUTS[i % 3] if layout == "mixed" else layout
            absent = missing and draw(st.sampled_from([False] * 7 + [True]))
            row.append(None if absent else lay(x.to(dtype), of).to(device))
    if all(x is None for row in rows for x in row):
        rows[0][0] = torch.ones((), device=device)
    return rows
