from __future__ import annotations

import math

import exactly
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import long_batch, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference


def assert_whitened(got, x, mask, cu_seqlens, eps):
    """Against the reference, within what rounding allows.

    With n tokens of one objective up to M in size, a mean is off by at most n u M, which moves a
    result by n u M s, s = (σ² + ε)^(−½); and the sum of squares is off by its own n u, which moves
    a result y by at most n u |y|. Sums around a token instead of the mean cost a factor of the
    tokens that one thread sums, here at most 2.
    """
    moments = reference.whiten_moments(x, mask, cu_seqlens)
    want = reference.whiten_apply(x, mask, cu_seqlens, moments[None], eps)
    ones = torch.ones(x.shape[1:], device=x.device)
    inside = (ones if mask is None else mask) != 0
    lead = (-1, *[1] * (x.dim() - 1))
    count, _, deviation = moments.unbind(-1)
    squares = count * deviation**2
    scale = torch.rsqrt(squares / (count - 1).clamp(min=1) + eps)
    largest = torch.where(inside, x.double(), 0.0).abs().flatten(1)
    largest = largest.amax(-1) if largest.shape[1] else largest.new_zeros(len(x))
    slack = (scale * largest).reshape(lead) + want.abs()
    assert_rounds(got, want, slack, 4 * inside.numel() + 32)


@given(data=st.data())
def test_whiten_is_its_definition(backend, data):
    batch = data.draw(tokens(backend.device))
    shift = data.draw(st.sampled_from([0.0, 3.0, 1000.0]))
    x = batch.values(batch.objectives) + shift
    eps = data.draw(st.sampled_from([1e-8, 0.1]))
    got = po.whiten(x, batch.mask, eps=eps, cu_seqlens=batch.cu_seqlens)
    assert got.is_contiguous()
    assert_whitened(got, x, batch.mask, batch.cu_seqlens, eps)


@pytest.mark.parametrize("ragged", [False, True])
def test_whiten_of_long_sequences_is_its_definition(backend, ragged):
    """Longer than what one block of a GPU takes at a time."""
    batch = long_batch(backend.device, ragged)
    x = batch.values(2) + 3
    got = po.whiten(x, batch.mask, cu_seqlens=batch.cu_seqlens)
    assert_whitened(got, x, batch.mask, batch.cu_seqlens, 1e-8)


def moments_of(x):
    """Mean and unbiased variance of the last dimension."""
    mean = exactly.total(x)[..., None] / x.shape[-1]
    return mean, exactly.dot(x - mean, x - mean)[..., None] / (x.shape[-1] - 1)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_whiten_has_mean_0_and_variance_1(backend, layout):
    generator = torch.Generator().manual_seed(0)
    x = 7 + 3 * normal(3, 4, 500, generator=generator, dtype=torch.float64)
    if layout == "permuted":
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    mask = torch.rand(4, 500, generator=generator) < 0.6
    got = po.whiten(x.to(backend.device), mask.to(backend.device)).cpu()
    for objective, out in zip(x, got, strict=True):
        tokens = objective[mask]
        mean, variance = moments_of(tokens)
        want = (tokens - mean) / (variance + 1e-8).sqrt()
        torch.testing.assert_close(out[mask], want, rtol=1e-12, atol=1e-13)
        assert bool((out[~mask] == 0).all())


def test_whiten_keeps_its_precision_far_from_zero(backend):
    """A mean of 1e8 standard deviations: textbook sums of squares would leave no digit."""
    generator = torch.Generator().manual_seed(1)
    near = normal(1, 3, 700, generator=generator, dtype=torch.float64)
    far = (1e8 + near).to(backend.device)
    near = (far - 1e8).cpu()
    mean, variance = moments_of(near.flatten())
    want = (near - mean) / variance.sqrt()
    torch.testing.assert_close(po.whiten(far).cpu(), want, rtol=1e-6, atol=1e-6)


def test_whiten_by_sequence_takes_one_score_each(backend):
    generator = torch.Generator().manual_seed(2)
    scores = normal(2, 9, generator=generator, dtype=torch.float64).to(backend.device)
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1], device=backend.device)
    got = po.whiten(scores, mask)
    want = po.whiten(scores[:, None], mask[None])[:, 0]
    assert got.shape == (2, 9)
    assert torch.equal(got, want)
    kept = scores[:, mask.bool()].cpu()
    mean, variance = moments_of(kept)
    want = (kept - mean) / variance.sqrt()
    torch.testing.assert_close(got[:, mask.bool()].cpu(), want, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_whiten_merges_the_moments_of_ranks(backend, shards):
    """Ranks that hold parts of a batch, one of them nothing, whiten as one that holds it all."""
    generator = torch.Generator().manual_seed(3)
    x = (5 + normal(2, 7, 60, generator=generator, dtype=torch.float64)).to(backend.device)
    mask = (torch.rand(7, 60, generator=generator) < 0.5).to(backend.device)
    bounds = torch.randint(0, 8, (shards - 1,), generator=generator).sort().values.tolist()
    parts = [slice(*ends) for ends in zip([0, *bounds], [*bounds, 7], strict=True)]
    parts.append(slice(7, 7))
    moments = torch.stack([_ops.whiten_moments(x[:, p], mask[p], None) for p in parts])
    assert moments.shape == (shards + 1, 2, 3)
    want = po.whiten(x, mask)
    for p in parts:
        got = _ops.whiten_apply(x[:, p], mask[p], None, moments, 1e-8)
        torch.testing.assert_close(got, want[:, p], rtol=1e-12, atol=1e-13)


def test_whiten_moments_are_exact_where_nothing_varies(backend):
    x = torch.full((1, 3, 700), 0.1, dtype=torch.float64, device=backend.device)
    mask = torch.ones(3, 700, device=backend.device)
    mask[1] = mask[2, 300:] = 0
    count, mean, deviation = _ops.whiten_moments(x, mask, None)[0].tolist()
    assert (count, mean, deviation) == (1000, 0.1, 0.0)


LARGEST = torch.finfo(torch.float64).max


@pytest.mark.parametrize("value", [0.1, 1e150, 1e200, -LARGEST])
def test_whiten_of_equal_numbers_is_exactly_zero(backend, value):
    """Also where they lie on three ranks, of which one holds nothing."""
    x = torch.full((2, 5, 700), value, dtype=torch.float64, device=backend.device)
    x[1] = 0.3
    mask = torch.ones(5, 700, device=backend.device)
    mask[3] = mask[1, 300:] = 0
    assert not bool(po.whiten(x, mask).any())
    parts = slice(0, 2), slice(2, 2), slice(2, 5)
    moments = torch.stack([_ops.whiten_moments(x[:, p], mask[p], None) for p in parts])
    for p in parts:
        assert not bool(_ops.whiten_apply(x[:, p], mask[p], None, moments, 1e-8).any())


def integers_of_two_objectives(backend):
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-40, 40, (2, 6, 700), generator=generator).double().to(backend.device)
    mask = (torch.rand(6, 700, generator=generator) < 0.6).to(backend.device)
    return x, mask


@pytest.mark.parametrize("power", [470, 480, 510, 660, 1000, 1018])
def test_whiten_of_numbers_whose_squares_leave_the_range(backend, power):
    """Times a power of two nothing changes where ε counts for nothing, but for the order of sums.
    The first objective stays ordinary. Sums of 1400 integers up to 40 are exact but for the mean.
    """
    x, mask = integers_of_two_objectives(backend)
    large = x.clone()
    large[1] *= 2.0**power
    want = torch.cat([po.whiten(x[:1], mask), po.whiten(x[1:], mask, eps=1e-300)])
    got = po.whiten(large, mask)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)
    permuted = large.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    torch.testing.assert_close(po.whiten(permuted, mask), got, rtol=1e-13, atol=1e-14)
    parts = slice(0, 4), slice(4, 4), slice(4, 6)
    moments = torch.stack([_ops.whiten_moments(large[:, p], mask[p], None) for p in parts])
    for p in parts:
        got = _ops.whiten_apply(large[:, p], mask[p], None, moments, 1e-8)
        torch.testing.assert_close(got, want[:, p], rtol=1e-13, atol=1e-14)
    ragged = po.whiten(large[:, 0], mask[0], cu_seqlens=torch.tensor([0, 300, 700]).to(mask.device))
    torch.testing.assert_close(
        ragged, po.whiten(large[:, :1], mask[:1])[:, 0], rtol=1e-13, atol=1e-14
    )


def test_whiten_of_the_largest_numbers(backend):
    below = math.nextafter(LARGEST, 0)
    rows = [LARGEST, -LARGEST, LARGEST, -LARGEST], [LARGEST, LARGEST, LARGEST, below]
    x = torch.tensor(rows, dtype=torch.float64, device=backend.device)[:, None]
    half = 0.75**0.5
    got = po.whiten(x)[:, 0]
    want = torch.tensor([half, -half, half, -half], dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(got[0], want, rtol=1e-15, atol=0)
    # Their mean, a quarter of a last place below the largest, rounds to it: half a deviation off.
    want = torch.tensor([0.5, 0.5, 0.5, -1.5], dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(got[1], want, rtol=0, atol=0.5 * (1 + 1e-15))


def test_whiten_with_ranks_of_different_sizes(backend):
    """Ordinary numbers beside one of 1e200 are equal but to it."""
    parts = [
        torch.tensor(rows, dtype=torch.float64, device=backend.device)[None]
        for rows in ([[1.0, -2.0]], [[1e200, 3.0]])
    ]
    moments = torch.stack([_ops.whiten_moments(x, None, None) for x in parts])
    got = torch.cat([_ops.whiten_apply(x, None, None, moments, 1e-8) for x in parts], 2)
    want = torch.tensor([[[-0.5, -0.5, 1.5, -0.5]]], dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("scale", [1.0, 1e200])
def test_whiten_of_what_is_not_finite_is_nan(backend, value, scale):
    x, mask = integers_of_two_objectives(backend)
    x *= scale
    x[1, 2, 100], mask[2, 100] = value, True
    got = po.whiten(x, mask)
    assert bool(got[0].isfinite().all())
    assert torch.equal(got[1].isnan(), mask)
    moments = torch.stack([_ops.whiten_moments(x[:, p : p + 3], mask[p : p + 3], None)
                           for p in (0, 3)])  # fmt: skip
    other = _ops.whiten_apply(x[:, 3:], mask[3:], None, moments, 1e-8)
    assert torch.equal(other[1].isnan(), mask[3:])


def test_whiten_of_a_single_token_is_zero(backend):
    x = torch.full((2, 3, 4), 1e30, device=backend.device)
    mask = torch.zeros(3, 4, device=backend.device)
    mask[1, 2] = 1
    assert bool((po.whiten(x, mask) == 0).all())


def test_whiten_never_reads_masked_tokens_and_propagates_nan_by_objective(backend):
    x = torch.arange(12.0, device=backend.device).reshape(2, 2, 3)
    mask = torch.ones(2, 3, device=backend.device)
    mask[0, 1] = 0
    x[:, 0, 1] = torch.nan
    x[1, 1, 0] = torch.nan
    got = po.whiten(x, mask)
    assert bool(got[0].isfinite().all())
    assert torch.equal(got[1].isnan(), mask.bool())
    assert got[:, 0, 1].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0), (1, 0, 0), (2, 0)])
def test_whiten_of_an_empty_batch_is_empty(backend, shape):
    x = torch.ones(shape, device=backend.device)
    assert po.whiten(x, torch.ones(shape[1:], device=backend.device)).shape == shape


def test_whiten_of_a_fully_masked_batch_is_zero(backend):
    x = torch.full((2, 3, 4), torch.nan, device=backend.device)
    assert bool((po.whiten(x, torch.zeros(3, 4, device=backend.device)) == 0).all())


def test_whiten_takes_at_least_float32(backend):
    x = torch.ones(1, 1, 2, device=backend.device)
    assert po.whiten(x.half()).dtype == torch.float32
    assert po.whiten(x.double()).dtype == torch.float64


def test_whiten_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    x = normal(3, 37, 300, generator=generator)
    mask = torch.rand(37, 300, generator=generator) < 0.8
    assert_independent_of_thread_count(lambda: po.whiten(x, mask))
    assert_independent_of_thread_count(lambda: po.whiten(x.double() * 1e200, mask))


BAD = [
    (
        lambda a: {**a, "advantages": [1.0]},
        TypeError,
        "advantages must be a torch.Tensor, got list",
    ),
    (lambda a: {**a, "advantages": a["advantages"].long()}, TypeError, "advantages .* floating"),
    (
        lambda a: {**a, "advantages": torch.ones(4)},
        ValueError,
        r"advantages .*\[N, B, T\], got \[4\]",
    ),
    (lambda a: {**a, "advantages": a["advantages"][:0]}, ValueError, "at least one objective"),
    (lambda a: {**a, "mask": a["mask"][:2]}, ValueError, r"mask .*\[3, 4\].*\[2, 4\]"),
    (lambda a: {**a, "mask": 1}, TypeError, "mask must be a torch.Tensor, got int"),
    (
        lambda a: {"advantages": a["mask"], "mask": a["mask"][0, :2]},
        ValueError,
        r"mask .*\[4\].*\[2\]",
    ),
    (lambda a: {**a, "eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
    (lambda a: {**a, "eps": "1"}, TypeError, "eps must be a number, got str"),
    (lambda a: {**a, "cu_seqlens": torch.tensor([0, 4])}, ValueError, r"\[N, total\] when"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_whiten_names_the_bad_argument(backend, change, error, message):
    x = torch.ones(2, 3, 4, device=backend.device)
    with pytest.raises(error, match=message):
        po.whiten(**change({"advantages": x, "mask": x[0]}))


def test_whiten_checks_values_before_it_writes(backend):
    x = torch.ones(1, 2, 2, device=backend.device)
    bad_mask = torch.tensor([[1, 2], [1, 1]], device=backend.device)
    bad_offsets = torch.tensor([0, 3, 2], device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        po.whiten(x, bad_mask, **by_itself)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 2 tokens"):
        po.whiten(x[0], cu_seqlens=bad_offsets, **by_itself)


def test_whiten_refuses_a_gradient(backend):
    x = torch.ones(1, 1, 3, device=backend.device, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"pama_ops\.whiten is not differentiable"):
        po.whiten(x).sum().backward()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_whiten_passes_opcheck(ragged, masked):
    shape = (2, 6) if ragged else (2, 3, 4)
    x = normal(shape)
    mask = torch.ones(shape[1:], dtype=torch.bool) if masked else None
    cu_seqlens = torch.tensor([0, 2, 6]) if ragged else None
    torch.library.opcheck(_ops.whiten_moments, (x, mask, cu_seqlens))
    moments = torch.rand(3, 2, 3, dtype=torch.float64)
    torch.library.opcheck(_ops.whiten_apply, (x, mask, cu_seqlens, moments, 1e-8))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 5)])
def test_whiten_compiles_whole(shape):
    compiled = torch.compile(po.whiten, fullgraph=True, backend="aot_eager")
    x, mask = normal(shape), torch.ones(shape[1:])
    torch.testing.assert_close(compiled(x, mask), po.whiten(x, mask))
