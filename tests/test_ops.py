"""The dispatcher ops, reached without the public functions that check their arguments."""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from collections.abc import Iterator

import pytest
import torch
from op_calls import Call, calls, run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

import pama_ops as po
from pama_ops import _dispatch, _ops

# Of these a narrower one is a smaller problem.
ALONE = {"whiten_moments", "pama_weights"}


def ops_of(request):
    if request.param == "cpu":
        return torch.ops.pama_ops
    request.getfixturevalue(f"{request.param}_library")
    return getattr(torch.ops, f"pama_ops_{request.param}")


@pytest.fixture(params=["cpu", "emulated", "default"])
def ops(request):
    return ops_of(request)


def spoilt(call: Call) -> Iterator[tuple[str, Call]]:
    """The call with one of its tensors short of what the others say, or of integers."""
    name, arguments = call
    for k, x in enumerate(tree_leaves(arguments)):
        if not isinstance(x, Tensor) or x.numel() == 0:
            continue
        if x.dtype == torch.int64 and x.dim() == 1:  # offsets: fewer of them are fewer sequences
            continue
        others = sum(isinstance(y, Tensor) for y in tree_leaves(arguments)) > 1
        if x.dim() and (others or name not in ALONE):
            yield f"{name}: short {k}", (name, replaced(arguments, x, x[..., : x.shape[-1] - 1]))
        if x.dim() and x.dtype.is_floating_point:
            yield f"{name}: integer {k}", (name, replaced(arguments, x, x.to(torch.int8)))


def replaced(arguments: tuple, old: Tensor, new: Tensor) -> tuple:
    return tree_map_only(Tensor, lambda x: new if x is old else x, arguments)


def test_ops_refuse_what_would_make_them_read_past_an_end(ops):
    missed = []
    for call in calls():
        if call[0] == "refuse_gradient":
            continue
        for what, (name, arguments) in spoilt(call):
            try:
                run(getattr(ops, name), arguments)
            except (ValueError, TypeError):
                continue
            missed.append(what)
    assert missed == []


SOLVERS = sorted({*po.reference.WEIGHTINGS, "duality_gap"})


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_count_their_options_and_miss_no_vector(ops, name):
    """Neither is read past its end."""
    op = getattr(ops, name)
    arguments = next(arguments for called, arguments in calls() if called == name)
    gram, vector, options = arguments
    op(*arguments)
    for wrong in (options[:-1], [*options, 1.0]):
        if wrong != options:
            with pytest.raises(ValueError, match="options must hold"):
                op(gram, vector, wrong)
    if vector is not None:
        with pytest.raises(ValueError, match="vector beside gram"):
            op(gram, None, options)
        with pytest.raises(ValueError, match="vector beside gram"):
            op(gram, vector[:3], options)
    for bad in (gram[0, 0], gram[..., :2], gram[..., :0, :0], gram.to(torch.cfloat)):
        with pytest.raises((TypeError, ValueError), match="gram must"):
            op(bad, vector, options)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rtol must be nonnegative and finite"):
            op(*arguments, bad)
    if vector is None:
        with pytest.raises(ValueError, match=r"must have the shape|takes no vector"):
            op(gram, torch.ones(2, dtype=torch.float64), options)
    if name != "duality_gap" and po.reference.TAKES[name].preference:
        n = gram.shape[-1]
        for bad in (torch.tensor(1.0), torch.ones(1), torch.ones(n + 1), torch.ones(n).long()):
            with pytest.raises((TypeError, ValueError), match="preference must"):
                op(gram, bad, options)


@pytest.mark.parametrize("name", [x for x, takes in po.reference.TAKES.items() if takes.options])
def test_solvers_end_whatever_their_options(ops, name):
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.5, -1.0], [0.0, 0.0]]).double()
    for n in (4, 3, 2, 1):
        gram = po.gram(list(rows[:n]))
        for option in (torch.nan, torch.inf, -torch.inf, -1.0, 0.0, 5e-324, 1e308, 0.5):
            assert getattr(ops, name)(gram, None, [option]).shape == (n,)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_fairgrad_of_no_alpha_is_nan_and_ends(ops, alpha):
    assert bool(ops.fairgrad(torch.eye(3), None, [alpha]).isnan().all())


def test_ops_refuse_numbers_that_their_loops_rely_on(ops):
    x = torch.ones(2, 4)
    for size in (0, -1, 3):
        with pytest.raises(
            ValueError, match="group_size must be positive and divide rewards' B = 4"
        ):
            ops.group_normalize(x, size, 1e-8)
    for n in (0, -1, 2):
        with pytest.raises(ValueError, match="grads must hold"):
            ops.gram([x, x, x], n)
    with pytest.raises(ValueError, match="reduction must be"):
        ops.pama_statistics(x[None], None, None, None, None, 4, 0.2, 0.2, True, False)


def test_offsets_may_have_any_stride(backend):
    x = torch.arange(6.0, device=backend.device).expand(2, 6)
    cu = torch.tensor([0, 9, 4, 9, 6], device=backend.device)
    got = _ops.gae(x, x, None, None, cu[::2], 0.9, 0.9)
    want = _ops.gae(x, x, None, None, cu[::2].clone(), 0.9, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X = torch.ones(2, 3)
# The second gradient, and what each implementation says of it, or of the same as `out`.
NOT_ALIKE = {
    "shape": (X.mT, "must have the shape [2, 3] of grads[0][0], got [3, 2]"),
    "dtype": (X.double(), "must have the dtype torch.float32 of grads[0][0], got torch.float64"),
    "layout": (X.to_sparse(), "must be a dense tensor, got torch.sparse_coo"),
    "device": (X.to("meta"), "must be on cpu like grads[0][0], got meta"),
}


@pytest.mark.parametrize("what", NOT_ALIKE)
def test_lists_not_alike_are_refused_by_every_implementation_in_the_same_words(backend, what):
    """The public functions leave this to the ops."""
    if backend.name == "emulated" and what in ("layout", "device"):
        pytest.skip("goes to another implementation")
    other, words = NOT_ALIKE[what]
    w, matrix = torch.ones(2), torch.zeros(2, 2, dtype=torch.float64)
    for at, refusing in (
        ("grads[1][0]", lambda: _ops.gram([X, other], 2)),
        ("grads[1][0]", lambda: _ops.gram_accumulate(matrix, [X, other])),
        ("grads[1][0]", lambda: _ops.combine([X, other], w)),
        ("grads[1][0]", lambda: _ops.combine_into([X.clone()], [X, other], w, False)),
        ("out[0]", lambda: _ops.combine_into([other], [X, X], w, False)),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(f'{at} {words}')}$"):
            refusing()


@pytest.mark.parametrize("rows", [2, 0])
def test_gradients_of_integers_are_refused_by_every_implementation(backend, rows):
    grads = [X[:rows].int()] * 2
    words = r"^grads\[0\]\[0\] must have a floating-point dtype, got torch.int32$"
    w, matrix = torch.ones(2), torch.zeros(2, 2, dtype=torch.float64)
    for refusing in (
        lambda: _ops.gram(grads, 2),
        lambda: _ops.gram_accumulate(matrix, grads),
        lambda: _ops.combine(grads, w),
        lambda: _ops.combine_into(grads[1:], grads, w, False),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            refusing()


def test_an_output_for_each_parameter_is_asked_for_by_every_implementation(backend):
    words = r"^out must have as many tensors as grads\[0\], 1, got 0$"
    with pytest.raises(ValueError, match=words):
        _ops.combine_into([], [X, X], torch.ones(2), False)


def test_what_is_beside_a_list_must_lie_where_it_does():
    """Asked of the defaults, and so of fake tensors: the other device may have no kernel here."""
    matrix = torch.zeros(2, 2, dtype=torch.float64, device="meta")
    for name, arguments in (
        ("combine", ([X, X], torch.ones(2, device="meta"))),
        ("combine_into", ([X.clone()], [X, X], torch.ones(2, device="meta"), False)),
        ("gram_accumulate", (matrix, [X, X])),
    ):
        with pytest.raises(ValueError, match="must be on cpu like grads, got meta"):
            _dispatch.DEFAULTS[name](*arguments)


def test_lists_not_alike_are_refused_while_a_program_is_traced():
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.ones(2, 3))
        for other in (x.mT, x.double()):
            with pytest.raises((TypeError, ValueError), match=r"^grads\[1\]\[0\] must have the"):
                _ops.gram([x, other], 2)
            with pytest.raises((TypeError, ValueError), match=r"^out\[0\] must have the"):
                _ops.combine_into([other], [x, x], torch.ones(2), False)


def out_of_memory(*_: Tensor) -> None:
    raise torch.OutOfMemoryError


out_of_memory._opname = "group_informative"  # whose checks find nothing wrong


@pytest.mark.parametrize(
    "function",
    [
        lambda x: po.gae(x, x[..., 1:]),  # by the kernel, and its check
        lambda x: po.gae(x, x, x[0] / 2),  # by its values
        lambda x: _dispatch.call(out_of_memory, x[0], 3),  # by neither
    ],
)
def test_a_refusal_keeps_no_argument_alive(function):
    """No cycle of its traceback does, on which whoever goes on without memory relies."""
    x = torch.ones(1, 2, 3)
    freed = weakref.ref(x)
    gc.disable()
    try:
        with contextlib.suppress(ValueError, torch.OutOfMemoryError):
            function(x)
            pytest.fail("taken")
        del x
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_gradient_beside_a_dense_one_is_refused_by_name():
    """It has no shape to be asked for."""
    nested = torch.nested.nested_tensor([X[0], X[1]])
    for grads, at in (([X, nested], "grads[1]"), ([[X], [nested]], "grads[1][0]")):
        words = re.escape(f"{at} must be a dense tensor, got a nested tensor")
        for call in (lambda g: po.gram(g), lambda g: po.combine(g, torch.ones(2))):
            with pytest.raises(TypeError, match=words):
                call(grads)
