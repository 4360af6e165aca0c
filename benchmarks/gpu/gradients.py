"""gram, combine and the whole step as shares of the measured copy bandwidth.

    python benchmarks/gpu/gradients.py [--results PATH]

Bytes that must move (n rows read; one written by combine) over the time taken, as a share of the
bytes read and written by a copy per second. One tensor of 1e8 elements and GPT-2's list come first,
for every n and dtype, and are all there is with --quick; then other lengths, then larger models.
"""

from __future__ import annotations

import torch
from measure import Bench, memory
from model_shapes import MODELS, Shapes, size

import pama_ops as po

ROWS = (2, 4, 8, 16, 32)
FIRST = ("100000000", "GPT-2 125M")
LENGTHS = (10**6, 10**7, 10**9, 4 * 10**9)
DRY = (5000,)
DTYPES = (torch.float32, torch.bfloat16)


def measure(bench: Bench, copy: float, name: str, shapes: Shapes, n: int, dtype: torch.dtype):
    one = size(shapes) * dtype.itemsize
    row = {"shapes": name, "d": size(shapes), "n": n, "dtype": str(dtype).removeprefix("torch.")}
    if (n + 1) * one > memory():
        bench.add({**row, "skipped": f"takes {(n + 1) * one / 1e9:.0f} GB"})
        return
    grads = bench.draw(n, shapes, dtype)
    out = [torch.empty_like(x) for x in grads[0]]
    w = po.min_norm(po.gram(grads))
    ops = {
        "gram": (lambda: po.gram(grads), n * one),
        "combine": (lambda: po.combine(grads, w, out=out), (n + 1) * one),
        "step": (
            lambda: po.combine(grads, po.min_norm(po.gram(grads)), out=out),
            (2 * n + 1) * one,
        ),
    }
    for op, (call, moved) in ops.items():
        # As many bytes a replay as take a millisecond, for its start takes some microseconds.
        calls = max(1, min(16, int(copy * 1e-3 / moved)))
        result = bench.time(call, graph=True, calls=calls)
        share = moved / (result["ms"] / 1e3) / copy
        bench.add({**row, "op": op, **result, "share of copy": share})


def main() -> None:
    bench = Bench(__doc__)
    copy = bench.copy_rate()
    first = [*map(str, DRY)] if bench.arguments.dry else [*FIRST]
    rest = [*map(str, LENGTHS), *(name for name in MODELS if name not in FIRST)]
    everything = first if bench.arguments.quick or bench.arguments.dry else first + rest
    for name in bench.arguments.models or everything:
        shapes = MODELS[name] if name in MODELS else [(int(name),)]
        for n in bench.arguments.objectives or ROWS:
            for dtype in DTYPES:
                measure(bench, copy, "one tensor" if name.isdigit() else name, shapes, n, dtype)


if __name__ == "__main__":
    main()
