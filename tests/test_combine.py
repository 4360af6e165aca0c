from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import ROUNDOFF, assert_independent_of_thread_count
from strategies import DTYPES, gradient_lists, lay, normal, tiny_gradients
from torch._subclasses.fake_tensor import FakeTensorMode

import pama_ops as po
from pama_ops import _dispatch, _ops


def check(got, grads, weights, before=None) -> None:
    """|Δ| <= (n + 2) u Σ |w_i g_ik| in the precision of the sum, and one rounding of the result."""
    n = len(grads)
    for p, x in enumerate(got):
        present = [(i, row[p]) for i, row in enumerate(grads) if row[p] is not None]
        start = torch.zeros(x.shape, dtype=torch.float64) if before is None else before[p].double()
        terms = [start.cpu()] + [weights[i].double().cpu() * g.double().cpu() for i, g in present]
        want = torch.stack(terms).sum(0)
        size = torch.stack(terms).abs().sum(0)
        inner = ROUNDOFF[torch.float64 if x.dtype == torch.float64 else torch.float32]
        bound = (n + 3) * inner * size + ROUNDOFF[x.dtype] * want.abs() * 1.01
        bound = bound + torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps
        assert bool(((x.double().cpu() - want).abs() <= bound).all())
        assert all(x.dtype == g.dtype and x.shape == g.shape for _, g in present)


@given(data=st.data())
def test_combine_is_its_definition(backend, data):
    grads = data.draw(gradient_lists(backend.device))
    weights = normal(len(grads)).to(data.draw(st.sampled_from(DTYPES))).to(backend.device)
    check(po.combine(grads, weights), grads, weights)


def test_combine_keeps_the_shape_of_an_empty_parameter(backend):
    x, empty = torch.ones(2, device=backend.device), torch.empty(3, 0, device=backend.device)
    for row in [None, empty], [empty, None], [None, None]:
        combined = po.combine([[x, row[0]], [x, row[1]]], torch.ones(2, device=backend.device))
        assert combined[0].tolist() == [2.0, 2.0]
        assert combined[1].shape == ((0,) if row == [None, None] else (3, 0))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_missing_gradient_takes_no_weight(backend, bad):
    x = torch.ones(40, device=backend.device)
    weights = torch.tensor([bad, 0.5], device=backend.device)
    assert po.combine([[x, None], [x, x]], weights)[1].tolist() == [0.5] * 40


@given(data=st.data())
def test_combine_writes_into_out(backend, data):
    grads = data.draw(gradient_lists(backend.device, missing=False))
    layout = data.draw(st.sampled_from(["contiguous", "odd", "transposed", "sliced"]))
    out = [lay(normal(g.shape).to(g.dtype), layout).to(backend.device) for g in grads[0]]
    weights = normal(len(grads), device=backend.device)
    assert po.combine(grads, weights, out=out) is out
    check(out, grads, weights)
    before = [x.clone() for x in out]
    _ops.combine_into(out, [x for row in grads for x in row], weights, True)
    check(out, grads, weights, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_survives(backend, dtype):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).to(backend.device)
    got = po.combine([x], torch.ones(1, device=backend.device))
    assert bool(((got == x) | (got.isnan() & x.isnan())).all())


def test_large_results_pass_the_caches_by(backend):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernel has two ways to write")
    for dtype in DTYPES:
        grads = [[normal(1_100_001).to(dtype)[1:], normal(77).to(dtype)]
                 for _ in range(2)]  # fmt: skip
        weights = torch.tensor([0.3, 0.7])
        check(po.combine(grads, weights), grads, weights)
        out = [torch.ones(1_100_003).to(dtype)[3:], torch.ones(77).to(dtype)]
        check(po.combine(grads, weights, out=out), grads, weights)


def test_thousands_of_tiny_tensors(backend):
    grads = tiny_gradients(backend)
    weights = torch.tensor([0.2, -0.5, 1.3], device=backend.device)
    check(po.combine(grads, weights), grads, weights)


def test_combine_is_independent_of_thread_count():
    grads = [[normal(300_001), normal(5)] for _ in range(3)]
    assert_independent_of_thread_count(lambda: po.combine(grads, torch.tensor([0.1, 0.2, 0.7])))


@pytest.mark.parametrize("layout", ["contiguous", "odd", "transposed", "sliced"])
def test_combine_is_differentiable_twice(backend, layout):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        lay(normal(s, generator=generator, dtype=torch.float64), layout)
        .to(backend.device)
        .requires_grad_()
        for s in ((2, 3), (4,), (2, 3), (4,), (2,))
    ]

    def call(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(po.combine([x[:2], x[2:4]], x[4]))

    torch.autograd.gradcheck(call, inputs)
    torch.autograd.gradgradcheck(call, inputs)


def test_one_result_of_combine_is_enough(backend):
    weights = torch.ones(2, device=backend.device, requires_grad=True)
    grads = [[torch.ones(3, device=backend.device), torch.ones(2, device=backend.device)]] * 2
    po.combine(grads, weights)[0].sum().backward()
    assert weights.grad.tolist() == [3.0, 3.0]


def test_nan_weights_give_nan(backend):
    x = torch.ones(5, device=backend.device)
    got = po.combine([x, x], torch.full((2,), torch.nan, device=backend.device))
    assert bool(got.isnan().all())


BAD = [
    ({"weights": torch.ones(3)}, ValueError, r"weights must have the shape \[2\] .* got \[3\]"),
    ({"weights": [1.0, 2.0]}, TypeError, "weights must be a torch.Tensor, got list"),
    ({"weights": torch.ones(2, device="meta")}, ValueError, "weights must be on cpu like grads"),
    ({"out": [torch.ones(4)] * 2}, ValueError, "out must have as many tensors as .*, 1, got 2"),
    ({"out": torch.ones(3)}, ValueError, r"out\[0\] must have the shape \[4\] .* got \[3\]"),
    ({"out": torch.ones(4).half()}, TypeError, r"out\[0\] .* dtype .*float32 .*, got .*float16"),
    ({"out": torch._neg_view(torch.ones(4))}, ValueError, "signs to turn: resolve_neg"),
    ({"out": torch.ones(4).to_sparse()}, TypeError, r"out\[0\] must be a dense tensor, .*sparse"),
    ({"grads": [None, None], "out": torch.ones(4)}, ValueError, "grads must hold at least one"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_combine_names_the_bad_argument(change, error, message):
    out = torch.full((4,), 7.0)
    args = {"grads": [torch.ones(4)] * 2, "weights": torch.ones(2), "out": out, **change}
    with pytest.raises(error, match=message):
        po.combine(**args)
    assert bool((out == 7).all())


def test_out_of_an_absent_gradient_has_the_shape_of_the_others():
    """An absent gradient is empty, and an empty `out` beside it must not pass for equal."""
    x = torch.ones(5)
    with pytest.raises(ValueError, match=r"out\[0\] must have the shape \[5\] .* got \[0\]"):
        po.combine([None, x], torch.ones(2), out=torch.ones(0))
    assert po.combine([None, x], torch.ones(2), out=torch.zeros(5)).tolist() == [1.0] * 5


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "channels last"])
def test_combine_passes_opcheck(layout):
    flat = [lay(normal(s), layout) for _ in range(3) for s in ((2, 3, 4, 5), (7,))]
    weights = torch.rand(3)
    out = [torch.zeros(2, 3, 4, 5), torch.zeros(7)]
    for accumulate in (False, True):
        torch.library.opcheck(_ops.combine_into, (out, flat, weights, accumulate))
    traced = [x.requires_grad_() for x in flat]
    torch.library.opcheck(_ops.combine, (traced, weights.requires_grad_()))


def test_what_is_written_shares_memory_with_nothing_else(backend):
    """But with a whole gradient of its own parameter, whose place it may take."""
    memory = torch.arange(40.0, device=backend.device)
    a, b = memory[:8], torch.ones(8, device=backend.device)
    weights = torch.tensor([2.0, 1.0], device=backend.device)

    def refused(message: str, grads: list, out: object) -> None:
        before, version = memory.clone(), memory._version
        with pytest.raises(ValueError, match=message):
            po.combine(grads, weights, out=out)
        assert torch.equal(memory, before)
        assert memory._version == version

    refused(
        r"out\[0\] must be a whole gradient .* shares some with grads\[0\]", [a, b], memory[4:12]
    )
    refused(r"out\[0\] must be a whole gradient", [b, a], memory[1:9])
    x = memory[8:16]
    refused(r"out\[1\] must share no memory with out\[0\]", [[a, b], [b, b]], [x, x])
    refused(r"out\[1\] must share no memory with out\[0\]", [[a, b], [b, b]], [x, memory[12:20]])
    # The first is written before the second parameter's gradients are read.
    refused(r"out\[0\] must be a whole gradient of its", [[a, x], [b, b]], [x, memory[16:24]])
    refused(r"out\[0\] must have memory for each", [a, b], memory[:1].expand(8))
    wide = memory.view(4, 10)[:, ::2]
    grads = [[torch.ones(4, 5, device=backend.device)] * 2] * 2
    refused(r"out\[1\] must share no memory with out\[0\]", grads, [wide, wide])
    # Holes of one are the other's elements, or are not.
    refused(
        r"out\[1\] must share no memory with out\[0\]",
        [[a[:4], b[:4]], [b[:4], b[:4]]],
        [memory[10:18:2], memory[12:20:2]],
    )
    refused(
        r"out\[1\] must share no memory with out\[0\]",
        [[a[:4], b[:4]], [b[:4], b[:4]]],
        [memory[10:18:2], memory[12:16]],
    )
    po.combine(grads, weights, out=[wide, memory.view(4, 10)[:, 1::2]])
    assert bool((memory == 3).all())
    large = torch.zeros(1 << 22, device=backend.device)
    apart = [large[0::4], large[1::6]]
    po.combine([[torch.ones_like(x) for x in apart]], weights[:1], out=apart)
    assert large.sum() == 2 * sum(x.numel() for x in apart)
    # One with holes is written through a copy, after all gradients have been read.
    rows = [[torch.ones(4, 5, device=backend.device), memory[:8]], [grads[0][0], b]]
    out = torch.empty(8, device=backend.device)
    po.combine(rows, weights, out=[wide, out])
    assert bool((out == 7).all())
    assert bool((wide == 3).all())
    want = 2 * a + b
    assert po.combine([a, b], weights, out=a) is a
    assert torch.equal(a, want)


ROOM = 24


@st.composite
def places(draw: st.DrawFn, size: int, form: int) -> tuple[list[int], list[int], int]:
    """Sizes, strides and offset of a tensor of `size` elements somewhere in ROOM numbers.

    `form`: 1 is flat, 2 has two dimensions, 3 to 5 have one of size 1 as well, at 0 to 2.
    """
    sizes = [2, size // 2] if form > 1 and size > 1 else [size]
    layouts = [[size // 2, 1], [1, 2], [1, 1], [size, 2]] if len(sizes) == 2 else [[1], [2]]
    layouts += [[0] * len(sizes), draw(st.lists(st.integers(0, 4), min_size=2, max_size=2))]
    strides = draw(st.sampled_from(layouts))[: len(sizes)]
    last = sum((many - 1) * step for many, step in zip(sizes, strides, strict=True))
    if form > 2:  # whose stride is never walked
        at = min(form - 3, len(sizes))
        sizes = [*sizes[:at], 1, *sizes[at:]]
        strides = [*strides[:at], draw(st.integers(0, 9)), *strides[at:]]
    return sizes, strides, draw(st.integers(0, ROOM - 1 - max(last, 0)))


@given(data=st.data())
def test_combined_gradients_lie_as_the_fake_kernel_says(backend, data):
    size, form = data.draw(st.sampled_from([0, 1, 2, 4, 6])), data.draw(st.integers(1, 5))
    n = data.draw(st.integers(1, 3))
    room = torch.zeros(ROOM, device=backend.device)
    grads = [room.as_strided(*data.draw(places(size, form))) for _ in range(n)]
    [got] = _ops.combine(grads, torch.ones(n, device=backend.device))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = [mode.from_tensor(x) for x in grads]
        [fake] = torch.ops.pama_ops.combine(faked, torch.ones(n, device=backend.device))
    assert (got.shape, got.stride()) == (fake.shape, fake.stride())


@given(data=st.data())
def test_what_would_be_written_twice_is_refused_and_the_rest_is_right(backend, data):
    """With the same words by the default and the kernels; nothing is read once it is written."""
    n, count = (data.draw(st.integers(1, 3)) for _ in range(2))
    parameters = [
        (data.draw(st.sampled_from([0, 1, 2, 4, 6])), data.draw(st.integers(1, 5)))
        for _ in range(count)
    ]
    grads = [data.draw(places(*x)) for _ in range(n) for x in parameters]
    out = [
        data.draw(st.one_of(places(*x), st.sampled_from(grads[p::count])))
        for p, x in enumerate(parameters)
    ]
    weights = torch.tensor([2.0, -1.0, 0.5][:n], device=backend.device)
    accumulate = data.draw(st.booleans())
    start = torch.arange(1.0, ROOM + 1)
    found = []
    for op in _ops.combine_into, _dispatch.DEFAULTS["combine_into"]:
        memory = start.clone().to(backend.device)
        given_ = [memory.as_strided(*x) for x in grads]
        written, refusal = [memory.as_strided(*x) for x in out], ""
        try:
            op(written, given_, weights, accumulate)
        except ValueError as error:
            refusal = str(error).splitlines()[0]
        found.append((refusal, memory.tolist()))
    assert found[0] == found[1]
    refusal, got = found[0]
    spots = torch.arange(ROOM)
    twice = [k for x in out for k in spots.as_strided(*x).flatten().tolist()]
    if refusal:
        assert got == start.tolist()
        read = {k for x in grads for k in spots.as_strided(*x).flatten().tolist()}
        partly = "whole gradient" in refusal and read & set(twice)
        assert len(set(twice)) < len(twice) or partly
        return
    assert len(set(twice)) == len(twice)
    want = start.clone()
    for p, x in enumerate(out):
        column = [start.as_strided(*g) for g in grads[p::count]]
        total = sum(w * g for w, g in zip(weights.tolist(), column, strict=True))
        want.as_strided(*x).copy_(total + accumulate * start.as_strided(*x))
    assert got == want.tolist()


def test_what_was_written_cannot_be_differentiated_as_it_was(backend):
    """As where torch's own ops write."""
    g = [torch.ones(3, device=backend.device)] * 2
    weights = torch.ones(2, device=backend.device)
    square = torch.zeros(2, 2, dtype=torch.float64, device=backend.device)

    def combined(y: torch.Tensor) -> None:
        po.combine(g, weights, out=y)

    def accumulated(y: torch.Tensor) -> None:
        po.gram_accumulate(y, g)

    for like, write in (g[0], combined), (square, accumulated):
        y = 2 * torch.ones_like(like).requires_grad_()
        h = (y**2).sum()
        with pytest.raises(ValueError, match=r"must require no gradient, as none flows through"):
            write(y)
        with torch.no_grad():
            write(y.clone().requires_grad_())
        write(y.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            h.backward()
        version = like._version
        write(like.clone())
        assert like._version == version


def test_raw_ops_raise_the_version_of_what_they_write():
    x, g = torch.zeros(3), [torch.ones(3)] * 2
    torch.ops.pama_ops.combine_into([x], g, torch.ones(2), False)
    square = torch.zeros(2, 2, dtype=torch.float64)
    torch.ops.pama_ops.gram_accumulate(square, g)
    assert (x._version, square._version) == (1, 1)
    mutable = [name for name, schema in _dispatch.SCHEMAS.items() if "!" in schema]
    assert sorted(mutable) == ["combine_into", "gram_accumulate"]


def test_inference_tensors_are_written_under_inference_mode_only(backend):
    with torch.inference_mode():
        x = torch.zeros(3, device=backend.device)
        square = torch.zeros(2, 2, dtype=torch.float64, device=backend.device)
        g = [torch.ones(3, device=backend.device)] * 2
        weights = torch.ones(2, device=backend.device)
        po.combine(g, weights, out=x)
        po.gram_accumulate(square, g)
    assert x.tolist() == [2.0] * 3
    with pytest.raises(ValueError, match=r"out\[0\] must be no inference tensor"):
        po.combine(g, weights, out=x)
    with pytest.raises(ValueError, match="gram must be no inference tensor"):
        po.gram_accumulate(square, g)
    raw = torch.ops.pama_ops
    with pytest.raises(ValueError, match=r"^out\[0\] must be no inference tensor"):
        raw.combine_into([x], g, weights, False)
    with pytest.raises(ValueError, match=r"^gram must be no inference tensor"):
        raw.gram_accumulate(square, g)
