"""Every dispatcher op of the library: schema, plain-PyTorch default, fake kernel, refusals.

The default (`reference/`, rounded to the op's dtypes) serves any device without a compiled
kernel; csrc/cpu and csrc/cuda override it once loaded. The public functions call the ops
by the names they have here. `_autograd.py` has their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops import effects

from pama_ops import _checks as checks
from pama_ops import _gradient_lists as lists
from pama_ops import reference
from pama_ops._dispatch import define
from pama_ops.reference.gradients import walked_in_place
from pama_ops.reference.pama import by_sequence


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest floating dtype among the arguments, at least float32."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def _like(x: Tensor, *others: Tensor | None) -> Tensor:
    """A result of the shape of `x`."""
    return x.new_empty(x.shape, dtype=result_dtype(x, *others))


# --- refusals -----------------------------------------------------------------------------------


def _require(good: Tensor, message: str) -> None:
    if not bool(good.all()):
        raise ValueError(message)


# A check of values in a program that is compiled: there no branch may depend on a tensor. It
# synchronises. That it has an effect keeps it in the program, where nothing takes a result of it.
require = define("require", "(Tensor good, str message) -> ()", lambda **_: None, default=_require)
effects._register_effectful_op(require, effects._EffectType.ORDERED)


def not_differentiable(name: str) -> str:
    return (
        f"pama_ops.{name} is not differentiable: its result is a constant of the optimisation. "
        "Detach its inputs, or use its result where no gradient flows."
    )


def _refuse_gradient(grad: Tensor, name: str) -> Tensor:
    flows = (grad != 0).any()  # NaN is not 0
    if grad.device.type == "cpu":
        if bool(flows):
            raise RuntimeError(not_differentiable(name))
    else:  # without waiting for the GPU, which a captured graph could not
        torch._assert_async(~flows, not_differentiable(name))
    return grad.new_zeros(())


refuse_gradient = define(
    "refuse_gradient",
    "(Tensor grad, str name) -> Tensor",
    lambda grad, **_: grad.new_empty(()),
    default=_refuse_gradient,
)

constant = define(
    "constant",
    "(Tensor result, Tensor[] inputs, str name) -> Tensor",
    lambda result, **_: result.new_empty(result.shape),
    default=lambda result, inputs, name: result.clone(),
)

# --- advantages ---------------------------------------------------------------------------------


def _check_tokens(
    first: str,
    *alike: str,
    objectives: bool = True,
    of_objective: Sequence[str] = (),
    of_sequence: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> Callable[..., None]:
    """The check of an op on tokens `first`, [N, B, T] or, without `objectives`, [B, T], with a mask
    and offsets. `alike` are of its shape, others one for each of its tokens without the objectives,
    for each sequence (of an objective), or one number.
    """

    def check(**given: Any) -> None:
        offsets = given.get("cu_seqlens")
        x = checks.tokens(first, given[first], given["mask"], offsets, objectives=objectives)
        shapes = dict.fromkeys(alike, tuple(x.shape))
        shapes |= dict.fromkeys(of_objective, tuple(x.shape[1:]))
        rows = (x.shape[0], checks.rows_of(x, offsets)) if objectives else (_walked(x, offsets),)
        shapes |= dict.fromkeys(of_sequence, rows)
        for name, shape in shapes.items():
            if given[name] is not None:
                checks.match(name, given[name], shape, first, x.device)
        for name in numbers:
            if given[name] is not None:
                checks.one_number(name, given[name], x.device)

    return check


def _walked(x: Tensor, cu_seqlens: Tensor | None) -> Any:
    """The sequences of [B, T] that kernels walk: none where T is 0, however large B is."""
    rows = checks.rows_of(x, cu_seqlens)
    return rows if cu_seqlens is not None else torch.sym_min(rows, x.numel())


def _token_values(**arguments: Any) -> None:
    """The values of an op on tokens. Its first argument of these names has all tokens of a ragged
    batch in its last dimension."""
    of_tokens = ("rewards", "advantages", "logp", "values")
    tokens: Tensor = next(arguments[name] for name in of_tokens if name in arguments)
    checks.token_values(arguments["mask"], arguments.get("cu_seqlens"), tokens.shape[-1])
    checks.normalizer_value(arguments.get("normalizer"))
    preference = arguments.get("preference")
    checks.preference_values(preference, by_sequence=by_sequence(preference))


gae = define(
    "gae",
    "(Tensor rewards, Tensor values, Tensor? mask, Tensor? last_values, Tensor? cu_seqlens,"
    " float gamma, float lam) -> (Tensor advantages, Tensor returns)",
    lambda rewards, values, last_values, **_: (
        _like(rewards, values, last_values),
        _like(rewards, values, last_values),
    ),
    _check_tokens("rewards", "values", of_sequence=["last_values"]),
    _token_values,
)

whiten_moments = define(
    "whiten_moments",
    "(Tensor advantages, Tensor? mask, Tensor? cu_seqlens) -> Tensor",
    lambda advantages, **_: advantages.new_empty((advantages.shape[0], 3), dtype=torch.float64),
    _check_tokens("advantages"),
    _token_values,
)


def _check_whiten_apply(advantages: Tensor, moments: Tensor, **given: Any) -> None:
    _check_tokens("advantages")(advantages=advantages, **given)
    steps = checks.floating("moments", moments).shape[0] if moments.dim() > 0 else 1
    checks.match(
        "moments", moments, (max(steps, 1), len(advantages), 3), "advantages", advantages.device
    )


whiten_apply = define(
    "whiten_apply",
    "(Tensor advantages, Tensor? mask, Tensor? cu_seqlens, Tensor moments, float eps) -> Tensor",
    lambda advantages, **_: _like(advantages),
    _check_whiten_apply,
    _token_values,
)


def _check_groups(rewards: Tensor, group_size: int, **_: Any) -> None:
    if checks.floating("rewards", rewards).dim() not in (1, 2):
        raise ValueError(f"rewards must have the shape [N, B] or [B], got {list(rewards.shape)}")
    length = rewards.shape[-1]
    if group_size < 1 or length % group_size != 0:
        raise ValueError(
            f"group_size must be positive and divide rewards' B = {length}, got {group_size}"
        )


group_normalize = define(
    "group_normalize",
    "(Tensor rewards, int group_size, float eps) -> Tensor",
    lambda rewards, **_: _like(rewards),
    _check_groups,
)

group_informative = define(
    "group_informative",
    "(Tensor rewards, int group_size) -> Tensor",
    lambda rewards, **_: rewards.new_empty(rewards.shape, dtype=torch.bool),
    _check_groups,
)


def _check_pama(advantages: Tensor, preference: Tensor | None, **given: Any) -> None:
    _check_tokens("advantages", of_objective=["log_ratio"])(advantages=advantages, **given)
    if not 0 <= given["reduction"] <= reference.BATCH:
        raise ValueError(f"reduction must be 0, 1, 2 or 3, got {given['reduction']}")
    n = advantages.shape[0]
    checks.preference(preference, n, advantages, checks.rows_of(advantages, given["cu_seqlens"]))
    if (statistics := given.get("statistics")) is None:
        return
    size = (statistics_size(n, given["reduction"]),)
    checks.match("statistics", statistics, size, "advantages", advantages.device)
    if statistics.dtype != torch.float64 or not statistics.is_contiguous():
        raise ValueError("statistics must be contiguous float64, as pama_statistics returns them")


def _fake_pama_statistics(
    advantages: Tensor, preference: Tensor | None, reduction: int, **_: Any
) -> Tensor:
    n = advantages.shape[0]
    size = statistics_size(n, reduction)
    if by_sequence(preference) and size > n:
        size += n
    return advantages.new_empty((size,), dtype=torch.float64)


pama_statistics = define(
    "pama_statistics",
    "(Tensor advantages, Tensor? mask, Tensor? log_ratio, Tensor? preference, Tensor? cu_seqlens,"
    " int reduction, float epsilon_low, float epsilon_high, bool noon, bool ratio_weighted)"
    " -> Tensor",
    _fake_pama_statistics,
    _check_pama,
    _token_values,
)


def statistics_size(n: int, reduction: int) -> int:
    """Of a preference [N] or none, or made so by `reference.of_own_tokens`."""
    if reduction == reference.GRAM:
        return n + n * n
    return 2 * n + 1 if reduction == reference.BATCH else n


def _fake_pama_combine(
    advantages: Tensor,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    reduction: int,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, tokens = advantages.shape[0], advantages.shape[1:]
    dtype = result_dtype(advantages, log_ratio)
    problems: tuple[int, ...] = ()
    if reduction == reference.TOKEN:
        problems = tuple(tokens)
    elif reduction == reference.SEQUENCE or by_sequence(preference):
        problems = (checks.rows_of(advantages, cu_seqlens),)
    optimum = (0,) if reduction == reference.GRAM else problems
    return (
        advantages.new_empty(tokens, dtype=dtype),
        advantages.new_empty((n, *problems), dtype=dtype),
        advantages.new_empty(optimum, dtype=dtype),
        advantages.new_empty((n,), dtype=torch.bool),
    )


pama_combine = define(
    "pama_combine",
    "(Tensor advantages, Tensor? mask, Tensor? log_ratio, Tensor? preference, Tensor? cu_seqlens,"
    " Tensor statistics, int reduction, float epsilon_low, float epsilon_high, bool noon,"
    " bool ratio_weighted) -> (Tensor advantages, Tensor weights, Tensor optimum, Tensor active)",
    _fake_pama_combine,
    _check_pama,
    _token_values,
)

# --- gradients ----------------------------------------------------------------------------------

# The n x P gradients come as one flat list, objective by objective; an empty tensor among others
# that are not stands for a gradient of zeros.


def _check_gradients(grads: list[Tensor], n: int, out: list[Tensor] | None = None) -> None:
    """What the compiled kernels refuse, in their words: csrc/tensors/gradient_list.h."""
    if n < 1 or len(grads) == 0 or len(grads) % n != 0:
        raise ValueError(
            f"grads must hold as many tensors for each of {n} objectives, got {len(grads)}"
        )
    count = len(grads) // n
    columns = [grads[p::count] for p in range(count)]
    likes = [lists.largest(column) for column in columns]
    present = [
        [like, *((i, x) for i, x in enumerate(column) if x.numel() or x.layout != torch.strided)]
        for column, like in zip(columns, likes, strict=True)
    ]
    lists.all_alike(present, lambda i, p: f"grads[{i}][{p}]")
    if out is None:
        return
    if len(out) != count:
        raise ValueError(f"out must have as many tensors as grads[0], {count}, got {len(out)}")
    for p, (first, like) in enumerate(likes):
        lists.alike(f"out[{p}]", out[p], f"grads[{first}][{p}]", like)


def _check_accumulate(gram: Tensor, grads: list[Tensor]) -> None:
    square = gram.dim() == 2 and gram.shape[0] == gram.shape[1]
    if not (square and gram.dtype == torch.float64 and gram.is_contiguous()):
        raise ValueError(
            f"gram must be a contiguous float64 matrix [n, n], got {gram.dtype} {list(gram.shape)}"
        )
    _check_gradients(grads, gram.shape[0])
    _check_beside("gram", gram, grads)


def _check_combine(
    grads: list[Tensor], weights: Tensor, out: list[Tensor] | None = None, **_: Any
) -> None:
    if checks.floating("weights", weights).dim() != 1:
        raise ValueError(f"weights must have the shape [n], got {list(weights.shape)}")
    _check_gradients(grads, weights.shape[0], out)
    _check_beside("weights", weights, grads)


def _check_beside(name: str, x: Tensor, grads: list[Tensor]) -> None:
    if x.device != grads[0].device:
        raise ValueError(f"{name} must be on {grads[0].device} like grads, got {x.device}")


def _empty_combination(grads: list[Tensor], n: int, p: int) -> Tensor:
    """Space for the p-th combined gradient, in the layout that the kernels walk."""
    mine = [x for x in grads[p :: len(grads) // n] if x.numel() > 0] or [grads[p]]
    if walked_in_place(mine) and not mine[0].is_contiguous():
        return mine[0].new_empty_strided(mine[0].shape, mine[0].stride())
    return mine[0].new_empty(mine[0].shape)


def _fake_combine(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    n = weights.shape[0]
    return [_empty_combination(grads, n, p) for p in range(len(grads) // n)]


gram = define(
    "gram",
    "(Tensor[] grads, int n) -> Tensor",
    lambda grads, n: grads[0].new_empty((n, n), dtype=torch.float64),
    _check_gradients,
)

gram_accumulate = define(
    "gram_accumulate",
    "(Tensor(a!) gram, Tensor[] grads) -> ()",
    lambda **_: None,
    _check_accumulate,
)

combine = define(
    "combine",
    "(Tensor[] grads, Tensor weights) -> Tensor[]",
    _fake_combine,
    _check_combine,
)

combine_into = define(
    "combine_into",
    "(Tensor(a!)[] out, Tensor[] grads, Tensor weights, bool accumulate) -> ()",
    lambda **_: None,
    _check_combine,
)

# --- weights ------------------------------------------------------------------------------------


def _check_problem(takes: reference.Takes) -> Callable[..., None]:
    """As check_problem in csrc/tensors/weights.h."""

    def check(
        gram: Tensor,
        vector: Tensor | None,
        options: Sequence[float],
        rtol: float | None = None,
    ) -> None:
        n = checks.gram("gram", gram).shape[-1]
        if len(options) != takes.options:
            raise ValueError(
                f"options must hold as many numbers as the op takes, {takes.options}, "
                f"got {len(options)}"
            )
        if rtol is not None:
            checks.nonnegative("rtol", rtol)
        size = n if takes.vector is None else takes.vector(n)
        if vector is None:
            if takes.vector is not None:
                raise ValueError("the op takes a vector beside gram, got None")
            return
        if not takes.preference and takes.vector is None:
            raise ValueError("the op takes no vector beside gram, got a tensor")
        name = "preference" if takes.preference else "the vector beside gram"
        if takes.preference or vector.dtype != torch.int64:
            checks.floating(name, vector)
        shapes: list[tuple[int, ...]] = [(size,), (*gram.shape[:-2], size)]
        if takes.vector and size == 1:
            shapes.append(())
        if vector.shape not in shapes:
            raise ValueError(
                f"{name} must have the shape [{size}], or that for each matrix, "
                f"got {list(vector.shape)}"
            )
        if vector.device != gram.device:
            raise ValueError(f"{name} must be on {gram.device} like gram, got {vector.device}")

    return check


def _matrix_values(gram: Tensor, **_: Any) -> None:
    checks.gram_matrix(gram)


def _preferred_values(gram: Tensor, vector: Tensor | None, **_: Any) -> None:
    checks.preference_values(vector)
    checks.gram_matrix(gram)


def _check_objective_values(values: Tensor, preference: Tensor | None) -> None:
    checks.objective_values("values", values)
    if preference is not None:
        checks.match("preference", preference, values.shape[-1:], "values", values.device)


# `vector`: what an op takes beside the matrix, a preference, weights, or a seed, as an int64 or as
# the bits of a float64 before target cosines; `options`: its scalars (reference.TAKES); `rtol`: the
# relative error of the matrix's entries, the eps of its dtype if None.
PROBLEM = "(Tensor gram, Tensor? vector, float[] options, float? rtol=None) -> Tensor"

duality_gap = define(
    "duality_gap",
    PROBLEM,
    lambda gram, **_: gram.new_empty(gram.shape[:-2]),
    _check_problem(reference.Takes(vector=lambda n: n)),
    _matrix_values,
)

# One op for each function in reference.WEIGHTINGS, under its name.
for _name in reference.WEIGHTINGS:
    globals()[_name] = define(
        _name,
        PROBLEM,
        lambda gram, **_: gram.new_empty(gram.shape[:-1]),
        _check_problem(reference.TAKES[_name]),
        _preferred_values if reference.TAKES[_name].preference else _matrix_values,
    )

pama_weights = define(
    "pama_weights",
    "(Tensor values, Tensor? preference) -> (Tensor weights, Tensor optimum)",
    lambda values, **_: (
        values.new_empty(values.shape),
        values.new_empty(values.shape[:-1]),
    ),
    _check_objective_values,
    lambda values, preference: checks.preference_values(preference),
)

# --- losses -------------------------------------------------------------------------------------


def _check_kl(
    logp: Tensor, ref_logp: Tensor, mask: Tensor | None, estimator: int, grad: Tensor | None = None
) -> None:
    if checks.floating("logp", logp).dim() not in (1, 2):
        raise ValueError(f"logp must have 1 or 2 dimensions, got {list(logp.shape)}")
    for name, x in ("ref_logp", ref_logp), ("grad", grad):
        if x is not None:
            checks.match(name, x, logp.shape, "logp", logp.device)
    if mask is not None:
        checks.token_mask(mask, logp.shape, "logp", logp.device)


kl_divergence = define(
    "kl_divergence",
    "(Tensor logp, Tensor ref_logp, Tensor? mask, int estimator) -> Tensor",
    lambda logp, ref_logp, **_: _like(logp, ref_logp),
    _check_kl,
    _token_values,
)

kl_divergence_backward = define(
    "kl_divergence_backward",
    "(Tensor grad, Tensor logp, Tensor ref_logp, Tensor? mask, int estimator) -> Tensor",
    lambda logp, ref_logp, **_: _like(logp, ref_logp),
    _check_kl,
    _token_values,
)


def _fake_ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    ref_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = result_dtype(logp, old_logp, advantages, ref_logp)
    return (
        logp.new_empty((), dtype=dtype),
        logp.new_empty((4,), dtype=dtype),
        logp.new_empty((_walked(logp, cu_seqlens),), dtype=torch.float64),
    )


ppo_loss = define(
    "ppo_loss",
    "(Tensor logp, Tensor old_logp, Tensor advantages, Tensor? mask, Tensor? ref_logp,"
    " Tensor? normalizer, Tensor? cu_seqlens, float epsilon_low, float epsilon_high,"
    " int aggregate, float divisor, float kl_coef, int estimator)"
    " -> (Tensor loss, Tensor statistics, Tensor row_weights)",
    _fake_ppo_loss,
    _check_tokens(
        "logp", "old_logp", "advantages", "ref_logp", objectives=False, numbers=["normalizer"]
    ),
    _token_values,
)

ppo_loss_backward = define(
    "ppo_loss_backward",
    "(Tensor grad, Tensor row_weights, Tensor logp, Tensor old_logp, Tensor advantages,"
    " Tensor? mask, Tensor? ref_logp, Tensor? cu_seqlens, float epsilon_low, float epsilon_high,"
    " float kl_coef, int estimator) -> Tensor",
    lambda logp, **_: _like(logp),
    _check_tokens(
        "logp", "old_logp", "advantages", "ref_logp",
        objectives=False, of_sequence=["row_weights"], numbers=["grad"],
    ),
    _token_values,
)  # fmt: skip

value_loss = define(
    "value_loss",
    "(Tensor values, Tensor returns, Tensor? mask, Tensor? old_values, Tensor? normalizer,"
    " Tensor? cu_seqlens, float clip, float divisor) -> (Tensor loss, Tensor scale)",
    lambda values, returns, old_values, **_: (
        values.new_empty((values.shape[0],), dtype=result_dtype(values, returns, old_values)),
        values.new_empty((), dtype=torch.float64),
    ),
    _check_tokens("values", "returns", "old_values", numbers=["normalizer"]),
    _token_values,
)


def _check_value_backward(grad: Tensor, values: Tensor, **given: Any) -> None:
    _check_tokens("values", "returns", "old_values", numbers=["scale"])(values=values, **given)
    checks.match("grad", grad, values.shape[:1], "values", values.device)


value_loss_backward = define(
    "value_loss_backward",
    "(Tensor grad, Tensor scale, Tensor values, Tensor returns, Tensor? mask, Tensor? old_values,"
    " Tensor? cu_seqlens, float clip) -> Tensor",
    lambda values, **_: _like(values),
    _check_value_backward,
    _token_values,
)
