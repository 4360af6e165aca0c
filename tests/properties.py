"""Properties that results are held to."""

from __future__ import annotations

from collections.abc import Callable

import exactly
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pama_ops as po

ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def assert_rounds(got: Tensor, want: Tensor, slack: Tensor | float, terms: float) -> None:
    """`got` is the float64 `want` rounded to its dtype, give or take the order of a float64 sum.

    Two float64 evaluations of a sum of `terms` terms, whose magnitudes add up to `slack`, differ
    by at most 2 · terms · u64 · slack (Higham, Accuracy and Stability, §4.2); rounding the result
    adds u · |want|. NaN and infinities must stand in the same places.
    """
    assert got.shape == want.shape
    want = want.to(got.device)
    bound = ROUNDOFF[got.dtype] * want.abs() * 1.001
    slack = torch.as_tensor(slack, dtype=torch.float64, device=got.device)
    bound = bound + 2 * terms * ROUNDOFF[torch.float64] * slack
    special = ~want.isfinite()
    same = torch.where(special, (got == want) | (got.isnan() & want.isnan()), True)
    assert bool(same.all()), f"not finite alike: {got[~same]} where {want[~same]}"
    error = torch.where(special, 0.0, (got.double() - want).abs())
    excess = error - torch.where(special, 0.0, bound)
    # Below the smallest normal number, rounding is absolute.
    absolute = ROUNDOFF[got.dtype] * torch.finfo(got.dtype).smallest_normal
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= absolute, f"off by {worst} beyond its bound"


def assert_independent_of_thread_count(call: Callable[[], object]) -> None:
    """Every tensor in the call's result has the same bits on 1, 2 and 5 threads."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append([x for x in tree_leaves(call()) if isinstance(x, Tensor)])
    finally:
        torch.set_num_threads(threads)
    assert results[0]
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


# --- weights ------------------------------------------------------------------------------------


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def assert_on_simplex(weights: Tensor) -> None:
    """Nonnegative, with sum 1 but for the rounding of each weight to its dtype."""
    n = weights.shape[-1]
    assert bool((weights >= 0).all()), weights
    # Each weight is rounded by a relative u, or by half the smallest subnormal number.
    tiny = torch.finfo(weights.dtype).tiny * torch.finfo(weights.dtype).eps
    bound = unit_roundoff(weights.dtype) + n * (2.0**-52 + tiny)
    off = float((exactly.total(weights) - 1).abs().max())
    assert off <= bound, f"the weights sum to 1 but for {off}, beyond {bound}"


def assert_non_conflicting(gram: Tensor, weights: Tensor) -> None:
    """Gw >= −max(1e-9, n eps) · max diag · ‖w‖₁, with eps of G's dtype."""
    g, w = gram.double().cpu(), weights.double().cpu()
    eps = torch.finfo(gram.dtype).eps
    scale = g.diagonal(dim1=-2, dim2=-1).amax(-1) * exactly.total(w.abs())
    slope = exactly.times(g, w).amin(-1)
    bound = -max(1e-9, g.shape[-1] * eps) * scale
    assert bool((slope >= bound).all()), f"conflict {float((slope / scale).min())}"


def gap_bound(gram: Tensor, roundoff: float | None = None) -> float:
    """What rounding may leave of the duality gap of min_norm, in units of max diag.

    `roundoff` is that of the dtype in which G came to the op, where that is not `gram`'s.

    With norms at most 1 and Σ w = 1, every |(Gw)_i| <= 1. The active set ends where no slope is
    below the value by more than 8 u64; weights and slopes it works with carry at most 2 (n + 4)
    roundings of u64 each. Rows equal within 4 u of G's dtype stand for each other, which moves
    value and slope by 4 u each; and weights rounded to that dtype move each by 3 u.
    """
    n = gram.shape[-1]
    u = unit_roundoff(gram.dtype) if roundoff is None else roundoff
    return (8 + 4 * (n + 4)) * 2.0**-53 + 14 * u


def assert_optimal(gram: Tensor, weights: Tensor, roundoff: float | None = None) -> None:
    """The duality gap is that of rounding."""
    g, w = gram.double().cpu(), weights.double().cpu()
    slope = exactly.times(g, w)
    gap = exactly.dot(w, slope) - slope.amin(-1)
    scale = g.diagonal(dim1=-2, dim2=-1).amax(-1)
    bound = gap_bound(gram, roundoff)
    assert bool((gap <= bound * scale).all()), f"gap {float((gap / scale).max())}, bound {bound}"


def assert_cone_optimal(gram: Tensor, weights: Tensor, lower: Tensor) -> None:
    """min vᵀGv over v >= lower: v >= lower, Gv >= 0, and (v − lower)ᵀ Gv = 0, to rounding.

    In units of ‖g_i‖ · Σ v ‖g‖: no slope stops below −8 u64, nor by more from 0 on the support; a
    widened G takes another 8 u64 + 2 u; slopes there and here carry n + 4 roundings of u64 each,
    and the weights' rounding moves them by u, or by the least subnormal number.
    """
    g, w = gram.double().cpu(), weights.double().cpu()
    lower = lower.double().cpu()
    u = 3 * unit_roundoff(weights.dtype) + (16 + 2 * (len(w) + 4)) * 2.0**-53
    least = torch.finfo(weights.dtype).smallest_normal * unit_roundoff(weights.dtype)  # subnormal
    assert bool((w >= lower * (1 - u) - least).all()), w - lower
    norm = g.diagonal().clamp(min=0).sqrt()
    size, moved = exactly.dot(norm, w.abs()), least * exactly.total(norm)
    slope = exactly.times(g, w)
    bound = u * size + moved
    assert bool((slope >= -bound * norm).all()), float((slope / norm / bound).min())
    y = (w - lower).clamp(min=0)
    apart = float(exactly.dot(y, slope))
    assert apart <= float((bound + moved) * size), apart / float(bound * size)


def is_null_combination(gram: Tensor, weights: Tensor) -> bool:
    """Whether weights are on the simplex and combine the gradients to 0, to rounding."""
    w, g = weights.double().cpu(), gram.double().cpu()
    length = float(exactly.dot(w, g.diagonal().clamp(min=0).sqrt()))
    u = unit_roundoff(gram.dtype)
    on_simplex = abs(float(exactly.total(w)) - 1) <= len(g) * u
    square = float(exactly.dot(w, exactly.times(g, w)))
    return on_simplex and length > 0 and square <= 16 * len(g) * u * length**2


def combined_length(gram: Tensor, weights: Tensor) -> float:
    """‖Σ w_i g_i‖ of float64 G and w."""
    return float(exactly.dot(weights, exactly.times(gram, weights)).clamp(min=0).sqrt())


def sum_of_lengths(gram: Tensor, weights: Tensor) -> float:
    """Σ |w_i| ‖g_i‖ of float64 G and w, which rounding of their combination is relative to."""
    return float(exactly.dot(weights.abs(), gram.diagonal().clamp(min=0).sqrt()))


def assert_zero_only_when_stationary(gram: Tensor, weights: Tensor, attenuation: float) -> None:
    """The combined gradient x is not 0, unless that of min_norm, d, is.

    Given ‖x‖² >= attenuation · ‖w‖₁² · ‖d‖² before rounding. G rounded from gradients of 4 n
    entries and wᵀGw evaluated err by less than 16 n u64 max diag, for ‖w‖₁ = 1: below that nothing
    is known of x or of d.
    """
    largest = float(gram.diagonal().amax())
    rounding = 16 * len(gram) * 2.0**-53 * largest
    shortest = combined_length(gram, po.min_norm(gram)) ** 2
    if attenuation * shortest <= 2 * rounding:
        return
    size = float(exactly.total(weights.abs())) ** 2 * rounding
    assert combined_length(gram, weights) ** 2 > size, "0, but not stationary"


# --- how far apart two solutions may be ---------------------------------------------------------
#
# Each bounds the distance between the combinations of two solutions that are right to rounding, in
# units of Σ |w_i| ‖g_i‖; `weights` is one of the two.


def _gap(n: int) -> float:
    """What rounding may leave in a solution's objective, see assert_cone_optimal."""
    return 16 * (16 + 8 * n) * 2 * ROUNDOFF[torch.float64]


def apart_if_strongly_convex(gram: Tensor, weights: Tensor) -> float:
    """In x: ‖x − x*‖² <= gap, for each of upgrad's n problems, twice."""
    n = len(gram)
    return 2 * n * _gap(n) ** 0.5


def apart_in_a_ball(gram: Tensor, weights: Tensor) -> float:
    """Within a ball of radius r <= size, ‖x − x*‖² <= 8 r · gap / ‖d‖: half the square over 4 r is
    the depth of the midpoint, which could ascend that much along d. Where d = 0, a zero gradient
    makes every direction optimal: nothing is claimed but x's own length.
    """
    d = combined_length(gram, po.min_norm(gram))
    longest = float(gram.diagonal().max().sqrt())
    return 2 * (8 * _gap(len(gram)) * longest / d) ** 0.5 if d > 0 else 2.0


def apart_of_fair_gains(gram: Tensor, weights: Tensor) -> float:
    """D G D + I, the Hessian in relative changes of w (D = diag w), is at least I. Where gradients
    are stationary, each is as far from 0 as is_null_combination allows.
    """
    n, w = len(gram), weights.abs()
    if is_null_combination(gram, weights):
        return 2 * (16 * n * ROUNDOFF[torch.float64]) ** 0.5
    return 2 * _gap(n) * n * float(exactly.dot(w, exactly.times(gram.abs(), w)))


def apart_if_aligned(gram: Tensor, weights: Tensor) -> float:
    """By as much as the eigenvectors of G turn."""
    return _turned(gram, gram, weights)


def apart_if_equally_projected(gram: Tensor, weights: Tensor) -> float:
    """Σ of the unscaled weights, which they are divided by, may cancel."""
    return _turned(gram, _cosines(gram), weights) * float(exactly.total(weights.abs()))


def apart_if_equally_inclined(gram: Tensor, weights: Tensor) -> float:
    """What of 1 is in the range of the cosines, and the length Σ ‖g_i‖ cos_i, may cancel."""
    if not bool(weights.any()):
        return 0.0
    cosines = _cosines(gram)
    _, vectors = _counting(cosines)
    inside = float((vectors.sum(0) ** 2).sum()) / len(cosines)
    longer = float(gram.diagonal().clamp(min=0).sqrt().sum()) / combined_length(gram, weights)
    return _turned(gram, cosines, weights) * longer / inside


def _cosines(gram: Tensor) -> Tensor:
    """The Gram matrix of the gradients that are not 0, at length 1."""
    used = gram.diagonal() > 0
    norm = gram.diagonal()[used].sqrt()
    return gram[used][:, used] / norm[:, None] / norm


def _counting(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues that count, and their vectors."""
    values, vectors = exactly.eigen(scaled)
    kept = values > 1e-10 * values[-1]
    return values[kept], vectors[:, kept]


def _turned(gram: Tensor, scaled: Tensor, weights: Tensor) -> float:
    """Rounding turns eigenvectors by itself over the least eigenvalue that counts."""
    if not bool(gram.any()) or not bool(weights.any()):
        return 0.0
    values, _ = _counting(scaled)
    return 64 * len(gram) * ROUNDOFF[torch.float64] * float(values[-1] / values[0])


def attenuation_if_aligned(gram: Tensor) -> float:
    """`attenuation` of assert_zero_only_when_stationary, for aligned_mtl.

    x = √σ V Λ^(−½) Vᵀ p in weights has ‖x‖² = σ ‖Vᵀp‖² >= σ/λ_max pᵀGp, and ‖w‖₁ <= √n ‖p‖₂ = 1.
    """
    values, _ = exactly.eigen(gram)
    # An eigenvalue within rounding of the cut may be kept or not: take the least that may be.
    cut = len(gram) * 2.0**-53 * values[-1]
    kept = values[values > cut]
    return float(kept[0] / values[-1]) if len(kept) else 0.0
