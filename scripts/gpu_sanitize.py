"""The short selection that compute-sanitizer watches: every op once, in float32 and bfloat16."""

import sys

import torch

from pama_ops._self_check import Comparison, exercise

errors = {}
for dtype in (torch.float32, torch.bfloat16):
    with Comparison() as comparison:
        exercise(torch.device("cuda"), dtype)
    torch.cuda.synchronize()
    errors |= {name: e for name, e in comparison.errors.items() if e > 1}
print(errors or "every op within its bound")
sys.exit(bool(errors))
