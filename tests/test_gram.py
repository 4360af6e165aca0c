from __future__ import annotations

import os
import subprocess
import sys

import exactly
import pytest
import torch
from allocations import largest_allocations
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count
from strategies import DTYPES, gradient_lists, lay, normal, tiny_gradients

import pama_ops as po
from pama_ops import _ops


def matrix(grads: list[list[torch.Tensor | None]]) -> torch.Tensor:
    """J in float64, [n, d]."""
    columns = []
    for column in zip(*grads, strict=True):
        size = max(0 if x is None else x.numel() for x in column)
        rows = [torch.zeros(size) if x is None else x.cpu().reshape(-1) for x in column]
        columns.append(torch.stack([row.double() for row in rows]))
    return torch.cat(columns, 1)


def bound(grads: list[list[torch.Tensor | None]], backend) -> torch.Tensor:
    """|ΔG_ij|: products rounded L + 2 times in float32 sums, then float64, or float64 throughout.

    float64 sums: at most 64 roundings in a block, which is compensated from there on, within 1e-14.
    A GPU's tensor cores round sums of halves in ways of their own: up to 8 rows, where they add up
    128 columns, within that bound; beyond, where it is 256, 1e-5 of the norms' product. The
    default's float64 products add up in whatever order a library takes.
    """
    chain = 16 if backend.name == "cpu" else 64
    total = torch.zeros(len(grads), len(grads), dtype=torch.float64)
    for p in range(len(grads[0])):
        rows = matrix([[row[p]] for row in grads]).abs()
        wide = any(row[p] is not None and row[p].dtype == torch.float64 for row in grads)
        unit = 1e-14 if wide else 1e-14 + (chain + 2) * 2.0**-24
        if backend.name == "default":
            unit = 1.01 * (rows.shape[1] + len(grads[0]) + 1) * 2.0**-53
        half = any(row[p] is not None and row[p].itemsize == 2 for row in grads)
        if backend.name == "cuda" and half and len(grads) > 8:
            norms = exactly.norm(rows)
            total += 1e-5 * norms[:, None] * norms
        total += unit * exactly.gram(rows)
    return total


@pytest.fixture(params=["tensor", "plain"])
def kernels(request, backend, monkeypatch):
    """The kernels for GPUs whose float64 is fast, and those for others."""
    if request.param == "plain" and backend.name in ("cpu", "default"):
        pytest.skip("knows no GPUs")
    monkeypatch.setenv("PAMA_GRAM_KERNEL", request.param)


@pytest.mark.usefixtures("kernels")
@given(data=st.data())
def test_gram_is_its_definition(backend, data):
    grads = data.draw(gradient_lists(backend.device))
    got = po.gram(grads).cpu()
    j = matrix(grads)
    assert got.dtype == torch.float64
    assert torch.equal(got, got.mT)
    excess = (got - exactly.gram(j)).abs() - bound(grads, backend)
    assert float(excess.max()) <= 2.0**-126, f"off by {float(excess.max())} beyond its bound"


def test_gram_is_symmetric_to_the_bit(backend):
    generator = torch.Generator().manual_seed(0)
    for size in range(97, 161):
        for n in (2, 3, 5):
            x = normal(n, size, generator=generator, dtype=torch.float64).to(backend.device)
            total = po.gram(list(x))
            assert torch.equal(total, total.T)
            po.gram_accumulate(total, list(x.flip(1)))
            assert torch.equal(total, total.T)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 4, 7, 8, 9, 16, 33])
def test_gram_of_constants_keeps_its_bound(backend, dtype, n):
    d = 100_000 if backend.name == "cpu" else 3000
    grads = [[torch.full((d,), 0.1 * (i + 1), dtype=dtype, device=backend.device)]
             for i in range(n)]  # fmt: skip
    values = torch.stack([g[0][0].double().cpu() for g in grads])
    want = d * values[:, None] * values
    assert bool(((po.gram(grads).cpu() - want).abs() <= bound(grads, backend)).all())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 16, 17, 24, 32, 33, 41, 48, 64, 65, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_of_many_rows_is_its_definition(backend, dtype, n):
    """Each row count of each kernel, over views at odd addresses, tails, short and absent rows."""
    generator = torch.Generator().manual_seed(n)

    def draw(size: int, offset: int, i: int) -> torch.Tensor | None:
        scale = 10.0 ** (i % 3)  # also drawn for absent rows: all rows differ
        x = normal(size + offset, generator=generator, dtype=torch.float64) * scale
        return None if i % 5 == 3 and size > 600 else x.to(backend.device, dtype)[offset:]

    pieces = [(1, 0), (611, 1), (256, 0), (777, 0), (7, 3)]
    if n <= 4:  # whose chunks are the longest: whole ones and a tail
        pieces.append((17_003, 0))
    grads = [[draw(size, offset, i) for size, offset in pieces] for i in range(n)]
    got, j = po.gram(grads).cpu(), matrix(grads)
    assert torch.equal(got, got.mT)
    assert bool(((got - exactly.gram(j)).abs() <= bound(grads, backend)).all())


@pytest.mark.parametrize("n", [9, 20, 40, 70])
def test_gram_takes_dtypes_that_differ_between_parameters(backend, n):
    generator = torch.Generator().manual_seed(5)
    grads = [
        [normal(301, generator=generator).to(backend.device, dtype) for dtype in DTYPES]
        for _ in range(n)
    ]
    j = matrix(grads)
    assert bool(((po.gram(grads).cpu() - exactly.gram(j)).abs() <= bound(grads, backend)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_of_a_hundred_million_constants_keeps_its_bound(dtype):
    """On the CPU; an accumulator in the gradients' own dtype would have stopped growing."""
    d = 100_000_000
    x = torch.full((d,), 0.1, dtype=dtype)
    value = float(x[0])
    unit = 1e-14 if dtype == torch.float64 else 18 * 2.0**-24
    assert abs(float(po.gram([x, x])[0, 1]) / (d * value**2) - 1) <= unit + 1e-14


def test_float16_gradients_do_not_overflow(backend):
    d = 100_000_000 if backend.name == "cpu" else 100_000
    x = torch.full((d,), 200.0, dtype=torch.float16, device=backend.device)
    # Each chain of 64 products of 40000 is exact in float32, and the float64 sum is.
    assert po.gram([x, x]).tolist() == [[40000.0 * d] * 2] * 2


@pytest.mark.parametrize("layout", ["odd", "transposed", "channels last"])
def test_equal_layouts_are_walked_without_a_copy(backend, layout):
    """To the bit what a walk over the same memory as one dimension gives."""
    x = [lay(normal(2, 3, 4, 5), layout).to(backend.device) for _ in range(3)]
    y = [g.as_strided((g.numel(),), (1,)) for g in x]
    if backend.name == "default":
        torch.testing.assert_close(po.gram(x), po.gram(y))
    else:
        assert torch.equal(po.gram(x), po.gram(y))


def test_thousands_of_tiny_tensors(backend):
    grads = tiny_gradients(backend)
    j = matrix(grads)
    assert bool(((po.gram(grads).cpu() - exactly.gram(j)).abs() <= bound(grads, backend)).all())


def test_gram_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    grads = [
        [normal(s, generator=generator) for s in [(300, 301), (17,), (100_003,)]]
        + [normal(50_001, generator=generator).bfloat16()]
        for _ in range(5)
    ]
    assert_independent_of_thread_count(lambda: po.gram(grads))


@pytest.mark.parametrize("level", ["1", "3", "4"])
def test_older_processors_keep_the_bound(level):
    script = (
        "import sys, torch, pama_ops as po; sys.path.insert(0, 'tests')\n"
        "import exactly; from strategies import normal; torch.manual_seed(0)\n"
        "for n in (1, 2, 3, 5, 6, 8, 11):\n"
        "    j = normal(n, 5003)\n"
        "    for x, u in ((j, 18 * 2**-24), (j.bfloat16(), 18 * 2**-24), (j.double(), 1e-14)):\n"
        "        error = (po.gram(list(x)) - exactly.gram(x)).abs()\n"
        "        assert bool((error <= (u + 1e-14) * exactly.gram(x.abs())).all()), n\n"
    )
    environment = {**os.environ, "PAMA_CPU_LEVEL": level}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_no_allocation_is_above_a_megabyte():
    largest = largest_allocations("""
import sys
sys.path.insert(0, "tests")
from strategies import normal
for n in (1, 2, 8, 16, 32):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        grads = [[normal(s).to(dtype) for s in (600_000, 77, 1)] for _ in range(n)]
        out, w = [torch.empty_like(x) for x in grads[0]], torch.rand(n)
        total = torch.zeros(n, n, dtype=torch.float64)
        measure(f"gram {n} {dtype}", lambda: po.gram(grads))
        measure(f"gram_accumulate {n} {dtype}", lambda: po.gram_accumulate(total, grads))
        measure(f"combine {n} {dtype}", lambda: po.combine(grads, w, out=out))
""")
    assert len(largest) == 60
    assert max(largest.values()) <= 2**20, largest


def test_only_gradients_whose_layouts_differ_are_copied():
    """Of tensors of 4 MB, odd address, transposed and channels last among them."""
    largest = largest_allocations("""
import sys
sys.path.insert(0, "tests")
from strategies import LAYOUTS, lay, normal
w = torch.rand(3)
for layout in LAYOUTS:
    kinds = ["contiguous", "transposed", "odd"] if layout == "mixed" else [layout] * 3
    grads = [lay(normal(16, 32, 32, 64), kind) for kind in kinds]
    out = lay(grads[0], kinds[0])
    measure(f"gram, {layout}", lambda: po.gram(grads))
    if layout != "sliced":  # out has no holes
        measure(f"combine, {layout}", lambda: po.combine(grads, w, out=out))
""")
    copied = {name for name, size in largest.items() if size >= 4 * 2**20}
    assert copied == {"gram, sliced", "gram, mixed", "combine, mixed"}
    assert all(size <= 2**20 for name, size in largest.items() if name not in copied), largest


def test_non_finite_gradients_show(backend):
    x, y = torch.ones(40, device=backend.device), torch.ones(40, device=backend.device)
    y[37] = torch.inf
    got = po.gram([x, y])
    assert got.isfinite().tolist() == [[True, False], [False, False]]
    with pytest.raises(ValueError, match=r"grads must be finite, .* objectives \[1\]"):
        po.gram([x, y], check_finite=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_missing_gradient_takes_part_in_no_product(backend, dtype, bad):
    """Not 0 · ∞, wherever the bad element falls in a block, and however many rows there are."""
    ours = torch.ones(20, dtype=dtype, device=backend.device)
    for length in (1, 15, 16, 33, 800):
        for at in {0, length // 2, length - 1}:
            x = torch.ones(length, dtype=dtype, device=backend.device)
            x[at] = bad
            rows = [[ours, None], [ours, x], [ours, torch.ones_like(x)]]
            g = po.gram(rows).cpu()
            assert g[0].tolist() == [20.0] * 3
            assert g[2, 2] == 20 + length
            assert not bool(g[1, 1:].isfinite().any())
            running = torch.zeros(3, 3, dtype=torch.float64, device=backend.device)
            assert torch.equal(po.gram_accumulate(running, rows).cpu(), g) or bad != bad
    for n in (12, 70):
        rows = [[ours, None] for _ in range(n)]
        rows[1] = rows[n - 1] = [ours, torch.full((40,), bad, dtype=dtype, device=backend.device)]
        g = po.gram(rows).cpu()
        having = torch.tensor([i in (1, n - 1) for i in range(n)])
        pair = having[:, None] & having
        assert bool((g[~pair] == 20).all())
        assert not bool(g[pair].isfinite().any())


def test_pieces_accumulate(backend):
    generator = torch.Generator().manual_seed(2)
    grads = [[normal(s, generator=generator).to(backend.device) for s in (100, 2000)]
             for _ in range(4)]  # fmt: skip
    j = matrix(grads)
    total = torch.ones(4, 4, dtype=torch.float64, device=backend.device)
    for p in range(2):
        assert po.gram_accumulate(total, [g[p] for g in grads]) is total
    rounding = 4 * 2.0**-53 * total.abs().cpu()
    assert bool(
        ((total.cpu() - 1 - exactly.gram(j)).abs() <= bound(grads, backend) + rounding).all()
    )


@pytest.mark.parametrize("objectives", [1, 3])
def test_gram_is_differentiable_twice(backend, objectives):
    generator = torch.Generator().manual_seed(3)
    flat = [
        normal(s, generator=generator, dtype=torch.float64).to(backend.device)
        for _ in range(objectives)
        for s in ((2, 3), (4,))
    ]
    flat = [x.requires_grad_() for x in flat]

    def call(*x: torch.Tensor) -> torch.Tensor:
        return po.gram([x[2 * i : 2 * i + 2] for i in range(objectives)])

    torch.autograd.gradcheck(call, flat)
    torch.autograd.gradgradcheck(call, flat)


@pytest.mark.parametrize("layout", ["odd", "transposed", "channels last", "sliced"])
def test_gram_is_differentiable_in_every_layout_and_beside_absent_gradients(backend, layout):
    generator = torch.Generator().manual_seed(4)
    flat = [
        lay(normal(s, generator=generator, dtype=torch.float64), layout)
        .to(backend.device)
        .requires_grad_()
        for s in ((2, 1, 2, 3), (2, 1, 2, 3), (2,))
    ]

    def call(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return po.gram([[a, None], [b, c], [None, None]])

    torch.autograd.gradcheck(call, flat)


def test_the_slope_of_gram_keeps_the_gradients_dtype(backend):
    x = normal(50, device=backend.device, dtype=torch.bfloat16, requires_grad=True)
    po.gram([x, x.detach()]).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad, 4 * x.detach(), rtol=2.0**-8, atol=0)


def one(x):
    return [[x, torch.ones(3)], [torch.ones(2, 2), torch.ones(3)]]


BAD = [
    (torch.ones(2, 3), TypeError, "grads must be a list of tensors, .* got Tensor"),
    ([], ValueError, "grads must hold at least one objective"),
    ([None, None], ValueError, "grads must hold at least one tensor"),
    ([torch.ones(2), torch.ones(3)], ValueError, r"grads\[1\] .* \[2\] of grads\[0\], got \[3\]"),
    ([torch.ones(2), torch.ones(0)], ValueError, r"grads\[1\] .* \[2\] of grads\[0\], got \[0\]"),
    ([torch.ones(0), torch.ones(0, 3)], ValueError, r"grads\[1\] .* \[0\] of .* got \[0, 3\]"),
    (one(torch.ones(4)), ValueError, r"grads\[1\]\[0\] .* \[4\] of grads\[0\]\[0\], got \[2, 2\]"),
    (one(torch.ones(2, 2).half()), TypeError, r"grads\[1\]\[0\] .*float16 of .*float32"),
    (one(torch.ones(2, 2).long()), TypeError, r"grads\[0\]\[0\] .* floating-point .*int64"),
    (one(torch.ones(2, 2).to_sparse()), TypeError, r"grads\[0\]\[0\] .* dense tensor, .*sparse"),
    ([torch.ones(2), torch.ones(2).to_sparse()], TypeError, r"grads\[1\] .* dense .*sparse"),
    ([torch.ones(2), torch.ones(2).long()], TypeError, r"grads\[1\] .*float32 of .*int64"),
    ([torch.ones(2).to(torch.float8_e4m3fn)], TypeError, r"grads\[0\] must be float64, .*float8"),
    (one(torch.ones(2, 2, device="meta")), ValueError, r"grads\[1\]\[0\] .* on meta .* cpu"),
    (one("x"), TypeError, r"grads\[0\]\[0\] must be a torch.Tensor, got str"),
    ([[torch.ones(2)], []], ValueError, r"grads\[1\] .* as many .* grads\[0\], 1, got 0"),
    ([[torch.ones(2)], 3], TypeError, r"grads\[1\] must be a list .* got int"),
]  # fmt: skip


@pytest.mark.parametrize(("grads", "error", "message"), BAD)
def test_gram_names_the_bad_argument(grads, error, message):
    with pytest.raises(error, match=message):
        po.gram(grads)
    total, out = torch.ones(2, 2, dtype=torch.float64), torch.ones(3)
    with pytest.raises(error, match=message):
        po.gram_accumulate(total, grads)
    with pytest.raises(error, match=message):
        po.combine(grads, torch.ones(2), out=out)
    assert bool((total == 1).all() and (out == 1).all())


def test_gram_accumulate_names_the_bad_argument():
    x = [torch.ones(2)] * 2
    with pytest.raises(ValueError, match=r"gram must have the shape \[2, 2\]"):
        po.gram_accumulate(torch.zeros(3, 3, dtype=torch.float64), x)
    with pytest.raises(ValueError, match=r"gram must be float64 and contiguous, got torch.float32"):
        po.gram_accumulate(torch.zeros(2, 2), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_passes_opcheck(dtype):
    flat = [normal(s).to(dtype).requires_grad_() for _ in range(3) for s in ((4, 5), (7,))]
    torch.library.opcheck(_ops.gram, (flat, 3))
    plain = [x.detach() for x in flat]
    total = torch.zeros(3, 3, dtype=torch.float64)
    torch.library.opcheck(_ops.gram_accumulate, (total, plain))


def test_gram_min_norm_combine_compile_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(grads):
        return po.combine(grads, po.min_norm(po.gram(grads)))

    grads = [[normal(4, 5), normal(7)] for _ in range(3)]
    want = po.combine(grads, po.min_norm(po.gram(grads)))
    torch.testing.assert_close(compiled(grads), want)
