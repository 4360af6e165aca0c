"""Properties that results are held to."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


def assert_rounds(got: Tensor, want: Tensor, slack: Tensor | float, terms: float) -> None:
    """`got` is the float64 `want` rounded to its dtype, give or take the order of a float64 sum.

    Two float64 evaluations of a sum of `terms` terms, whose magnitudes add up to `slack`, differ
    by at most 2 · terms · u64 · slack (Higham, Accuracy and Stability, §4.2); rounding the result
    adds u · |want|. NaN and infinities must stand in the same places.
    """
    assert got.shape == want.shape
    want = want.to(got.device)
    bound = ROUNDOFF[got.dtype] * want.abs() * 1.001
    bound = bound + 2 * terms * ROUNDOFF[torch.float64] * torch.as_tensor(slack).to(got.device)
    special = ~want.isfinite()
    same = torch.where(special, (got == want) | (got.isnan() & want.isnan()), True)
    assert bool(same.all()), f"not finite alike: {got[~same]} where {want[~same]}"
    error = torch.where(special, 0.0, (got.double() - want).abs())
    excess = error - torch.where(special, 0.0, bound)
    # Below the smallest normal number, rounding is absolute.
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= torch.finfo(got.dtype).smallest_normal, f"off by {worst} beyond its bound"
