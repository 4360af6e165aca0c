"""The gradients that the suites of gradient space run on.

All combinations of n, dtype, shapes, size and threads would take hours, and the largest of them
tens of GB. So one thing varies at a time, about n = 4 float32 gradients of GPT-2's shapes on two
threads that fill 240 MB, beyond every cache; but n goes with each dtype that a budget is set for.
No case takes 8 GB, peers' copies and all: the largest are GPT-2 itself at n = 2 and one tensor of
1e8 elements at n = 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from model_shapes import MODELS, Shapes, narrowed_gpt2, size
from torch import Tensor

ROWS = [2, 4, 8, 16, 32]
BYTES = 240_000_000
BUDGETED = 160_000_000  # bytes: what fits in caches is bound otherwise

SHAPES = {
    "GPT-2": narrowed_gpt2,
    "one tensor": lambda d: [(d,)],
    "10,000 tensors": lambda d: [(d // 10_000,)] * 10_000,
}


@dataclass(frozen=True)
class Case:
    n: int
    dtype: torch.dtype = torch.float32
    threads: int = 2
    kind: str = "GPT-2"
    d: int = 0  # 0: what fills BYTES

    @property
    def shapes(self) -> Shapes:
        return SHAPES[self.kind](self.d or BYTES // self.n // self.dtype.itemsize)

    @property
    def budgeted(self) -> bool:
        """Whether the budgets hold for it: gradients of a size, not a crowd of small ones."""
        bytes_read = self.n * size(self.shapes) * self.dtype.itemsize
        return self.threads == 2 and self.kind != "10,000 tensors" and bytes_read >= BUDGETED

    def __str__(self) -> str:
        dtype, threads = str(self.dtype).removeprefix("torch."), f"{self.threads} threads"
        d = f"{self.kind}, d = {size(self.shapes):.3g}"
        return f"n = {self.n}, {dtype}, {d}, {threads.removesuffix('s' * (self.threads == 1))}"

    def draw(self, device: str) -> list[list[Tensor]]:
        return [
            [torch.randn(s, device=device).to(self.dtype) for s in self.shapes]
            for _ in range(self.n)
        ]


BESIDE_PEERS = [
    *(Case(n) for n in ROWS),
    *(Case(4, d=d) for d in (10**4, 10**5, 10**6, 10**7)),
    Case(4, kind="one tensor", d=10**8),
    Case(2, d=size(MODELS["GPT-2 125M"])),
    Case(4, kind="10,000 tensors", d=15 * 10**6),
    Case(4, kind="10,000 tensors", d=10**6),
]
