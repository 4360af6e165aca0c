"""Gradient space: the Gram matrix of n gradients, and their weighted sum.

Gradients are n tensors, or n lists of P tensors, as autograd returned them; they are read where
they lie. `None` stands for a missing gradient, which takes part in no product: it adds 0, also to
what is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pama_ops import _agreement as agreement
from pama_ops import _checks as check
from pama_ops import _dtensors as dtensors
from pama_ops import _forward_mode as forward_mode
from pama_ops import _gradient_lists as lists
from pama_ops import _ops as ops
from pama_ops import distributed
from pama_ops._dispatch import of_lists, write

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Gradients = Sequence[Tensor | None] | Sequence[Sequence[Tensor | None]]


def gram(
    grads: Gradients,
    *,
    group: ProcessGroup | None = None,
    dtype: torch.dtype = torch.float64,
    check_finite: bool = False,
) -> Tensor:
    """The Gram matrix of n gradients over the same parameters: G_ij = Σ_k g_ik g_jk.

    Nothing is concatenated. A parameter's gradients are walked in memory order if all n have the
    same strides without holes (contiguous, transposed, channels-last); otherwise they are made
    contiguous first, which costs a copy of that parameter's gradients.

    float32 and half gradients are multiplied and summed in float32, where a product is rounded at
    most L + 2 times, and these sums in float64: |ΔG_ij| <= (L + 2)·2⁻²⁴ Σ_k |g_ik g_jk|, with
    L = 16 on a CPU and 64 on a GPU, where halves of 9 objectives or more go to tensor cores, which
    err by up to 10⁻⁵ ‖g_i‖ ‖g_j‖. Half gradients never accumulate in half precision; sums of up to
    1024 products beyond 1e38 (entries beyond 1e17) and products below 1e-38 (entries below 1e-19)
    leave float32's range. float64 gradients stay in float64.

    Args:
        grads: n >= 1 tensors, or n lists of P tensors or None, of float64, float32, float16 or
            bfloat16; shape, dtype and device of the p-th gradient are those of all objectives.
            Or DTensors (FSDP2, tensor parallel): G is that of the whole gradients, summed over the
            mesh dimensions along which they are sharded. Not differentiable then.
        group: process group whose ranks hold disjoint parts of the parameters (shards): the Gram
            matrices of the parts are added. Not differentiable then. Every rank gets the same
            bits. On a CPU, and on a GPU with `check_finite`, ranks first exchange a header of two
            integers: all raise where they disagree in n, P or a DTensor's shape, dtype or
            placements, or where one refuses its arguments.
        dtype: of the result; the sum is float64.
        check_finite: raise if an objective's gradient is not finite (synchronises on a GPU).

    Returns:
        G, [n, n], symmetric to the bit, on the gradients' device. Its attribute `rtol` says how
        well its entries are known relative to ‖g_i‖ ‖g_j‖, for weightings to read:
        docs/weightings.md. Differentiable: the slope of J is (S + Sᵀ) J. NaN or infinite where a
        gradient is.

    Raises:
        TypeError, ValueError: naming the argument, the index, what came and what is wanted.

    Complexity: one read of the gradients and n²/2 multiply-adds an element. On a CPU the bits do
    not depend on the number of threads.
    Source: Désidéri 2012; Sener & Koltun, arXiv 1810.04650.

    >>> gram([torch.tensor([-4.0, 1.0, 1.0]), torch.tensor([6.0, 1.0, 1.0])])
    tensor([[ 18., -22.],
            [-22.,  38.]], dtype=torch.float64)
    >>> gram([[torch.ones(2, 2), None], [torch.ones(2, 2), torch.ones(3)]]).tolist()
    [[4.0, 4.0], [4.0, 7.0]]
    """
    agreement.check_group(group)
    with agreement.all_ranks_raise(grads, group, wait=check_finite) as ranks:
        check_finite = check.flag("check_finite", check_finite)
        flat, n, _ = lists.flattened("grads", grads, at_once=group is not None)
        in_parts = dtensors.check_dtensors("grads", flat, n) or group is not None
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        if group is not None and torch.is_grad_enabled() and any(x.requires_grad for x in flat):
            raise ValueError("grads must not require a gradient where a group is given")
        if in_parts:
            forward_mode.refuse("gram of gradients in parts", *flat)
            ranks.must_agree(flat, lambda over: _facts(flat, n, of_parts=over is group))
    result = distributed.gram(flat, n, group) if in_parts else _gram(flat, n)
    if check_finite:
        _require_finite(result)
    result = result if dtype == torch.float64 else result.to(dtype)
    return _noted(result, max(_error(flat, n), torch.finfo(dtype).eps))


def _require_finite(result: Tensor) -> None:
    def found() -> str:
        bad = (~result.diagonal().isfinite()).nonzero().flatten().tolist()
        if bad:
            return f"sums over objectives {bad} that are not"
        return "products that leave the range of numbers"

    check.require(result.isfinite().all(), "grads must be finite", found)


def _gram(flat: list[Tensor], n: int) -> Tensor:
    """With the tangent dJ Jᵀ + J dJᵀ where the gradients J have one, dJ."""
    result: Tensor
    if not forward_mode.carries(*flat):
        result = of_lists(ops.gram, flat, n)
        return result
    primals, tangents = _split(flat)
    result = of_lists(ops.gram, primals, n)
    cross = ops.gram([*primals, *tangents], 2 * n)[:n, n:]
    return forward_mode.join("gram", result, cross + cross.mT)


def _split(flat: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients without their tangents, and the tangents: empty, which stands for 0, for none."""
    primals, tangents = zip(*map(forward_mode.split, flat), strict=True)
    return list(primals), [
        x.new_empty(0 if x.numel() else x.shape) if t is None else t
        for x, t in zip(primals, tangents, strict=True)
    ]


# What is known of G_ij relative to ‖g_i‖ ‖g_j‖, by the gradients' dtype: the error of the sums, on
# a CPU of chains of 16, elsewhere of chains of 64 and of tensor cores; and the square of their own
# roundoff, which is what rounding leaves of a combination of gradients that was 0.
_SUMS = {"cpu": 18 * 2.0**-24}
_OTHER_SUMS = 1e-5
_ROUNDED = {torch.float32: 2.0**-48, torch.float16: 2.0**-22, torch.bfloat16: 2.0**-16}


def _error(flat: Sequence[Tensor], n: int) -> float:
    """The relative error of the Gram matrix of n gradients: of its sums and of theirs."""
    dtypes = {x.dtype for x in flat[: len(flat) // n]}
    if dtypes == {torch.float64}:
        return 1e-14
    return _SUMS.get(flat[0].device.type, _OTHER_SUMS) + max(_ROUNDED.get(x, 0.0) for x in dtypes)


def _noted(gram: Tensor, rtol: float) -> Tensor:
    """`gram`, for weightings to find its relative error on."""
    gram.rtol = rtol  # type: ignore[attr-defined]
    return gram


def _facts(flat: list[Tensor], n: int, *, of_parts: bool) -> dict[str, object]:
    """What ranks share; those of a group hold parts of the parameters, in shapes of their own."""
    counts: dict[str, object] = {
        "the function": "gram",
        "the number of objectives": n,
        "the number of tensors of an objective": len(flat) // n,
    }
    if of_parts:
        return counts
    found = [x if dtensors.is_dtensor(x) else None for x in dtensors.representatives(flat, n)]
    return counts | agreement.placements_as_facts("tensor", found)


def gram_accumulate(gram: Tensor, grads: Gradients) -> Tensor:
    """Add the Gram matrix of more parameters to a running one: G_ij += Σ_k g_ik g_jk.

    Gram matrices add over disjoint parts of the parameters, so gradients larger than memory can
    pass in pieces. `gram` of the whole and of its pieces agree to rounding.

    Args:
        gram: G, [n, n] in float64, contiguous, written in place: no gradient flows to it or from
            it, and it may require none but under `torch.no_grad()`.
        grads: as for `gram`, on the same device.

    Returns:
        `gram`.

    Raises:
        TypeError, ValueError: naming the argument, the index, what came and what is wanted.

    Complexity: one read of the gradients. Source: as `gram`.

    >>> G = torch.zeros(2, 2, dtype=torch.float64)
    >>> for part in (torch.eye(2), torch.ones(2, 3)):
    ...     _ = gram_accumulate(G, list(part))
    >>> G.tolist()
    [[4.0, 3.0], [3.0, 4.0]]
    """
    flat, n, _ = lists.flattened("grads", grads)
    if dtensors.check_dtensors("grads", flat, n):
        raise TypeError("grads must be plain tensors to accumulate, got DTensors: pass to_local()")
    check.match("gram", gram, (n, n), "grads", flat[0].device)
    if gram.dtype != torch.float64 or not gram.is_contiguous():
        raise ValueError(f"gram must be float64 and contiguous, got {gram.dtype} {gram.stride()}")
    check.no_gradient("gram", gram)
    check.writable("gram", gram)
    forward_mode.refuse("gram_accumulate", gram, *flat)
    write(ops.gram_accumulate, gram, flat)
    return _noted(gram, max(getattr(gram, "rtol", 0.0), _error(flat, n)))


def combine(
    grads: Gradients,
    weights: Tensor,
    *,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """The weighted sum of n gradients: out_k = Σ_i w_i g_ik.

    Summed in float32 (float64 gradients in float64) and rounded once to the gradients' dtype.

    Args:
        grads: as for `gram`.
        weights: w, [n], any floating dtype, on the gradients' device.
        out: a tensor, or a list of P, of the gradients' shapes, dtypes and device, to write into;
            no gradient flows then, and none may require one but under `torch.no_grad()`. Each may
            be a whole gradient of its own parameter, and shares no memory with any other tensor.

    Returns:
        The sum: a list of P tensors for lists, a tensor for tensors; `out` if given. Differentiable
        in the gradients and in the weights. DTensors give DTensors of the same placements, with no
        communication and not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, the index, what came and what is wanted.

    Complexity: n reads and one write of the parameters' size. Source: as `gram`.

    >>> combine([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], torch.tensor([0.5, 0.25]))
    tensor([0.5000, 0.5000])
    """
    flat, n, single = lists.flattened("grads", grads)
    are_dtensors = dtensors.check_dtensors("grads", flat, n)
    results = _combine(flat, n, weights, _targets(out), are_dtensors=are_dtensors)
    if out is not None:
        return cast("Tensor | list[Tensor]", out)
    return results[0] if single else results


def _targets(out: object) -> list[Tensor] | None:
    if out is None:
        return None
    if isinstance(out, Tensor):
        return [out]
    entries = check.sequence(out)
    if entries is None:
        raise TypeError(f"out must be a tensor or a list of tensors, got {type(out).__name__}")
    return cast("list[Tensor]", entries)


def _combine(
    flat: list[Tensor], n: int, weights: Tensor, out: list[Tensor] | None, *, are_dtensors: bool
) -> list[Tensor]:
    check.match("weights", weights, (n,), "grads", flat[0].device)
    layouts = dtensors.representatives(flat, n) if are_dtensors else []
    if are_dtensors:
        if weights.requires_grad and torch.is_grad_enabled():
            raise ValueError("weights must not require a gradient where grads are DTensors")
        flat = [dtensors.local_part(x) for x in flat]
    if are_dtensors or out is not None:
        forward_mode.refuse("combine into `out` or of DTensors", weights, *flat)
    if out is None:
        results: list[Tensor]
        if forward_mode.carries(weights, *flat):
            return _combine_tangents(flat, weights)
        results = of_lists(ops.combine, flat, weights)
        if are_dtensors:
            parts = zip(layouts, results, strict=True)
            results = [dtensors.placed_as(x, part) for x, part in parts]
        return results
    lists.outputs("out", out, layouts or flat, 1 if are_dtensors else n, at_once=are_dtensors)
    if are_dtensors:
        dtensors.check_dtensors("out and grads", [*layouts, *out], 2)
        out = [dtensors.local_part(x) for x in out]
    with torch.no_grad():
        write(ops.combine_into, out, flat, weights, False)
    return out


def _combine_tangents(flat: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The sums Σ w_i g_i with their tangents Σ w_i dg_i + dw_i g_i."""
    primals, tangents = _split(flat)
    weights, turn = forward_mode.split(weights)
    results: list[Tensor] = of_lists(ops.combine, primals, weights)
    moves: list[Tensor] = [torch.zeros_like(x) for x in results]
    count = len(results)
    for p in range(count):
        column = tangents[p::count]
        if any(x.numel() for x in column):
            moves[p] = moves[p] + ops.combine(column, weights)[0]
        if turn is not None:
            moves[p] = moves[p] + ops.combine(primals[p::count], turn)[0]
    return [forward_mode.join("combine", x, move) for x, move in zip(results, moves, strict=True)]
