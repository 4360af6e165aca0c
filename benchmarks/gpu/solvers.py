"""The solver kernels in microseconds, as replays of captured graphs that hold many calls each.

python benchmarks/gpu/solvers.py [--results PATH] [--objectives 2 8]

min_norm at 8 and 32 comes first, and is all there is with --quick.
"""

from __future__ import annotations

import torch
from measure import Bench

import pama_ops as po
from pama_ops import reference

ROWS = (8, 32, 2, 4, 16)
CALLS = 32  # of a graph


def main() -> None:
    bench = Bench(__doc__)
    rows = bench.arguments.objectives or (ROWS[:2] if bench.arguments.quick else ROWS)
    # Conflicting gradients, of which several take part.
    grams = {}
    for n in rows:
        j = torch.randn(n, 64, device=bench.device, dtype=torch.float64) + 0.1
        grams[n] = j @ j.mT
    others = [name for name in reference.WEIGHTINGS if name != "min_norm"]
    for name in ["min_norm"] if bench.arguments.quick else ["min_norm", *others]:
        solve = getattr(po, name)
        for n, gram in grams.items():
            result = bench.time(lambda solve=solve, gram=gram: solve(gram), graph=True, calls=CALLS)
            bench.add({"weighting": name, "n": n, "us": 1e3 * result["ms"], **result})


if __name__ == "__main__":
    main()
