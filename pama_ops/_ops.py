"""Every dispatcher op of the library: schema, plain-PyTorch default, fake kernel, autograd.

The default (`reference/`, rounded to the op's dtypes) serves any device without a compiled
kernel; csrc/cpu and csrc/cuda override it once loaded. The public functions call the ops
by the names they have here, after checking their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._higher_order_ops import effects

from pama_ops import _checks as checks
from pama_ops import _forward_mode as forward_mode
from pama_ops import reference
from pama_ops.reference.gradients import walked_in_place

NAMESPACE = "pama_ops"
SCHEMAS: dict[str, str] = {}
DEFAULTS: dict[str, Callable[..., Any]] = {}
REFUSALS: dict[str, tuple[list[str], Callable[..., None], Callable[..., None]]] = {}
_library = torch.library.Library(NAMESPACE, "DEF")


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest floating dtype among the arguments, at least float32."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def _define(
    name: str,
    schema: str,
    default: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None] = lambda **_: None,
    values: Callable[..., None] = lambda **_: None,
) -> Any:
    """Define an op whose default rounds the float64 reference to the dtypes the fake declares.

    Given arguments by name, `check` raises for those that the compiled kernels refuse, and `values`
    for values of tensors that a CPU's kernels refuse; a GPU would be waited for.
    """

    def declare(*args: Any) -> Any:
        check(**dict(zip(names, args, strict=False)))
        return fake(*args)

    def rounded(*args: Any) -> Any:
        with torch.no_grad():
            declared = declare(*args)
            if all(x.device.type == "cpu" for x in args if isinstance(x, Tensor)):
                values(**dict(zip(names, args, strict=False)))
            results = default(*args)
        if results is None:  # the op writes into its arguments
            return None
        if isinstance(results, Tensor):
            return _fitted(results, declared)
        if isinstance(results, list):
            return [d.copy_(r) for r, d in zip(results, declared, strict=True)]
        return tuple(_fitted(r, d) for r, d in zip(results, declared, strict=True))

    SCHEMAS[name], DEFAULTS[name] = schema, rounded
    _library.define(name + schema)
    _library.impl(name, rounded, "CompositeExplicitAutograd")
    for backend in "NestedTensorCPU", "NestedTensorCUDA":  # which no alias holds; refused by name
        _library.impl(name, rounded, backend)
    torch.library.register_fake(f"{NAMESPACE}::{name}", declare)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    names = [argument.name for argument in op._schema.arguments]
    REFUSALS[name] = names, check, values
    if schema.startswith("(Tensor(a!)"):
        _library.impl(name, _writer(op), "ADInplaceOrView", with_keyset=True)
    return op


def _writer(op: Any) -> Callable[..., None]:
    """The kernel of an op that writes its first argument, above its kernels for devices."""

    def write(keys: Any, written: Tensor | list[Tensor], *args: Any) -> None:
        tensors = _writable(op, written)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, written, *args)
        torch.autograd.graph.increment_version(tensors)

    return write


def _writable(op: Any, written: Tensor | list[Tensor]) -> list[Tensor]:
    """What has a version to raise, so that autograd finds what it saved to be overwritten."""
    tensors = [written] if isinstance(written, Tensor) else written
    for p, x in enumerate(tensors):
        if x.is_inference():
            at = "" if isinstance(written, Tensor) else f"[{p}]"
            checks.inference_writable(f"{op._schema.arguments[0].name}{at}")
    return [x for x in tensors if not x.is_inference()]


def write(op: Any, written: Tensor | list[Tensor], *args: Any) -> None:
    """Call an op that writes its first argument, but for its kernel above those of devices, through
    which thousands of tensors would go to Python and back."""
    if torch.compiler.is_compiling():
        op(written, *args)
        return
    tensors = _writable(op, written)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        of_lists(op, written, *args)
    torch.autograd.graph.increment_version(tensors)


def call(op: Any, *args: Any, check_values: bool = False) -> Any:
    """Call an op for a public function, which leaves to it what it can refuse by itself.

    Kernels behind torch's stable ABI raise no TypeError, and torch says in its own words what is no
    tensor: what an op refused is asked again of its check, which names it. Beforehand where
    `check_values` wants values asked too, which a GPU's kernels leave out, and where a program is
    compiled.
    """
    if checks.flag("check_values", check_values) or torch.compiler.is_compiling():
        names, check, values = REFUSALS[op._opname]
        given = dict(zip(names, args, strict=False))
        check(**given)
        if check_values:
            values(**given)
        return op(*args)
    return of_lists(op, *args)


def of_lists(op: Any, *args: Any) -> Any:
    """`call` on lists of gradients, which were checked before where a program is compiled."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except (RuntimeError, TypeError, ValueError) as error:
        refusal = error
    names, check, _ = REFUSALS[op._opname]
    check(**dict(zip(names, args, strict=False)))
    raise refusal


def _fitted(result: Tensor, declared: Tensor) -> Tensor:
    """A definition's result in the dtype, and of arrays without tokens the shape, declared."""
    if result.shape != declared.shape and result.numel() == 0:  # rows without tokens were left out
        return declared.zero_()
    return result.to(declared.dtype).contiguous()


# --- refusals -----------------------------------------------------------------------------------


def _require(good: Tensor, message: str) -> None:
    if not bool(good.all()):
        raise ValueError(message)


# A check of values in a program that is compiled: there no branch may depend on a tensor. It
# synchronises. That it has an effect keeps it in the program, where nothing takes a result of it.
require = _define(
    "require", "(Tensor good, str message) -> ()", _require, lambda good, message: None
)
effects._register_effectful_op(require, effects._EffectType.ORDERED)


def _not_differentiable(name: str) -> str:
    return (
        f"pama_ops.{name} is not differentiable: its result is a constant of the optimisation. "
        "Detach its inputs, or use its result where no gradient flows."
    )


def _refuse_gradient(grad: Tensor, name: str) -> Tensor:
    flows = (grad != 0).any()  # NaN is not 0
    if grad.device.type == "cpu":
        if bool(flows):
            raise RuntimeError(_not_differentiable(name))
    else:  # without waiting for the GPU, which a captured graph could not
        torch._assert_async(~flows, _not_differentiable(name))
    return grad.new_zeros(())


refuse_gradient = _define(
    "refuse_gradient",
    "(Tensor grad, str name) -> Tensor",
    _refuse_gradient,
    lambda grad, name: grad.new_empty(()),
)

constant = _define(
    "constant",
    "(Tensor result, Tensor[] inputs, str name) -> Tensor",
    lambda result, inputs, name: result.clone(),
    lambda result, inputs, name: result.new_empty(result.shape),
)

Alike = list[tuple[torch.Size, torch.dtype]]


def alike(tensors: Sequence[Tensor]) -> Alike:
    """What the gradients of tensors look like."""
    return [(x.shape, x.dtype) for x in tensors]


def refused(grad: Tensor, name: str, inputs: Alike) -> list[Tensor]:
    """Raise, as a gradient has come to a constant.

    Where a program is traced it need not have: its backward is traced for all of its results, and
    gets zeros for those that nobody differentiates. Then the op that finds out is traced, and what
    it returns becomes the zeros that the inputs get.
    """
    if type(grad) in (Tensor, torch.nn.Parameter):
        raise RuntimeError(_not_differentiable(name))
    zero = refuse_gradient(grad, name)
    return [zero.to(dtype).expand(shape).contiguous() for shape, dtype in inputs]


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
        x, rows = checks.tokens(first, given[first], given["mask"], offsets, objectives=objectives)
        if offsets is None and not objectives:
            rows = (torch.sym_min(x.shape[0], x.numel()),)  # none where T is 0, however large B is
        shapes = dict.fromkeys(alike, tuple(x.shape))
        shapes |= dict.fromkeys(of_objective, tuple(x.shape[1:]))
        shapes |= dict.fromkeys(of_sequence, (*x.shape[:1], *rows) if objectives else rows)
        for name, shape in shapes.items():
            if given[name] is not None:
                checks.match(name, given[name], shape, first, x.device)
        for name in numbers:
            if given[name] is not None:
                checks.one_number(name, given[name], x.device)

    return check


def _token_values(**arguments: Any) -> None:
    """Of an op on tokens: one of its arguments that have them all in the last dimension."""
    of_tokens = ("rewards", "x", "advantages", "logp", "values")
    tokens: Tensor = next(arguments[name] for name in of_tokens if name in arguments)
    checks.token_values(arguments["mask"], arguments.get("cu_seqlens"), tokens.shape[-1])
    checks.normalizer_value(arguments.get("normalizer"))
    preference = arguments.get("preference")
    checks.preference_values(preference, by_sequence=_by_sequence(preference))


gae = _define(
    "gae",
    "(Tensor rewards, Tensor values, Tensor? mask, Tensor? last_values, Tensor? cu_seqlens,"
    " float gamma, float lam) -> (Tensor advantages, Tensor returns)",
    reference.gae,
    lambda rewards, values, mask, last_values, cu_seqlens, gamma, lam: tuple(
        rewards.new_empty(rewards.shape, dtype=result_dtype(rewards, values, last_values))
        for _ in range(2)
    ),
    _check_tokens("rewards", "values", of_sequence=["last_values"]),
    _token_values,
)

whiten_moments = _define(
    "whiten_moments",
    "(Tensor x, Tensor? mask, Tensor? cu_seqlens) -> Tensor",
    reference.whiten_moments,
    lambda x, mask, cu_seqlens: x.new_empty((x.shape[0], 3), dtype=torch.float64),
    _check_tokens("x"),
    _token_values,
)


def _check_whiten_apply(x: Tensor, moments: Tensor, **given: Any) -> None:
    _check_tokens("x")(x=x, **given)
    steps = checks.floating("moments", moments).shape[0] if moments.dim() > 0 else 1
    checks.match("moments", moments, (max(steps, 1), x.shape[0], 3), "x", x.device)


whiten_apply = _define(
    "whiten_apply",
    "(Tensor x, Tensor? mask, Tensor? cu_seqlens, Tensor moments, float eps) -> Tensor",
    reference.whiten_apply,
    lambda x, mask, cu_seqlens, moments, eps: x.new_empty(x.shape, dtype=result_dtype(x)),
    _check_whiten_apply,
    _token_values,
)


def _check_groups(rewards: Tensor, group_size: int, **_: Any) -> None:
    checks.rows("rewards", rewards)
    length = rewards.shape[-1]
    if group_size < 1 or length % group_size != 0:
        raise ValueError(f"group_size must be positive and divide {length}, got {group_size}")


group_normalize = _define(
    "group_normalize",
    "(Tensor rewards, int group_size, float eps) -> Tensor",
    reference.group_normalize,
    lambda rewards, group_size, eps: rewards.new_empty(rewards.shape, dtype=result_dtype(rewards)),
    _check_groups,
)

group_informative = _define(
    "group_informative",
    "(Tensor rewards, int group_size) -> Tensor",
    reference.group_informative,
    lambda rewards, group_size: rewards.new_empty(rewards.shape, dtype=torch.bool),
    _check_groups,
)


def _by_sequence(preference: Tensor | None) -> bool:
    """Whether a preference is [N, B]."""
    return preference is not None and preference.dim() == 2


def _check_pama(advantages: Tensor, preference: Tensor | None, **given: Any) -> None:
    _check_tokens("advantages", of_objective=["log_ratio"])(advantages=advantages, **given)
    if not 0 <= given["reduction"] <= reference.BATCH:
        raise ValueError(f"reduction must be 0, 1, 2 or 3, got {given['reduction']}")
    offsets, n = given["cu_seqlens"], advantages.shape[0]
    rows = advantages.shape[1] if offsets is None else offsets.shape[0] - 1
    checks.preference(preference, n, advantages, rows)
    if (statistics := given.get("statistics")) is None:
        return
    size = (statistics_size(n, given["reduction"]),)
    checks.match("statistics", statistics, size, "advantages", advantages.device)
    if statistics.dtype != torch.float64 or not statistics.is_contiguous():
        raise ValueError("statistics must be contiguous float64, as pama_statistics returns them")


def _fake_pama_statistics(
    advantages: Tensor,
    mask: Tensor | None,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    reduction: int,
    *_: Any,
) -> Tensor:
    n = advantages.shape[0]
    size = statistics_size(n, reduction)
    if _by_sequence(preference) and size > n:
        size += n
    return advantages.new_empty((size,), dtype=torch.float64)


pama_statistics = _define(
    "pama_statistics",
    "(Tensor advantages, Tensor? mask, Tensor? log_ratio, Tensor? preference, Tensor? cu_seqlens,"
    " int reduction, float epsilon_low, float epsilon_high, bool noon, bool ratio_weighted)"
    " -> Tensor",
    reference.pama_statistics,
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
    mask: Tensor | None,
    log_ratio: Tensor | None,
    preference: Tensor | None,
    cu_seqlens: Tensor | None,
    statistics: Tensor,
    reduction: int,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, tokens = advantages.shape[0], advantages.shape[1:]
    rows = advantages.shape[1] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = result_dtype(advantages, log_ratio)
    problems: tuple[int, ...] = ()
    if reduction == reference.TOKEN:
        problems = tuple(tokens)
    elif reduction == reference.SEQUENCE or _by_sequence(preference):
        problems = (rows,)
    optimum = (0,) if reduction == reference.GRAM else problems
    return (
        advantages.new_empty(tokens, dtype=dtype),
        advantages.new_empty((n, *problems), dtype=dtype),
        advantages.new_empty(optimum, dtype=dtype),
        advantages.new_empty((n,), dtype=torch.bool),
    )


pama_combine = _define(
    "pama_combine",
    "(Tensor advantages, Tensor? mask, Tensor? log_ratio, Tensor? preference, Tensor? cu_seqlens,"
    " Tensor statistics, int reduction, float epsilon_low, float epsilon_high, bool noon,"
    " bool ratio_weighted) -> (Tensor advantages, Tensor weights, Tensor optimum, Tensor active)",
    reference.pama_combine,
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
    likes = [checks.largest(column) for column in columns]
    present = [
        [like, *((i, x) for i, x in enumerate(column) if x.numel() or x.layout != torch.strided)]
        for column, like in zip(columns, likes, strict=True)
    ]
    checks.all_alike(present, lambda i, p: f"grads[{i}][{p}]")
    if out is None:
        return
    if len(out) != count:
        raise ValueError(f"out must have as many tensors as grads[0], {count}, got {len(out)}")
    for p, (first, like) in enumerate(likes):
        checks.alike(f"out[{p}]", out[p], f"grads[{first}][{p}]", like)


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


gram = _define(
    "gram",
    "(Tensor[] grads, int n) -> Tensor",
    reference.gram,
    lambda grads, n: grads[0].new_empty((n, n), dtype=torch.float64),
    _check_gradients,
)

gram_accumulate = _define(
    "gram_accumulate",
    "(Tensor(a!) gram, Tensor[] grads) -> ()",
    reference.gram_accumulate,
    lambda gram, grads: None,
    _check_accumulate,
)

combine = _define(
    "combine",
    "(Tensor[] grads, Tensor weights) -> Tensor[]",
    reference.combine,
    _fake_combine,
    _check_combine,
)

combine_into = _define(
    "combine_into",
    "(Tensor(a!)[] out, Tensor[] grads, Tensor weights, bool accumulate) -> ()",
    reference.combine_into,
    lambda out, grads, weights, accumulate: None,
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


# `vector`: what an op takes beside the matrix, a preference, weights, or random numbers, of which a
# seed is an int64 or travels as the bits of a float64; `options`: its scalars (reference.TAKES);
# `rtol`: the relative error of the matrix's entries, the eps of its dtype if None.
PROBLEM = "(Tensor gram, Tensor? vector, float[] options, float? rtol=None) -> Tensor"

duality_gap = _define(
    "duality_gap",
    PROBLEM,
    reference.duality_gap,
    lambda gram, vector, options, rtol=None: gram.new_empty(gram.shape[:-2]),
    _check_problem(reference.Takes(vector=lambda n: n)),
    _matrix_values,
)

# One op for each function in reference.WEIGHTINGS, under its name.
for _name, _default in reference.WEIGHTINGS.items():
    globals()[_name] = _define(
        _name,
        PROBLEM,
        _default,
        lambda gram, vector, options, rtol=None: gram.new_empty(gram.shape[:-1]),
        _check_problem(reference.TAKES[_name]),
        _preferred_values if reference.TAKES[_name].preference else _matrix_values,
    )

pama_weights = _define(
    "pama_weights",
    "(Tensor values, Tensor? preference) -> (Tensor weights, Tensor optimum)",
    reference.pama_weights,
    lambda values, preference: (
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
    checks.rows("logp", logp)
    for name, x in ("ref_logp", ref_logp), ("grad", grad):
        if x is not None:
            checks.match(name, x, logp.shape, "logp", logp.device)
    if mask is not None:
        checks.token_mask(mask, logp.shape, "logp", logp.device)


kl_divergence = _define(
    "kl_divergence",
    "(Tensor logp, Tensor ref_logp, Tensor? mask, int estimator) -> Tensor",
    reference.kl_divergence,
    lambda logp, ref_logp, mask, estimator: logp.new_empty(
        logp.shape, dtype=result_dtype(logp, ref_logp)
    ),
    _check_kl,
    _token_values,
)

kl_divergence_backward = _define(
    "kl_divergence_backward",
    "(Tensor grad, Tensor logp, Tensor ref_logp, Tensor? mask, int estimator) -> Tensor",
    reference.kl_divergence_backward,
    lambda grad, logp, ref_logp, mask, estimator: logp.new_empty(
        logp.shape, dtype=result_dtype(logp, ref_logp)
    ),
    _check_kl,
    _token_values,
)

ppo_loss = _define(
    "ppo_loss",
    "(Tensor logp, Tensor old_logp, Tensor advantages, Tensor? mask, Tensor? ref_logp,"
    " Tensor? normalizer, Tensor? cu_seqlens, float epsilon_low, float epsilon_high,"
    " int aggregate, float divisor, float kl_coef, int estimator)"
    " -> (Tensor loss, Tensor statistics, Tensor row_weights)",
    reference.ppo_loss,
    lambda logp, old_logp, advantages, mask, ref_logp, normalizer, cu_seqlens, *_: (
        logp.new_empty((), dtype=result_dtype(logp, old_logp, advantages, ref_logp)),
        logp.new_empty((4,), dtype=result_dtype(logp, old_logp, advantages, ref_logp)),
        # None where T is 0, however large B is.
        logp.new_empty(
            (
                torch.sym_min(logp.shape[0], logp.numel())
                if cu_seqlens is None
                else cu_seqlens.shape[0] - 1,
            ),
            dtype=torch.float64,
        ),
    ),
    _check_tokens(
        "logp", "old_logp", "advantages", "ref_logp", objectives=False, numbers=["normalizer"]
    ),
    _token_values,
)

ppo_loss_backward = _define(
    "ppo_loss_backward",
    "(Tensor grad, Tensor row_weights, Tensor logp, Tensor old_logp, Tensor advantages,"
    " Tensor? mask, Tensor? ref_logp, Tensor? cu_seqlens, float epsilon_low, float epsilon_high,"
    " float kl_coef, int estimator) -> Tensor",
    reference.ppo_loss_backward,
    lambda grad, row_weights, logp, *_: logp.new_empty(logp.shape, dtype=result_dtype(logp)),
    _check_tokens(
        "logp", "old_logp", "advantages", "ref_logp",
        objectives=False, of_sequence=["row_weights"], numbers=["grad"],
    ),
    _token_values,
)  # fmt: skip

value_loss = _define(
    "value_loss",
    "(Tensor values, Tensor returns, Tensor? mask, Tensor? old_values, Tensor? normalizer,"
    " Tensor? cu_seqlens, float clip, float divisor) -> (Tensor loss, Tensor scale)",
    reference.value_loss,
    lambda values, returns, mask, old_values, *_: (
        values.new_empty((values.shape[0],), dtype=result_dtype(values, returns, old_values)),
        values.new_empty((), dtype=torch.float64),
    ),
    _check_tokens("values", "returns", "old_values", numbers=["normalizer"]),
    _token_values,
)


def _check_value_backward(grad: Tensor, values: Tensor, **given: Any) -> None:
    _check_tokens("values", "returns", "old_values", numbers=["scale"])(values=values, **given)
    checks.match("grad", grad, values.shape[:1], "values", values.device)


value_loss_backward = _define(
    "value_loss_backward",
    "(Tensor grad, Tensor scale, Tensor values, Tensor returns, Tensor? mask, Tensor? old_values,"
    " Tensor? cu_seqlens, float clip) -> Tensor",
    reference.value_loss_backward,
    lambda grad, scale, values, *_: values.new_empty(values.shape, dtype=result_dtype(values)),
    _check_value_backward,
    _token_values,
)

# --- autograd -----------------------------------------------------------------------------------


def _saved(x: Tensor) -> Tensor:
    """What autograd can save: not a tensor made under torch.inference_mode(), which may be written
    to without a trace, but a copy.
    """
    return x.clone() if x.is_inference() else x


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save all of an op's arguments, and of its results those after the first."""
    extra = output[1:] if isinstance(output, tuple) else ()
    ctx.save_for_backward(*(_saved(x) for x in (*inputs, *extra) if isinstance(x, Tensor)))
    ctx.plan = [None if isinstance(x, Tensor) else (x,) for x in (*inputs, *extra)]
    ctx.set_materialize_grads(False)


def _kept(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if entry is None else entry[0] for entry in ctx.plan]


def _kl_divergence_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    logp, ref_logp, mask, estimator = _kept(ctx)
    forward_mode.refuse("kl_divergence's gradient", grad, logp, ref_logp)
    slope = kl_divergence_backward(grad, logp, ref_logp, mask, estimator)
    ours = slope.to(logp.dtype) if ctx.needs_input_grad[0] else None
    theirs = slope.neg().to(ref_logp.dtype) if ctx.needs_input_grad[1] else None
    return ours, theirs, None, None


def _ppo_loss_backward(
    ctx: Any, grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    constants = (None,) * 12
    if grad is None or not ctx.needs_input_grad[0]:
        return None, *constants
    logp, old_logp, advantages, mask, ref_logp, _normalizer, cu_seqlens, *options = _kept(ctx)
    (
        epsilon_low,
        epsilon_high,
        _aggregate,
        _divisor,
        kl_coef,
        estimator,
        _statistics,
        row_weights,
    ) = options
    tokens = (logp, old_logp, advantages, mask, ref_logp, cu_seqlens)
    forward_mode.refuse("ppo_loss's gradient", grad, row_weights, *tokens)
    slope = ppo_loss_backward(
        grad, row_weights, *tokens, epsilon_low, epsilon_high, kl_coef, estimator
    )
    return slope.to(logp.dtype), *constants


def _value_loss_backward(
    ctx: Any, grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    constants = (None,) * 7
    if grad is None or not ctx.needs_input_grad[0]:
        return None, *constants
    values, returns, mask, old_values, _n, cu, clip, _d, scale = _kept(ctx)
    forward_mode.refuse("value_loss's gradient", grad, scale, values, returns, old_values)
    slope = value_loss_backward(grad, scale, values, returns, mask, old_values, cu, clip)
    return slope.to(values.dtype), *constants


def _gram_backward(ctx: Any, grad: Tensor | None) -> tuple[list[Tensor | None] | None, None]:
    """(S + Sᵀ) J, row by row."""
    if grad is None:
        return None, None
    *grads, n = _kept_list(ctx)
    forward_mode.refuse("gram's gradient", grad, *grads)
    rows = grad + grad.mT
    result: list[Tensor | None] = []
    for i in range(n):
        mine = grads[i * (len(grads) // n) : (i + 1) * (len(grads) // n)]
        if any(x.requires_grad for x in mine):
            combined = combine(grads, rows[i])
            result += [c if x.requires_grad else None for c, x in zip(combined, mine, strict=True)]
        else:
            result += [None] * len(mine)
    return result, None


def _combine_backward(
    ctx: Any, slopes: list[Tensor | None]
) -> tuple[list[Tensor | None] | None, Tensor | None]:
    *grads, weights = _kept_list(ctx)
    forward_mode.refuse("combine's gradient", weights, *grads, *slopes)
    n, count = weights.shape[0], len(grads) // weights.shape[0]
    given = [p for p in range(count) if slopes[p] is not None]
    if not given:
        return None, None
    slope = [cast("Tensor", slopes[p]) for p in given]
    result: list[Tensor | None] = [None] * len(grads)
    for i in range(n):
        if any(grads[i * count + p].requires_grad for p in given):
            scaled = combine(slope, weights[i : i + 1])
            for p, x in zip(given, scaled, strict=True):
                if grads[i * count + p].requires_grad:
                    result[i * count + p] = x
    if not weights.requires_grad:
        return result, None
    # Row 0 of the Gram matrix of the slope beside the gradients: ⟨slope, g_i⟩.
    beside = slope + [grads[i * count + p] for i in range(n) for p in given]
    return result, gram(beside, n + 1)[0, 1:].to(weights.dtype)


def _keep_list(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the list of gradients and the argument after it."""
    grads, last = inputs
    tensors = (*grads, last) if isinstance(last, Tensor) else tuple(grads)
    ctx.save_for_backward(*map(_saved, tensors))
    ctx.last = None if isinstance(last, Tensor) else last


def _kept_list(ctx: Any) -> list[Any]:
    return [*ctx.saved_tensors] if ctx.last is None else [*ctx.saved_tensors, ctx.last]


def _refuse_again(name: str) -> Callable[..., Any]:
    def backward(_ctx: Any, *_grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"pama_ops.{name} can be differentiated once, not twice: its gradient has none. "
            "Detach that gradient, or write the formula in plain PyTorch."
        )

    return backward


def _keep_constant(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, ctx.name = inputs
    ctx.alike = alike(tensors)
    ctx.set_materialize_grads(False)


def _constant_backward(ctx: Any, grad: Tensor | None) -> tuple[None, list[Any] | None, None]:
    if grad is None:
        return None, [None] * len(ctx.alike), None
    return None, list(refused(grad, ctx.name, ctx.alike)), None


def register_autograd(namespace: str) -> None:
    """Make the losses of a namespace differentiable once, and `gram` and `combine` without end.

    The tests have namespaces of their own.
    """
    for name, backward in {
        "kl_divergence": _kl_divergence_backward,
        "ppo_loss": _ppo_loss_backward,
        "value_loss": _value_loss_backward,
    }.items():
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=_keep)
        torch.library.register_autograd(f"{namespace}::{name}_backward", _refuse_again(name))
    of_lists: dict[str, Callable[..., Any]] = {"gram": _gram_backward, "combine": _combine_backward}
    for name, slopes in of_lists.items():
        torch.library.register_autograd(f"{namespace}::{name}", slopes, setup_context=_keep_list)
    torch.library.register_autograd(
        f"{namespace}::constant", _constant_backward, setup_context=_keep_constant
    )


register_autograd(NAMESPACE)
