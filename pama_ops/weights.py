"""Weights of the objectives from an n x n Gram matrix or from n values.

A weighting is a plain function from a Gram matrix to weights: `functools.partial` sets its
parameters, and a function of your own is as good as these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _forward_mode as forward_mode
from pama_ops import _ops as ops
from pama_ops._autograd import Result, constant
from pama_ops._dispatch import call

Preference = Tensor | Sequence[float] | None


class PAMAWeights(NamedTuple):
    """Result of `pama_weights`.

    Attributes:
        weights: c, shape [..., n].
        optimum: Σ c_i a_i, shape [...].
    """

    weights: Tensor
    optimum: Tensor


def _solve(
    name: str,
    gram: Tensor,
    preference: Preference,
    check_values: bool,
    *options: float,
    rtol: float | None = None,
) -> Tensor:
    """The weights that the op `name` finds by a preference."""
    check.gram("gram", gram)
    p = check.preference(preference, gram.shape[-1], gram)
    return _run(name, gram, p, check_values, options, rtol)


def _constant(name: str, result: Result, x: Tensor, other: Tensor | None) -> Result:
    """`constant`, which as a rule has nothing to do: a call of it takes as long as a small op."""
    traced = x.requires_grad or (other is not None and other.requires_grad)
    return constant(name, result, x, other) if traced or forward_mode.active() else result


def _error(gram: Tensor, rtol: float | None) -> float | None:
    """The relative error of G's entries: as given, else as `gram` noted on its result.

    None stands for the eps of G's dtype: all that is known of a matrix that came from elsewhere.
    """
    if rtol is None:
        noted: float | None = getattr(gram, "rtol", None)
        return noted
    return check.nonnegative("rtol", rtol)


def _run(
    name: str,
    gram: Tensor,
    vector: Tensor | None,
    check_values: bool,
    options: Sequence[float] = (),
    rtol: float | None = None,
) -> Tensor:
    # The ops walk up to six leading dimensions by their strides.
    many = gram.dim() > 8
    flat = gram.flatten(0, -3) if many else gram
    if many and vector is not None and vector.dim() > 1:
        vector = vector.expand(*gram.shape[:-2], -1).flatten(0, -2)
    op = getattr(ops, name)
    result: Tensor = call(op, flat, vector, options, rtol, check_values=check_values)
    if many:
        result = result.view(*gram.shape[:-2], *result.shape[1:])
    return _constant(name, result, gram, vector)


def min_norm(
    gram: Tensor,
    *,
    preference: Preference = None,
    ignore_zero: bool = False,
    check_values: bool = False,
) -> Tensor:
    """Weights of the shortest vector in the convex hull of n gradients (MGDA).

    c = argmin cᵀ G c over {c >= 0, Σ c_i = 1}, exactly, by a finite active-set method. Then
    x = Σ c_i g_i is 0 if the gradients are Pareto stationary, and otherwise a common direction of
    ascent, with ⟨g_i, x⟩ >= ‖x‖² for all i.

    With a preference p the problem is solved on g_i / (n p_i), and the result is proportional to
    c_i / p_i, so that ⟨g_i, x⟩ is proportional to p_i wherever the weight is positive.

    Where several weights give the same x, one of them is returned; rows of G that are equal to
    rounding share theirs evenly. A gradient that is exactly 0 takes all the weight (several share
    it in proportion to p), as no step is in conflict with it and Σ c_i g_i = 0 then: a task without
    a sample in the batch ends the step of all. `ignore_zero` leaves such gradients out. G = 0 gives
    p. Multiplying G by a positive number changes nothing.

    At most 8n + 32 gradients enter the active set; no input is known to come near that. There the
    point of least duality gap so far would be returned, see `duality_gap`.

    Args:
        gram: G, [..., n, n], any floating dtype and strides; computed in float64. Symmetric to
            rounding, with |G_ij|² <= G_ii G_jj to that of bfloat16, else ValueError; on a GPU,
            where checking would synchronise, mirror elements are averaged, and weights of what is
            no Gram matrix mean nothing.
        preference: n nonnegative numbers, uniform if None; 0 drops an objective, and so does less
            than 2⁻⁴⁰⁰ of the largest.
        ignore_zero: give objectives with G_ii = 0 a preference of 0, unless none is left then.
        check_values: check `gram` and a `preference` tensor on a GPU too (synchronises; on a CPU
            they always are).

    Returns:
        c, [..., n] in G's dtype, contiguous. NaN where G is not finite among the objectives used.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: about n steps of O(n²) each; on a GPU one launch, a warp for each problem.
    Source: Désidéri 2012; Sener & Koltun, arXiv 1810.04650; Wolfe, Math. Prog. 11, 1976.

    >>> min_norm(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.6000, 0.4000])
    >>> min_norm(torch.eye(2), preference=[0.9, 0.1])
    tensor([0.9000, 0.1000])
    >>> min_norm(torch.diag(torch.tensor([1.0, 0.0, 1.0])), ignore_zero=True)
    tensor([0.5000, 0.0000, 0.5000])
    """
    check.gram("gram", gram)
    p = check.preference(preference, gram.shape[-1], gram)
    if check.flag("ignore_zero", ignore_zero):
        diagonal = gram.detach().diagonal(dim1=-2, dim2=-1)
        p = torch.ones_like(diagonal) if p is None else p
        left = torch.where(diagonal == 0, 0, p)
        p = torch.where((left > 0).any(-1, keepdim=True), left, p)
    return _run("min_norm", gram, p, check_values)


def dualproj(
    gram: Tensor,
    *,
    preference: Preference = None,
    rtol: float | None = None,
    check_values: bool = False,
) -> Tensor:
    """Weights of the preferred gradient's projection onto the cone that conflicts with none (GEM).

    v = argmin vᵀ G v over {v >= p}, exactly, by a finite active-set method. The combination
    x = Σ v_i g_i has ⟨g_i, x⟩ >= 0 for all i, with equality where v_i > p_i. If Σ p_i g_i conflicts
    with no gradient, v = p.

    Where several weights give the same x (dependent gradients), one of them is returned. A zero
    gradient keeps its p_i; p_i = 0 leaves i's constraint in place. Multiplying G by a positive
    number changes nothing. At most 8n + 32 rows enter the active set.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        preference: n nonnegative numbers, scaled to sum 1; uniform if None.
        rtol: relative error of G's entries; None stands for what `gram` noted on G, else for the
            eps of its dtype.
        check_values: see `min_norm`.

    Returns:
        v, [..., n] in G's dtype, contiguous, with Σ v >= 1. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n²) for each row that enters. Source: Lopez-Paz & Ranzato, arXiv 1706.08840.

    >>> dualproj(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.6111, 0.5000])
    """
    return _solve("dualproj", gram, preference, check_values, rtol=_error(gram, rtol))


def upgrad(
    gram: Tensor,
    *,
    preference: Preference = None,
    rtol: float | None = None,
    check_values: bool = False,
) -> Tensor:
    """Weights of the sum of all gradients, each projected onto the cone that conflicts with none.

    Σ_i argmin vᵀ G v over {v >= p_i e_i}, exactly: n problems of the kind of `dualproj`. The
    combination x has ⟨g_i, x⟩ >= 0 for all i, and is p's own where no two gradients conflict.

    Where several weights give the same x (dependent gradients), one of them is returned. A zero
    gradient keeps its p_i; p_i = 0 leaves i's constraint in place. Multiplying G by a positive
    number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        preference: n nonnegative numbers, scaled to sum 1; uniform if None.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        Weights [..., n] in G's dtype, contiguous, with sum >= 1. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: n times that of `dualproj`. Source: Quinton & Rey, arXiv 2406.16232.

    >>> upgrad(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([1.1111, 0.7895])
    """
    return _solve("upgrad", gram, preference, check_values, rtol=_error(gram, rtol))


def cagrad(
    gram: Tensor, *, c: float = 0.5, rtol: float | None = None, check_values: bool = False
) -> Tensor:
    """Weights of the best worst-case ascent near the mean gradient (CAGrad).

    x = argmax min_i ⟨g_i, d⟩ over ‖d − g_0‖ <= c ‖g_0‖, with g_0 the mean gradient. In weights:
    1/n + c ‖g_0‖ / ‖g_w‖ · w with w = argmin wᵀ G 1/n + c ‖g_0‖ ‖g_w‖ over the simplex.

    Where that minimum is at g_w = 0, which takes Pareto stationary gradients and a c large enough,
    the optimum is min_i ⟨g_i, x⟩ = 0 and `dualproj` reaches it nearest to g_0: its weights are the
    result. For g_0 = 0 and for c = 0 it is 1/n. Multiplying G by a positive number changes nothing.

    g_w counts as 0 where ‖g_w‖² is below 16 eps + 2 `rtol`, relative to (Σ w_i ‖g_i‖)²: errors of G
    hide what it is. An ascent of up to c ‖g_0‖ Σ w_i ‖g_i‖ times the root of that is then given up.
    Of matrices that are singular to rounding a few in 100,000 were seen to miss more.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        c: the radius relative to ‖g_0‖, nonnegative; for c >= 1 no gradient is conflicted with.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        Weights [..., n] in G's dtype, contiguous, each >= 1/n. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: one `min_norm`, a few that go on from it, and one `dualproj` where stationary.
    Source: Liu et al., arXiv 2110.14048.

    >>> cagrad(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.7041, 0.5000])
    """
    radius = float(check.nonnegative("c", c))
    return _solve("cagrad", gram, None, check_values, radius, rtol=_error(gram, rtol))


def nash_mtl(gram: Tensor, *, rtol: float | None = None, check_values: bool = False) -> Tensor:
    """Weights of the Nash bargaining solution between the objectives (Nash-MTL).

    G w = 1 / w with w > 0, the minimiser of ½ wᵀ G w − Σ log w: of all directions x of that length,
    x = Σ w_i g_i has the largest Π ⟨g_i, x⟩, and ⟨g_i, x⟩ = 1 / w_i > 0. Longer gradients get less
    weight: replacing g_i by s g_i divides w_i by s and leaves x. Multiplying G by s > 0 multiplies
    the weights by 1 / √s.

    A zero gradient has weight 0, and the others are solved for. If they are Pareto stationary there
    is no such w. Then the result is argmax Σ_S log w over {w >= 0, Σ w = 1, G w = 0}, with S the
    largest set of gradients on which such a w can be positive: x = 0, and multiplying G changes
    nothing. Stationary means that some c on the simplex combines the unit gradients to a square
    below 4 n eps + `rtol`: there x, and each ⟨g_i, x⟩, is 0 down to the root of that.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        w, [..., n] in G's dtype, contiguous, nonnegative. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: some ten Newton steps of O(n³), at most 100; where stationary up to n problems of
    the kind of `dualproj` as well. Source: Navon et al., arXiv 2202.01017.

    >>> nash_mtl(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 1.0000])
    """
    return _solve("nash_mtl", gram, None, check_values, rtol=_error(gram, rtol))


def fairgrad(
    gram: Tensor,
    *,
    alpha: float = 1.0,
    rtol: float | None = None,
    check_values: bool = False,
) -> Tensor:
    """Weights whose direction is α-fair to the objectives' gains (FairGrad).

    G w = w^(−1/α) with w > 0: of all directions x of that length, x = Σ w_i g_i has the largest
    Σ ⟨g_i, x⟩^(1−α) / (1 − α), and ⟨g_i, x⟩ = w_i^(−1/α) > 0. α = 1 is `nash_mtl`; α → 0 is the
    sum of gains, α → ∞ the smallest one. Multiplying G by s > 0 multiplies the weights by
    s^(−α/(1+α)).

    A zero gradient has weight 0, and the others are solved for. If they are Pareto stationary,
    which is decided as for `nash_mtl`, the result is argmax Σ_S φ(w) with φ' = w^(−1/α) over
    {w >= 0, Σ w = 1, G w = 0}, with S the largest set of gradients on which such a w can be
    positive; multiplying G then changes nothing. Where w^(1−1/α) spreads over more than some 30
    decades there, the fairest of these is out of reach, and a fairer one than Nash's is returned.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        alpha: α, positive and finite; tested from 0.1 to 10, with norms over twelve decades. Far
            beyond that, powers of w leave what float64 resolves and the equation holds less well.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        w, [..., n] in G's dtype, contiguous, nonnegative. NaN where G is not finite, and where
        powers of w leave the range of float64.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: that of `nash_mtl`, and some Newton steps, at most 100, for each doubling or halving
    from 1 to α.
    Source: Ban & Ji, arXiv 2402.15638.

    >>> fairgrad(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), alpha=0.5)
    tensor([0.6300, 1.0000])
    """
    alpha = float(check.positive("alpha", alpha))
    return _solve("fairgrad", gram, None, check_values, alpha, rtol=_error(gram, rtol))


def gapo(gram: Tensor, *, p: float = 1.0, check_values: bool = False) -> Tensor:
    """Weights of the shortest convex combination of the gradients g_i / ‖g_i‖^p (GAPO).

    w_i = c_i / ‖g_i‖^p with c = argmin ‖Σ c_i g_i / ‖g_i‖^p‖ over the simplex, exactly.
    p = 1 balances directions, p = 0 is `min_norm`.

    A zero gradient has weight 0. Multiplying G by s > 0 multiplies the weights by s^(−p/2).

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        p: the power of the norm.
        check_values: see `min_norm`.

    Returns:
        w, [..., n] in G's dtype, contiguous. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: that of `min_norm`. Source: arXiv 2507.01915.

    >>> gapo(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([0.2500, 0.5000])
    """
    return _solve("gapo", gram, None, check_values, float(check.finite("p", p)))


def aligned_mtl(
    gram: Tensor,
    *,
    preference: Preference = None,
    scale: str = "min",
    rtol: float | None = None,
    check_values: bool = False,
) -> Tensor:
    """Weights that combine the gradients as if they were orthogonal and equally long (Aligned-MTL).

    √σ V Λ^(−½) Vᵀ p with G = V Λ Vᵀ, over the eigenvalues λ > n · rtol · max λ: the preferred
    combination of the nearest system of orthogonal gradients of length √σ. σ is the least of these
    eigenvalues, their (lower) median, or their mean, the square of the gradients' rms length.

    For G = 0 the result is p. Multiplying G by a positive number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        preference: n nonnegative numbers, scaled to sum 1; uniform if None.
        scale: "min", "median" or "rmse".
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        Weights [..., n] in G's dtype, contiguous, of any sign. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n³) for each sweep of the eigensolver. Source: Senushkin et al., CVPR 2023.

    >>> aligned_mtl(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.5591, 0.4083])
    """
    which = check.choice("scale", scale, ("min", "median", "rmse"))
    error = _error(gram, rtol)
    return _solve("aligned_mtl", gram, preference, check_values, float(which), rtol=error)


def imtl_g(gram: Tensor, *, rtol: float | None = None, check_values: bool = False) -> Tensor:
    """Weights of the combination that has the same projection onto all gradients (IMTL-G).

    w ∝ G⁺ √diag G with Σ w = 1, so that ⟨g_i, x⟩ / ‖g_i‖ is the same for all i, if G is regular.

    The rank of G is decided on the Gram matrix of unit gradients: eigenvalues up to n · rtol of the
    largest count as 0. Where the unscaled weights sum to 0 within n · rtol of Σ |w|, the result is
    0. A zero gradient has weight 0. Multiplying G by a positive number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        w, [..., n] in G's dtype, contiguous, of any sign. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n³). Source: Liu et al., ICLR 2021, Towards Impartial Multi-task Learning.

    >>> imtl_g(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.5923, 0.4077])
    """
    return _solve("imtl_g", gram, None, check_values, rtol=_error(gram, rtol))


def config(gram: Tensor, *, rtol: float | None = None, check_values: bool = False) -> Tensor:
    """Weights of the direction that has the same angle to all gradients (ConFIG).

    With Ĝ the Gram matrix of unit gradients: v = Ĝ⁺ 1, ‖x‖² = vᵀ Ĝ v, L = Σ ‖g_i‖ (Ĝ v)_i / ‖x‖,
    w_i = L v_i / (‖g_i‖ ‖x‖). The combination is as long as the gradients' projections on it add up
    to. If G is regular, ⟨g_i, Σ w g⟩ / ‖g_i‖ is the same positive number for all i.

    Eigenvalues of Ĝ up to n · rtol of the largest count as 0. Zero gradients are left out and have
    weight 0; where x = 0, so that no direction ascends evenly, all weights are 0. Multiplying G by
    a positive number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        rtol: see `dualproj`.
        check_values: see `min_norm`.

    Returns:
        w, [..., n] in G's dtype, contiguous, of any sign. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n³). Source: Liu et al., arXiv 2408.11104.

    >>> config(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([0.7500, 1.5000])
    """
    return _solve("config", gram, None, check_values, rtol=_error(gram, rtol))


def pcgrad(gram: Tensor, *, seed: Tensor | None = None, check_values: bool = False) -> Tensor:
    """Weights of the sum of all gradients, each without its conflicts with the others (PCGrad).

    For each i, from cur = g_i, for all j ≠ i in a random order: if ⟨cur, g_j⟩ < 0, the part along
    g_j is removed, cur −= ⟨cur, g_j⟩ / ‖g_j‖² g_j. The weights are those of Σ_i cur.

    The orders depend on `seed` and n alone, so a CPU, a GPU and a captured graph draw alike. A zero
    gradient removes nothing. Multiplying G by a positive number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        seed: int64 on G's device: [], or the shape [...] of the batch for orders of their own. None
            draws one for each matrix from the device's default generator.
        check_values: see `min_norm`.

    Returns:
        Weights [..., n] in G's dtype, contiguous, each >= 1. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n³) at most. Source: Yu et al., arXiv 2001.06782.

    >>> pcgrad(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([2.2222, 1.5789])
    """
    check.gram("gram", gram)
    seed = _seed(seed, gram)
    # One seed for all needs no dimension of its own: making one would take longer than the solver.
    vector = seed.unsqueeze(-1) if seed.dim() else seed
    return _run("pcgrad", gram, vector, check_values)


def gradvac(
    gram: Tensor,
    *,
    target: Tensor | float = 0.0,
    seed: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """Weights of the sum of all gradients, each turned towards the others (GradVac).

    For each i, from cur = g_i, for all j ≠ i in a random order: if φ = cos(cur, g_j) < φ̂_ij, then
    cur += ‖cur‖ (φ̂ √(1 − φ²) − φ √(1 − φ̂²)) / (‖g_j‖ √(1 − φ̂²)) g_j, which makes it φ̂_ij. The
    weights are those of Σ_i cur; φ̂ = 0 is `pcgrad`. The moving average of cosines that the paper
    sets φ̂ to is the caller's.

    Zero gradients are skipped. Multiplying G by a positive number changes nothing.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        target: φ̂, a number or [n, n], of magnitude below 1; the diagonal is not used. That is not
            checked for tensors: a larger one gives NaN, or no change.
        seed: see `pcgrad`.
        check_values: see `min_norm`.

    Returns:
        Weights [..., n] in G's dtype, contiguous, each >= 1. NaN where G is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n³) at most. Source: Wang et al., arXiv 2010.05874.

    >>> gradvac(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([2.2222, 1.5789])
    """
    n = check.gram("gram", gram).shape[-1]
    if isinstance(target, Tensor):
        check.match("target", target, (n, n), "gram", gram.device)
        targets = target.double().flatten()
    else:
        target = check.number("target", target)
        if not -1 < target < 1:
            raise ValueError(f"target must be a cosine in (-1, 1), got {target}")
        targets = torch.full((n * n,), target, dtype=torch.float64, device=gram.device)
    bits = _seed(seed, gram).view(torch.float64).unsqueeze(-1)
    vector = torch.cat([bits, targets.expand(*bits.shape[:-1], -1)], -1)
    return _run("gradvac", gram, vector, check_values)


def _seed(seed: Tensor | None, gram: Tensor) -> Tensor:
    if seed is None:
        batch = gram.shape[:-2]
        return torch.randint(-(2**63), 2**63 - 1, batch, dtype=torch.int64, device=gram.device)
    return check.seed(seed, gram)


def duality_gap(gram: Tensor, weights: Tensor, *, check_values: bool = False) -> Tensor:
    """How far weights may be from those of `min_norm`: wᵀ G w − min_i (G w)_i.

    For any w on the simplex, ‖x_w‖² − ‖x*‖² <= 2 gap, with x_w = Σ w_i g_i and x* the shortest
    vector of the convex hull. Without a preference, `min_norm` leaves a gap of rounding size.

    Args:
        gram: G, [..., n, n], as for `min_norm`.
        weights: w, [..., n] with the leading dimensions of `gram`, any floating dtype.
        check_values: see `min_norm`.

    Returns:
        The gap, [...] in G's dtype. NaN where G or w holds one.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n²). Source: Frank & Wolfe 1956; Jaggi, ICML 2013.

    >>> duality_gap(torch.eye(2), torch.tensor([1.0, 0.0]))
    tensor(1.)
    """
    check.gram("gram", gram)
    check.match("weights", weights, gram.shape[:-1], "gram", gram.device)
    return _run("duality_gap", gram, weights, check_values)


def pama_weights(
    values: Tensor, *, preference: Preference = None, check_values: bool = False
) -> PAMAWeights:
    """Theorem 1 of PAMA: weights that bring Σ c_i a_i as near to 0 as a convex combination can.

    min (Σ c_i a_i)² over {c >= 0, Σ c_i = 1}; of all minimisers, the one nearest to p:

    - if the values straddle 0, the optimum is 0 and c is the Euclidean projection of p onto
      {c on the simplex, Σ c_i a_i = 0}; for n = 2 that is (a_2, −a_1) / (a_2 − a_1);
    - otherwise the objective of least |a_i| / p_i takes the weight; k of them that tie get
      p_i + (1 − Σ_tie p) / k each. If all values are 0, c = p.

    Multiplying the values by a positive number changes no weight.

    Args:
        values: a, [..., n], any floating dtype and strides; computed in float64.
        preference: n nonnegative numbers, uniform if None; 0 drops an objective, and so does less
            than 2⁻¹⁰²² of the largest.
        check_values: check a `preference` tensor on a GPU too (synchronises).

    Returns:
        `PAMAWeights(weights, optimum)`: [..., n] and [...] in the dtype of `values`, contiguous.
        NaN where a value that is used is not finite.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(n) for values of one sign, else at most n steps of O(n).
    Source: He & Maghsudi, arXiv 2508.07768, Theorem 1.

    >>> pama_weights(torch.tensor([1.0, -3.0]))
    PAMAWeights(weights=tensor([0.7500, 0.2500]), optimum=tensor(0.))
    >>> pama_weights(torch.tensor([2.0, 1.0, 1.0]))
    PAMAWeights(weights=tensor([0.0000, 0.5000, 0.5000]), optimum=tensor(1.))
    """
    check.objective_values("values", values)
    p = check.preference(preference, values.shape[-1], values)
    flat = values.flatten(0, -2) if values.dim() > 7 else values
    weights, optimum = call(ops.pama_weights, flat, p, check_values=check_values)
    if flat is not values:
        weights, optimum = weights.view(values.shape), optimum.view(values.shape[:-1])
    result = PAMAWeights(weights, optimum)
    return _constant("pama_weights", result, values, p)
