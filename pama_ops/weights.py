"""Weights of the objectives from an n x n Gram matrix or from n values.

A weighting is a plain function from a Gram matrix to weights: `functools.partial` sets its
parameters, and a function of your own is as good as these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pama_ops import _checks as check
from pama_ops import _schemas as ops
from pama_ops._autograd import constant

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
    name: str, gram: Tensor, preference: Preference, check_values: bool, *options: float
) -> Tensor:
    """The weights that the op `name` finds, after the checks that all weightings share."""
    check.gram("gram", gram)
    p = check.preference(preference, gram.shape[-1], gram)
    if check_values:
        check.preference_values(p)
        check.symmetric(gram)
    # The ops walk up to six leading dimensions by their strides.
    flat = gram.flatten(0, -3) if gram.dim() > 8 else gram
    weights: Tensor = getattr(ops, name)(flat, p, options)
    if flat is not gram:
        weights = weights.view(gram.shape[:-1])
    return constant(name, weights, gram) if gram.requires_grad else weights


def min_norm(gram: Tensor, *, preference: Preference = None, check_values: bool = False) -> Tensor:
    """Weights of the shortest vector in the convex hull of n gradients (MGDA).

    c = argmin cᵀ G c over {c >= 0, Σ c_i = 1}, exactly, by a finite active-set method. Then
    x = Σ c_i g_i is 0 if the gradients are Pareto stationary, and otherwise a common direction of
    ascent, with ⟨g_i, x⟩ >= ‖x‖² for all i.

    With a preference p the problem is solved on g_i / (n p_i), and the result is proportional to
    c_i / p_i, so that ⟨g_i, x⟩ is proportional to p_i wherever the weight is positive.

    Where several weights give the same x, one of them is returned; rows of G that are equal to
    rounding share theirs evenly. A gradient that is exactly 0 takes all the weight (several share
    it in proportion to p), and G = 0 gives p. Multiplying G by a positive number changes nothing.

    At most 8n + 32 gradients enter the active set; no input is known to come near that. There the
    point of least duality gap so far would be returned, see `duality_gap`.

    Args:
        gram: G, [..., n, n], any floating dtype and strides; computed in float64. Symmetric to
            rounding, else ValueError; on a GPU, where checking would synchronise, mirror elements
            are averaged.
        preference: n nonnegative numbers, uniform if None; 0 drops an objective.
        check_values: check symmetry and a `preference` tensor on a GPU too (synchronises; on a CPU
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
    """
    return _solve("min_norm", gram, preference, check_values)


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
    if check_values:
        check.symmetric(gram)
    many = gram.dim() > 8
    flat = (gram.flatten(0, -3), weights.flatten(0, -2)) if many else (gram, weights)
    gap: Tensor = ops.duality_gap(*flat, [])
    return constant("duality_gap", gap.view(gram.shape[:-2]) if many else gap, gram, weights)


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
        preference: n nonnegative numbers, uniform if None; 0 drops an objective.
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
    check.floating("values", values)
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"values must have the shape [..., n] with n >= 1, got {list(values.shape)}"
        )
    p = check.preference(preference, values.shape[-1], values)
    if check_values:
        check.preference_values(p)
    flat = values.flatten(0, -2) if values.dim() > 7 else values
    weights, optimum = ops.pama_weights(flat, p)
    if flat is not values:
        weights, optimum = weights.view(values.shape), optimum.view(values.shape[:-1])
    result = PAMAWeights(weights, optimum)
    return constant("pama_weights", result, values) if values.requires_grad else result
