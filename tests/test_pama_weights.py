from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import exactly
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_on_simplex, unit_roundoff
from strategies import DTYPES, arrange, normal, preferences

import pama_ops as po
from pama_ops import _ops

INTEGERS = st.lists(st.integers(-3, 3), min_size=1, max_size=5)
U = 2.0**-53


def exact_projection(values: list[float], preference: list[float]) -> list[Fraction]:
    """The projection of p onto {c on the simplex, Σ c a = 0}: of all supports the optimal one."""
    n = len(values)
    a, p = [Fraction(x) for x in values], [Fraction(x) for x in preference]
    p = [x / sum(p) for x in p]
    used = [i for i in range(n) if p[i] > 0]
    for size in range(1, len(used) + 1):
        for s in combinations(used, size):
            mean = sum(a[i] for i in s) / size
            spread = sum((a[i] - mean) ** 2 for i in s)
            if spread == 0:
                continue
            missing = 1 - sum(p[i] for i in s)
            c = [p[i] + missing / size if i in s else Fraction(0) for i in range(n)]
            mu = sum(a[i] * c[i] for i in s) / spread
            for i in s:
                c[i] -= mu * (a[i] - mean)
            level = p[s[0]] - mu * a[s[0]] - c[s[0]]
            if min(c) >= 0 and all(p[i] - level - mu * a[i] <= 0 for i in used if i not in s):
                return c
    raise AssertionError("no support satisfies the conditions")


def on(backend, values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=backend.device)


# Dropping the large value ends the walk to the precision of the large value, not of the others.
@pytest.mark.parametrize("tiny", [4.7160052808917744e-95, 1e-90, 3e-81])
def test_pama_weights_of_many_scales_is_the_exact_projection(backend, tiny):
    for values in [tiny, -1e-12, -1.960852561696717e-81], [tiny, -1.0, 1e-20, -2e-40, 3.0]:
        want = exact_projection(values, [1.0] * len(values))
        got = po.pama_weights(on(backend, values)).weights.tolist()
        for w, c in zip(got, want, strict=True):
            assert abs(float(Fraction(w) - c)) <= 8 * len(values) * U


# Values whose magnitudes are anywhere in the range of numbers.
ANYWHERE = st.builds(
    lambda sign, size, exponent: math.ldexp(sign * size, exponent),
    st.sampled_from([-1, 1]),
    st.floats(0.5, 1, exclude_max=True),
    st.integers(-1073, 1024),
)


@settings(max_examples=60)
@given(st.lists(ANYWHERE, min_size=2, max_size=5).flatmap(
    lambda values: st.tuples(st.just(values), preferences(len(values)))
))  # fmt: skip
@example(([1e-320, -1e-320, -1e300], [1.0, 2.0, 1.0]))
@example(([1e300, -1e-320, 1e-320, 3.0], [1.0] * 4))
@example(([-3.35e233, -1.85e-80, 1.78e-268, -3.5e-66, 3.65e-114], [1.0] * 5))
def test_pama_weights_of_values_anywhere_is_the_exact_projection(backend, drawn):
    values, p = drawn
    got = po.pama_weights(on(backend, values), preference=p)
    assert_on_simplex(got.weights)
    if straddles(values, p):
        assert got.optimum == 0
        for w, c in zip(got.weights.tolist(), exact_projection(values, p), strict=True):
            assert abs(float(Fraction(w) - c)) <= 8 * len(values) * U


@pytest.mark.parametrize("least", [5e-324, 2.2e-308])
def test_a_preference_too_small_to_divide_by_drops_its_objective(backend, least):
    for scale in 1.0, 2.0**-30:
        got = po.pama_weights(on(backend, [1.0, -1.0, 5.0]), preference=[1.0, least, scale])
        want = po.pama_weights(on(backend, [1.0, -1.0, 5.0]), preference=[1.0, 0.0, scale])
        assert torch.equal(got.weights, want.weights)
        assert torch.equal(got.optimum, want.optimum)


def straddles(values: list[float], preference: list[float]) -> bool:
    used = [a for a, p in zip(values, preference, strict=True) if p > 0]
    return min(used) < 0 < max(used)


@settings(max_examples=60)
@given(data=st.data())
def test_pama_weights_is_the_exact_projection_or_the_least_value(backend, data):
    wide = st.floats(-1, 1).map(lambda x: x * float(f"1e{round(-12 * abs(x))}"))
    values = data.draw(st.one_of(INTEGERS, st.lists(wide, min_size=1, max_size=5)))
    values = [float(x) for x in values]
    n = len(values)
    given_one = data.draw(st.booleans())
    p = data.draw(preferences(n)) if given_one else [1.0] * n
    got = po.pama_weights(on(backend, values), preference=p if given_one else None)
    assert_on_simplex(got.weights)
    weights = got.weights.tolist()
    assert all(w == 0 for w, q in zip(weights, p, strict=True) if q == 0)
    if straddles(values, p):
        want = exact_projection(values, p)
        # c is computed from sums of n terms of magnitude at most 1.
        for w, c in zip(weights, want, strict=True):
            assert abs(float(Fraction(w) - c)) <= 8 * n * U
        assert got.optimum == 0
        return
    largest = max(p)
    ranks = [abs(a) / (q / largest) if q > 0 else math.inf for a, q in zip(values, p, strict=True)]
    tie = [i for i in range(n) if ranks[i] == min(ranks)]
    share = (1 - sum(p[i] for i in tie) / sum(p)) / len(tie)
    for i in range(n):
        want = p[i] / sum(p) + share if i in tie else 0.0
        assert abs(weights[i] - want) <= 4 * n * U
    want = sum(Fraction(w) * Fraction(a) for w, a in zip(weights, values, strict=True))
    # Below the normal numbers, rounding is absolute.
    bound = 4 * n * U * Fraction(max(map(abs, values))) + Fraction(1, 2**1074)
    assert abs(Fraction(float(got.optimum)) - want) <= bound
    if len({values[i] for i in tie}) == 1:
        assert float(got.optimum) == values[tie[0]]


@settings(max_examples=15)
@given(data=st.data())
def test_pama_weights_of_up_to_eight_values_is_the_exact_projection(backend, data):
    n = data.draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values = normal(n, generator=generator, dtype=torch.float64)
    values[0] = -values[1].abs() - 0.1
    values[1] = values[1].abs()
    p = torch.rand(n, generator=generator, dtype=torch.float64)
    got = po.pama_weights(values.to(backend.device), preference=p.to(backend.device)).weights.cpu()
    want = exact_projection(values.tolist(), p.tolist())
    for w, c in zip(got.tolist(), want, strict=True):
        assert abs(float(Fraction(w) - c)) <= 8 * n * U
    assert abs(float(exactly.dot(values, got))) <= 4 * n * U * float(exactly.dot(values.abs(), got))


@pytest.mark.parametrize(
    ("values", "weights", "optimum"),
    [
        ([1.0, -3.0], [0.75, 0.25], 0.0),
        ([-3.0, 1.0], [0.25, 0.75], 0.0),
        ([2.0, 1.0, 1.0, 5.0], [0.0, 0.5, 0.5, 0.0], 1.0),
        ([-2.0, -1.0, -4.0], [0.0, 1.0, 0.0], -1.0),
        ([3.0, 0.0, 1.0], [0.0, 1.0, 0.0], 0.0),
        ([0.0, 0.0], [0.5, 0.5], 0.0),
        ([5.0], [1.0], 5.0),
        ([0.0], [1.0], 0.0),
        ([-1.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3], 0.0),
        ([5e-324, 5e-324], [0.5, 0.5], 5e-324),
    ],
)
def test_pama_weights_of_known_values(backend, values, weights, optimum):
    got = po.pama_weights(on(backend, values))
    torch.testing.assert_close(got.weights, on(backend, weights), rtol=4 * U, atol=0)
    assert float(got.optimum) == optimum


def test_pama_weights_follows_the_preference(backend):
    p = [0.7, 0.2, 0.1]
    for values in ([0.0, 0.0, 0.0], [1.0, -7.0, 7.0 - 7.0]):
        got = po.pama_weights(on(backend, values), preference=p)
        if values[0] == 0:
            torch.testing.assert_close(got.weights, on(backend, p), rtol=4 * U, atol=0)
    # |a| / p: 4 / .7, 1 / .2, 3 / .1.
    got = po.pama_weights(on(backend, [4.0, 1.0, 3.0]), preference=p)
    assert got.weights.tolist() == [0.0, 1.0, 0.0]
    got = po.pama_weights(on(backend, [3.0, 1.0, 3.0]), preference=p)
    assert got.weights.tolist() == [1.0, 0.0, 0.0]
    assert float(got.optimum) == 3.0
    # Without preference for the negative one, the rest has one sign, and NaN there is not read.
    got = po.pama_weights(on(backend, [3.0, -1.0, torch.nan]), preference=[1.0, 0.0, 0.0])
    assert got.weights.tolist() == [1.0, 0.0, 0.0]


@settings(max_examples=40)
@given(data=st.data())
def test_pama_weights_is_permutation_equivariant_and_scale_free(backend, data):
    n = data.draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values = normal(n, generator=generator, dtype=torch.float64)
    if data.draw(st.booleans()):
        values = (2 * values).round()
    order = torch.tensor(data.draw(st.permutations(range(n))))
    got = po.pama_weights(values.to(backend.device))
    permuted = po.pama_weights(values[order].to(backend.device))
    torch.testing.assert_close(got.weights.cpu()[order], permuted.weights.cpu(),
                               rtol=0, atol=16 * n * U)  # fmt: skip
    for exponent in (-900, -300, 300, 900):
        scaled = po.pama_weights(values.to(backend.device) * 2.0**exponent)
        assert torch.equal(scaled.weights, got.weights)
        assert torch.equal(scaled.optimum, got.optimum * 2.0**exponent)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_pama_weights_of_what_is_not_finite_is_nan(backend, bad):
    for values in ([bad], [1.0, bad], [-1.0, bad, 1.0], [0.0, 0.0, bad]):
        got = po.pama_weights(on(backend, values))
        assert bool(got.weights.isnan().all())
        assert got.optimum.isnan()


@pytest.mark.parametrize("n", [40, 70, 128, 256])
def test_pama_weights_of_more_values_than_lanes_is_balanced(backend, n):
    generator = torch.Generator().manual_seed(n)
    values = normal((3, n), generator=generator, dtype=torch.float64) + 1
    got = po.pama_weights(values.to(backend.device)).weights.cpu()
    assert_on_simplex(got)
    size = exactly.dot(values.abs(), got)
    assert bool((exactly.dot(values, got).abs() <= 4 * n * U * size).all())
    # Optimality: on the support c − p is affine in a, and elsewhere above that.
    for a, c in zip(values, got, strict=True):
        s = c > 0
        centred = a - exactly.total(a[s]) / int(s.sum())
        slope = exactly.dot(centred[s], c[s]) / exactly.dot(centred[s], centred[s])
        line = exactly.total(c[s]) / int(s.sum()) + slope * centred
        torch.testing.assert_close(c, line.clamp(min=0), rtol=0, atol=64 * n * U)


@settings(max_examples=30)
@given(data=st.data())
def test_pama_weights_takes_any_dtype_strides_and_batch(backend, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    lead = data.draw(st.sampled_from([(), (0,), (4,), (2, 3), (1, 2, 1, 2, 1, 2, 1, 2)]))
    n = data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values = normal((*lead, n), generator=generator).to(dtype)
    if len(lead) == 2:
        values = arrange(values, data.draw(st.sampled_from(["contiguous", "permuted", "sliced"])))
    p = torch.rand(n, generator=generator).to(data.draw(st.sampled_from(DTYPES))) + 0.25
    got = po.pama_weights(values.to(backend.device), preference=p.to(backend.device))
    assert got.weights.shape == values.shape
    assert got.optimum.shape == lead
    assert got.weights.dtype == got.optimum.dtype == dtype
    each = [
        po.pama_weights(row.double().to(backend.device), preference=p.to(backend.device))
        for row in values.reshape(-1, n)
    ]
    for k, part in enumerate(got):
        flat = part.reshape(len(each), *part.shape[len(lead) :])
        for row, single in zip(flat, each, strict=True):
            close = 2.0 * unit_roundoff(dtype)
            torch.testing.assert_close(row.double(), single[k], rtol=close, atol=2.0**-24 * close)


def test_pama_weights_is_independent_of_thread_count():
    values = normal((5000, 6), generator=torch.Generator().manual_seed(0))
    assert_independent_of_thread_count(lambda: po.pama_weights(values))


@pytest.mark.parametrize(
    ("values", "preference", "error", "message"),
    [
        ([1.0], None, TypeError, "values must be a torch.Tensor, got list"),
        (torch.ones(3).long(), None, TypeError, "values must have a floating-point dtype"),
        (torch.tensor(1.0), None, ValueError, r"values must have the shape \[..., n\] .* got \[\]"),
        (torch.ones(2, 0), None, ValueError, r"values .* n >= 1, got \[2, 0\]"),
        (torch.ones(3), [1.0, 1.0], ValueError, "preference must have the 3 entries"),
        (torch.ones(3), [1.0, -1.0, 1.0], ValueError, "preference must be nonnegative"),
        (torch.ones(3), [0.0, 0.0, 0.0], ValueError, "preference .* a positive sum"),
        (torch.ones(3), ["a", 1.0, 1.0], TypeError, r"preference\[0\] must be a number, got str"),
        (torch.ones(3), 1.0, TypeError, "preference must be a tensor or a sequence, got float"),
        (torch.ones(3), torch.ones(3, 1), ValueError, r"preference must have the shape \[3\]"),
        (torch.ones(3), torch.ones(3).long(), TypeError, "preference .* floating-point"),
    ],
)
def test_pama_weights_names_the_bad_argument(backend, values, preference, error, message):
    if isinstance(values, torch.Tensor):
        values = values.to(backend.device)
    if isinstance(preference, torch.Tensor):
        preference = preference.to(backend.device)
    with pytest.raises(error, match=message):
        po.pama_weights(values, preference=preference)


@pytest.mark.parametrize("p", [[1.0, -1.0], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
def test_pama_weights_checks_the_values_of_a_preference(backend, p):
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="preference must be nonnegative and finite"):
        po.pama_weights(on(backend, [1.0, 2.0]), preference=on(backend, p), **by_itself)


def test_pama_weights_refuses_a_gradient(backend):
    values = on(backend, [1.0, 2.0]).requires_grad_()
    with pytest.raises(RuntimeError, match=r"pama_ops\.pama_weights is not differentiable"):
        po.pama_weights(values).optimum.backward()


def test_pama_weights_passes_opcheck():
    torch.library.opcheck(_ops.pama_weights, (normal(2, 3), torch.rand(3)))
    torch.library.opcheck(_ops.pama_weights, (normal(4), None))


def test_pama_weights_compiles_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(values):
        return po.pama_weights(values, preference=[1.0, 2.0, 3.0])

    values = normal(5, 3)
    want = po.pama_weights(values, preference=[1.0, 2.0, 3.0])
    assert all(map(torch.equal, compiled(values), want))


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ([-1e-300, 1e300], [1.0, 0.0]),
        ([1e300, -1e-300], [0.0, 1.0]),
        ([-1e-300, 1e300, 1e300], [1.0, 0.0, 0.0]),
        ([-1e300, 1e-300, 1e-300], [0.0, 0.5, 0.5]),
        ([-1e-160, 1e160], [1.0, 0.0]),
        ([5e-324, -1.7e308], [1.0, 0.0]),
        ([1e-300, -5e-301, 1.7e308], [1 / 3, 2 / 3, 0.0]),
        ([-5e-324, 0.0, 1.7e308], [0.5, 0.5, 0.0]),
    ],
)
def test_pama_weights_of_all_the_range_of_numbers(backend, values, weights):
    got = po.pama_weights(torch.tensor(values, dtype=torch.float64, device=backend.device))
    torch.testing.assert_close(got.weights.cpu(), torch.tensor(weights, dtype=torch.float64))
    assert got.optimum.item() == 0
