"""What compute-sanitizer watches: every op, in float32 and bfloat16. With --dry on the CPU."""

import sys

import torch

from pama_ops._self_check import Comparison, exercise

device = torch.device("cpu" if "--dry" in sys.argv else "cuda")
errors = {}
for dtype in (torch.float32, torch.bfloat16):
    with Comparison() as comparison:
        exercise(device, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    off = {name: e for name, e in comparison.errors.items() if e > 1}
    errors |= off
    print(dtype, off or "every op within its bound", flush=True)
sys.exit(bool(errors))
