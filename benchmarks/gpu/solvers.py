"""The solver kernels in microseconds, as replays of captured graphs.

python benchmarks/gpu/solvers.py [--results PATH] [--objectives 2 8]
"""

from __future__ import annotations

import torch
from measure import Bench

import pama_ops as po
from pama_ops import reference

ROWS = (2, 4, 8, 16, 32)


def main() -> None:
    bench = Bench(__doc__)
    for n in bench.arguments.objectives or ROWS:
        # Conflicting gradients, of which several take part.
        j = torch.randn(n, 64, device=bench.device, dtype=torch.float64) + 0.1
        gram = j @ j.mT
        for name in reference.WEIGHTINGS:
            solve = getattr(po, name)
            result = bench.time(lambda solve=solve, gram=gram: solve(gram), graph=True)
            bench.add({"weighting": name, "n": n, "us": 1e3 * result["ms"], **result})


if __name__ == "__main__":
    main()
