from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import Tokens, long_batch, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference

AGGREGATES = ["token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum", "token-sum"]
ESTIMATORS = ["k1", "k2", "k3"]
STATISTICS = ["clip_fraction", "approx_kl", "ratio_mean", "kl"]
# Roundings of one token's terms: the exponential within 2 ulp, u − 1 − log u within 1e-14 of itself
# (csrc/core/tokens/exponential.h), and a handful of products.
TERMS = 64


def drawn(data: st.DataObject, backend) -> tuple[Tokens, dict, dict]:
    """A batch, its arrays, and options of the loss."""
    batch = data.draw(tokens(backend.device))
    arrays = {
        "logp": batch.values(),
        "old_logp": batch.values(),
        "advantages": batch.values(),
        "mask": batch.mask,
        "ref_logp": batch.values() if data.draw(st.booleans()) else None,
        "cu_seqlens": batch.cu_seqlens,
    }
    normalizer = data.draw(st.sampled_from([None, 3.5, "tensor"]))
    if normalizer == "tensor":
        dtype = data.draw(st.sampled_from([torch.int64, torch.float32]))
        shape = data.draw(st.sampled_from([(), (1,), (1, 1)]))
        normalizer = torch.full(shape, 7, dtype=dtype, device=backend.device)
    options = {
        "clip": data.draw(st.sampled_from([0.2, (0.2, 0.28), (0.5, 3.0), (1.0, 0.1), (2.0, 0.1)])),
        "aggregate": data.draw(st.sampled_from(AGGREGATES)),
        "normalizer": normalizer,
        "kl_coef": 0.0 if arrays["ref_logp"] is None else data.draw(st.sampled_from([0.0, 0.3])),
        "kl_estimator": data.draw(st.sampled_from(ESTIMATORS)),
    }
    return batch, arrays, options


def codes(options: dict) -> dict:
    """Options of `ppo_loss` as the op takes them."""
    clip, normalizer = options["clip"], options["normalizer"]
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    tensor = isinstance(normalizer, torch.Tensor)
    return {
        "epsilon_low": low,
        "epsilon_high": high,
        "aggregate": AGGREGATES.index(options["aggregate"]),
        "normalizer": normalizer if tensor else None,
        "divisor": 0.0 if tensor or normalizer is None else normalizer,
        "kl_coef": options["kl_coef"],
        "estimator": ESTIMATORS.index(options["kl_estimator"]) + 1,
    }


def per_token(weights, batch: Tokens) -> torch.Tensor:
    """Weights of sequences at their tokens."""
    if batch.cu_seqlens is None:
        # Of rows without tokens there are no weights.
        return (weights[:, None] if batch.shape[1] else weights).expand(batch.shape)
    return weights.repeat_interleave(batch.cu_seqlens.diff().long())


def magnitudes(batch: Tokens, arrays: dict, options: dict, weights) -> tuple[torch.Tensor, ...]:
    """Sizes of the terms of the loss and of its slope, per token, and of the statistics' sums."""
    mask = torch.ones(batch.shape, device=batch.device) if batch.mask is None else batch.mask
    x = {
        k: torch.where(mask != 0, arrays[k].double(), 0.0)
        for k in ("logp", "old_logp", "advantages")
    }
    log_ratio = x["logp"] - x["old_logp"]
    ratio, coef = log_ratio.exp(), abs(options["kl_coef"])
    code = codes(options)
    size = (ratio * x["advantages"]).abs() + (1 + code["epsilon_high"]) * x["advantages"].abs()
    kl = slope = torch.zeros_like(ratio)
    if arrays["ref_logp"] is not None:
        ref = torch.where(mask != 0, arrays["ref_logp"].double(), 0.0)
        kl = reference.losses.kl_estimate(x["logp"] - ref, code["estimator"]).abs()
        slope = reference.losses.kl_estimate_slope(x["logp"] - ref, code["estimator"]).abs()
    share = per_token(weights, batch)
    statistics = torch.stack(
        [torch.ones_like(ratio), reference.losses.kl_estimate(-log_ratio, 3), ratio, kl]
    )
    statistics = torch.where(mask != 0, statistics, 0.0).flatten(1).sum(-1)
    return (
        torch.where(mask != 0, share * (size + coef * kl), 0.0),
        torch.where(mask != 0, share * (size + coef * slope), 0.0),
        statistics / (mask != 0).sum().clamp(min=1),
    )


@given(data=st.data())
def test_ppo_loss_is_its_definition(backend, data):
    batch, arrays, options = drawn(data, backend)
    got = po.ppo_loss(**arrays, **options)
    loss, statistics, weights = reference.ppo_loss(**arrays, **codes(options))
    size, _, sizes = magnitudes(batch, arrays, options, weights)
    terms = size.numel() + TERMS
    assert_rounds(got.loss, loss, size.sum(), terms)
    assert_rounds(torch.stack(got[1:]), statistics, sizes, terms)


@given(data=st.data())
def test_ppo_loss_gradient_is_its_definition(backend, data):
    batch, arrays, options = drawn(data, backend)
    logp = arrays["logp"].clone().requires_grad_()
    loss = po.ppo_loss(**{**arrays, "logp": logp}, **options).loss
    loss.backward(torch.tensor(-1.5, dtype=loss.dtype, device=loss.device))
    code = codes(options)
    _, _, weights = reference.ppo_loss(**arrays, **code)
    for name in ("aggregate", "divisor", "normalizer"):
        del code[name]
    want = reference.ppo_loss_backward(torch.tensor(-1.5), weights, **arrays, **code)
    _, size, _ = magnitudes(batch, arrays, options, weights)
    assert logp.grad.dtype == arrays["logp"].dtype
    assert_rounds(logp.grad, want, 1.5 * size, TERMS)


@pytest.mark.parametrize("ragged", [False, True])
def test_ppo_loss_of_long_sequences_is_its_definition(backend, ragged):
    """Longer than what one block of a GPU takes at a time."""
    batch = long_batch(backend.device, ragged)
    arrays = {k: batch.values() for k in ("logp", "old_logp", "advantages", "ref_logp")}
    arrays |= {"mask": batch.mask, "cu_seqlens": batch.cu_seqlens}
    aggregate = "sequence-mean-token-mean"
    options = {"clip": 0.2, "aggregate": aggregate, "normalizer": None}
    options |= {"kl_coef": 0.1, "kl_estimator": "k3"}
    logp = arrays["logp"].clone().requires_grad_()
    got = po.ppo_loss(**{**arrays, "logp": logp}, **options)
    got.loss.backward()
    code = codes(options)
    loss, statistics, weights = reference.ppo_loss(**arrays, **code)
    size, slopes, sizes = magnitudes(batch, arrays, options, weights)
    assert_rounds(got.loss.detach(), loss, size.sum(), size.numel() + TERMS)
    assert_rounds(torch.stack(got[1:]), statistics, sizes, size.numel() + TERMS)
    for name in ("aggregate", "divisor", "normalizer"):
        del code[name]
    want = reference.ppo_loss_backward(torch.tensor(1.0), weights, **arrays, **code)
    assert_rounds(logp.grad, want, slopes, TERMS)


def textbook(logp, old_logp, advantages, mask, clip, aggregate, ref_logp, kl_coef):
    """As papers write it and trainers run it, differentiable."""
    ratio = torch.exp(logp - old_logp)
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantages)
    k = logp - ref_logp
    loss = (loss + kl_coef * (torch.exp(-k) - 1 + k)) * mask
    if aggregate == "token-mean":
        return loss.sum() / mask.sum()
    if aggregate == "token-sum":
        return loss.sum()
    rows = loss.sum(-1)
    if aggregate == "sequence-mean-token-mean":
        rows = rows / mask.sum(-1)
    return rows.mean()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.4)])
def test_ppo_loss_and_its_gradient_are_those_of_the_formula(backend, aggregate, clip):
    generator = torch.Generator().manual_seed(0)
    draws = 0.3 * normal(4, 5, 40, generator=generator, dtype=torch.float64)
    logp, old_logp, advantages, ref_logp = draws.to(backend.device)
    mask = torch.arange(40) < torch.tensor([[40], [7], [1], [39], [20]])
    mask = mask.to(backend.device)
    ours, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    got = po.ppo_loss(
        ours,
        old_logp,
        advantages,
        mask,
        clip=clip,
        aggregate=aggregate,
        ref_logp=ref_logp,
        kl_coef=0.1,
    )
    want = textbook(theirs, old_logp, advantages, mask, clip, aggregate, ref_logp, 0.1)
    torch.testing.assert_close(got.loss, want, rtol=1e-13, atol=1e-14)
    (2 * got.loss).backward()
    (2 * want).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)
    log_ratio = (logp - old_logp)[mask]
    ratio, a = log_ratio.exp(), advantages[mask]
    clipped = ((ratio > 1 + clip[1]) & (a > 0)) | ((ratio < 1 - clip[0]) & (a < 0))
    k = (logp - ref_logp)[mask]
    want = [clipped.double().mean(), (ratio - 1 - log_ratio).mean(), ratio.mean()]
    want.append((torch.exp(-k) - 1 + k).mean())
    torch.testing.assert_close(torch.stack(got[1:]), torch.stack(want), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ppo_loss_of_micro_batches_adds_up(backend, aggregate):
    """With the normalizer of the whole batch, losses and gradients of its parts sum to its own."""
    generator = torch.Generator().manual_seed(1)
    logp, old_logp, a = normal(3, 6, 9, generator=generator, dtype=torch.float64)
    logp, old_logp, a = (x.to(backend.device) for x in (logp, old_logp, a))
    mask = (torch.rand(6, 9, generator=generator) < 0.5).to(backend.device)
    total = {"token-mean": mask.sum(), "token-sum": 1.0}.get(aggregate, mask.any(-1).sum())
    whole, parts = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    loss = po.ppo_loss(whole, old_logp, a, mask, aggregate=aggregate).loss
    loss.backward()
    added = 0.0
    for rows in (slice(0, 2), slice(2, 3), slice(3, 6)):
        part = po.ppo_loss(
            parts[rows], old_logp[rows], a[rows], mask[rows], aggregate=aggregate, normalizer=total
        )
        part.loss.backward()
        added += part.loss.detach()
    torch.testing.assert_close(added, loss.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-13, atol=1e-16)


def test_ppo_loss_of_ragged_sequences_is_that_of_padded_ones(backend):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([3, 0, 40, 1])
    padded = normal(3, 4, 40, generator=generator, dtype=torch.float64).to(backend.device)
    inside = (torch.arange(40) < lengths[:, None]).to(backend.device)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(backend.device)
    for aggregate in AGGREGATES:
        whole = po.ppo_loss(*padded, inside, aggregate=aggregate).loss
        ragged = po.ppo_loss(*padded[:, inside], aggregate=aggregate, cu_seqlens=cu_seqlens).loss
        torch.testing.assert_close(ragged, whole, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ppo_loss_of_an_empty_batch_is_zero(backend, shape, aggregate):
    x = torch.ones(shape, device=backend.device, requires_grad=True)
    y = x.detach()
    out = po.ppo_loss(x, y, y, y, aggregate=aggregate, ref_logp=y, kl_coef=0.1)
    assert torch.stack(out).tolist() == [0.0] * 5
    out.loss.backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("normalizer", [None, 2.0, 0])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ppo_loss_without_unmasked_tokens_is_zero(backend, aggregate, normalizer):
    """A normalizer of 0 is the count of a batch whose every rank is empty."""
    device = backend.device
    normalizer = torch.tensor(0, device=device) if normalizer == 0 else normalizer
    x = torch.full((2, 3), torch.nan, device=device, requires_grad=True)
    y = x.detach()
    mask = torch.zeros(2, 3, device=device)
    out = po.ppo_loss(x, y, y, mask, aggregate=aggregate, normalizer=normalizer)
    assert torch.stack(out).tolist() == [0.0] * 5
    out.loss.backward()
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ppo_loss_leaves_empty_sequences_out(backend, aggregate):
    generator = torch.Generator().manual_seed(3)
    arrays = normal(3, 4, 6, generator=generator).to(backend.device)
    mask = torch.ones(4, 6, device=backend.device)
    mask[1] = mask[3] = 0
    kept = po.ppo_loss(*arrays[:, [0, 2]], aggregate=aggregate).loss
    torch.testing.assert_close(po.ppo_loss(*arrays, mask, aggregate=aggregate).loss, kept)


@pytest.mark.parametrize("where", ["logp", "old_logp", "advantages"])
def test_ppo_loss_propagates_nan_inside_the_mask(backend, where):
    """To the loss, but in the gradient only to that token."""
    arrays = {
        k: torch.ones(2, 3, device=backend.device) for k in ("logp", "old_logp", "advantages")
    }
    arrays[where][0, 1] = torch.nan
    logp = arrays["logp"].requires_grad_()
    out = po.ppo_loss(**arrays)
    assert bool(out.loss.isnan())
    out.loss.backward()
    nan = torch.zeros(2, 3, dtype=torch.bool)
    nan[0, 1] = True
    assert torch.equal(logp.grad.isnan().cpu(), nan)


def test_ppo_loss_does_not_clip_at_the_bounds_nor_where_the_advantage_is_zero(backend):
    # log1p(0.5) and log1p(-0.5) themselves: the bounds, to the last bit.
    u = [math.log1p(0.5), math.log(1.5000001), math.log1p(-0.5), math.log(0.4999999), 2.0, -2.0]
    logp = torch.tensor([u], dtype=torch.float64, device=backend.device)
    a = torch.tensor([[1.0, 1.0, -1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    a, logp = a.to(backend.device), logp.requires_grad_()
    out = po.ppo_loss(logp, torch.zeros_like(a), a, clip=0.5, aggregate="token-sum")
    assert float(out.clip_fraction) == pytest.approx(2 / 6)
    out.loss.backward()
    assert (logp.grad[0] != 0).tolist() == [True, False, True, False, False, False]


def test_ppo_loss_at_the_ends_of_the_range(backend):
    """A ratio that overflows is held by the clip where that is below, and only there."""
    log_ratio = torch.tensor([[800.0, 800.0, -800.0, -800.0]], dtype=torch.float64)
    logp = log_ratio.to(backend.device).requires_grad_()
    a = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64, device=backend.device)
    for token, (loss, slope) in enumerate(
        [(-1.2, 0.0), (torch.inf, torch.inf), (0.0, 0.0), (0.8, 0.0)]
    ):
        mask = torch.arange(4, device=backend.device)[None] == token
        out = po.ppo_loss(logp, torch.zeros_like(a), a, mask).loss
        assert float(out.detach()) == pytest.approx(loss)
        (grad,) = torch.autograd.grad(out, logp)
        assert float(grad[0, token]) == slope


def test_ppo_loss_ignores_the_reference_where_it_counts_nothing(backend):
    x = torch.ones(1, 3, device=backend.device, requires_grad=True)
    y = x.detach()
    out = po.ppo_loss(x, y, y, ref_logp=torch.full_like(y, torch.nan))
    assert float(out.loss.detach()) == -1
    assert bool(out.kl.isnan())
    out.loss.backward()
    assert bool(x.grad.isfinite().all())


def test_ppo_loss_takes_the_widest_dtype(backend):
    x = torch.ones(1, 2, device=backend.device)
    half, wide = x.half().requires_grad_(), x.double()
    out = po.ppo_loss(half, x.bfloat16(), x.half())
    assert {v.dtype for v in out} == {torch.float32}
    out = po.ppo_loss(half, x, x, ref_logp=wide)
    assert {v.dtype for v in out} == {torch.float64}
    out.loss.backward()
    assert half.grad.dtype == torch.float16


def test_ppo_loss_takes_gradients_to_logp_alone(backend):
    x, y, z, ref = normal(4, 2, 3, device=backend.device).requires_grad_().unbind()
    out = po.ppo_loss(x, y, z, ref_logp=ref, kl_coef=0.1)
    grads = torch.autograd.grad(out.loss, [x, y, z, ref], allow_unused=True)
    assert [g is None for g in grads] == [False, True, True, True]
    assert not any(v.requires_grad for v in out[1:])


def test_ppo_loss_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    logp, old_logp, a, ref_logp = normal(4, 37, 300, generator=generator)
    mask = torch.rand(37, 300, generator=generator) < 0.8

    def call():
        x = logp.clone().requires_grad_()
        out = po.ppo_loss(x, old_logp, a, mask, ref_logp=ref_logp, kl_coef=0.1)
        out.loss.backward()
        return out, x.grad

    assert_independent_of_thread_count(call)


def flat(a: dict) -> dict:
    return {**{k: v[0] for k, v in a.items()}}


BAD = [
    (lambda a: {**a, "logp": [1.0]}, TypeError, "logp must be a torch.Tensor, got list"),
    (lambda a: {**a, "logp": a["logp"].long()}, TypeError, "logp .* floating-point"),
    (lambda a: {**a, "logp": a["logp"][0]}, ValueError, r"logp .*\[B, T\], got \[4\]"),
    (lambda a: {**a, "old_logp": a["logp"][:1]}, ValueError, r"old_logp .*\[3, 4\].*\[1, 4\]"),
    (lambda a: {**a, "old_logp": None}, TypeError, "old_logp must be a torch.Tensor"),
    (lambda a: {**a, "advantages": a["logp"].long()}, TypeError, "advantages .* floating-point"),
    (lambda a: {**a, "advantages": a["logp"].T}, ValueError, r"advantages .*\[3, 4\].*\[4, 3\]"),
    (lambda a: {**a, "mask": a["mask"][:2]}, ValueError, r"mask .*\[3, 4\].*\[2, 4\]"),
    (lambda a: {**a, "mask": a["mask"] + 0j}, TypeError, "mask must be bool, integer or float"),
    (lambda a: {**a, "clip": 0.0}, ValueError, "clip must be positive and finite, got 0.0"),
    (lambda a: {**a, "clip": -0.2}, ValueError, "clip must be positive"),
    (lambda a: {**a, "clip": (0.2, float("inf"))}, ValueError, r"clip\[1\] must be positive"),
    (lambda a: {**a, "clip": (0.2,)}, ValueError, r"clip must be a number or a pair"),
    (lambda a: {**a, "clip": "0.2"}, TypeError, "clip must be a number, got str"),
    (lambda a: {**a, "aggregate": "mean"}, ValueError, "aggregate must be one of 'token-mean'"),
    (lambda a: {**a, "normalizer": 0.0}, ValueError, "normalizer must be positive"),
    (lambda a: {**a, "normalizer": "all"}, TypeError, "normalizer must be a number, got str"),
    (lambda a: {**a, "normalizer": torch.ones(2)}, ValueError, r"normalizer must hold one .*\[2\]"),
    (lambda a: {**a, "kl_coef": 0.1}, ValueError, "ref_logp must be given when kl_coef is not 0"),
    (lambda a: {**a, "kl_coef": float("nan")}, ValueError, "kl_coef must be finite, got nan"),
    (lambda a: {**a, "ref_logp": a["logp"][0]}, ValueError, r"ref_logp .*\[3, 4\].*\[4\]"),
    (lambda a: {**a, "kl_estimator": "k0"}, ValueError, "kl_estimator must be one of 'k1'"),
    (lambda a: {**a, "cu_seqlens": torch.tensor([0, 4])}, ValueError, r"\[total\] when cu_seqlens"),
    (
        lambda a: {**flat(a), "cu_seqlens": torch.tensor([0.0])},
        TypeError,
        "cu_seqlens must be int32",
    ),
    (lambda a: {**flat(a), "cu_seqlens": [0, 4]}, TypeError, "cu_seqlens must be a torch.Tensor"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_ppo_loss_names_the_bad_argument(backend, change, error, message):
    x = torch.ones(3, 4, device=backend.device)
    with pytest.raises(error, match=message):
        po.ppo_loss(**change({"logp": x, "old_logp": x, "advantages": x, "mask": x}))


def test_ppo_loss_checks_values_before_it_writes(backend):
    x = torch.ones(2, 2, device=backend.device)
    bad_mask = torch.tensor([[1.0, 2.0], [1.0, 1.0]], device=backend.device)
    bad_offsets = torch.tensor([0, 3, 2], device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        po.ppo_loss(x, x, x, bad_mask, **by_itself)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 2 tokens"):
        po.ppo_loss(x[0], x[0], x[0], cu_seqlens=bad_offsets, **by_itself)
    with pytest.raises(ValueError, match="normalizer must not be negative, got -1"):
        po.ppo_loss(x, x, x, normalizer=torch.tensor(-1, device=backend.device), **by_itself)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ppo_loss_passes_gradcheck(backend, aggregate, estimator):
    generator = torch.Generator().manual_seed(4)
    draws = 0.3 * normal(4, 2, 4, generator=generator, dtype=torch.float64)
    logp, old_logp, a, ref_logp = draws.to(backend.device)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]], device=backend.device)
    options = {"kl_coef": 0.3, "kl_estimator": estimator, "aggregate": aggregate}
    assert torch.autograd.gradcheck(
        lambda x: po.ppo_loss(x, old_logp, a, mask, ref_logp=ref_logp, **options).loss,
        [logp.requires_grad_()],
    )


def test_ppo_loss_refuses_a_second_derivative(backend):
    x = normal(2, 3, device=backend.device, requires_grad=True)
    y = x.detach()
    (slope,) = torch.autograd.grad(po.ppo_loss(x, y, y).loss, x, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"pama_ops\.ppo_loss can be differentiated once, not twice"
    ):
        slope.sum().backward()


@pytest.mark.parametrize("aggregate", range(4))
@pytest.mark.parametrize("full", [False, True])
def test_ppo_loss_passes_opcheck(full, aggregate):
    shape = (6,) if full else (2, 3)
    logp, old_logp, a, ref_logp = normal(4, *shape)
    mask = torch.ones(shape, dtype=torch.bool) if full else None
    cu_seqlens = torch.tensor([0, 2, 6]) if full else None
    ref_logp, norm = (ref_logp, torch.tensor(5)) if full else (None, None)
    options = (0.2, 0.3, aggregate, 0.0 if full else 3.0, 0.1 if full else 0.0, 3)
    arguments = (logp.requires_grad_(), old_logp, a, mask, ref_logp, norm, cu_seqlens, *options)
    torch.library.opcheck(_ops.ppo_loss, arguments)
    weights = torch.ones(2, dtype=torch.float64)
    arguments = (torch.tensor(2.0), weights, logp.detach(), old_logp, a, mask, ref_logp, cu_seqlens)
    torch.library.opcheck(_ops.ppo_loss_backward, (*arguments, 0.2, 0.3, options[4], 3))


def test_ppo_loss_compiles_whole_with_its_gradient():
    def run(logp, old_logp, a, mask, normalizer):
        out = po.ppo_loss(
            logp, old_logp, a, mask, normalizer=normalizer, ref_logp=old_logp, kl_coef=0.1
        )
        return out.loss, out.approx_kl

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    logp, old_logp, a = normal(3, 3, 4)
    for normalizer in (None, 4.0, 5.0, torch.tensor(6)):
        results = []
        for function in (compiled, run):
            x = logp.clone().requires_grad_()
            loss, kl = function(x, old_logp, a, torch.ones(3, 4), normalizer)
            loss.backward()
            results.append((loss.detach(), kl, x.grad))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("old", [0.0, -1e10, -math.inf])
def test_an_advantage_of_zero_counts_zero_whatever_the_ratio(backend, old, dtype, aggregate):
    """Noon makes 0 the commonest advantage, and 0 times an infinite ratio would be NaN."""
    logp = torch.tensor([[1000.0, 0.0]], dtype=dtype, device=backend.device, requires_grad=True)
    old_logp = torch.tensor([[old, 0.0]], dtype=dtype, device=backend.device)
    advantages = torch.tensor([[0.0, 1.0]], dtype=dtype, device=backend.device)
    loss = po.ppo_loss(logp, old_logp, advantages, aggregate=aggregate).loss
    loss.backward()
    want = -0.5 if aggregate in ("token-mean", "sequence-mean-token-mean") else -1.0
    assert loss.item() == want
    assert logp.grad.tolist() == [[0.0, want]]


def test_a_ratio_of_nan_is_nan_whatever_the_advantage(backend):
    logp = torch.tensor([[math.nan, 0.0]], device=backend.device, requires_grad=True)
    loss = po.ppo_loss(logp, torch.zeros_like(logp), torch.zeros_like(logp)).loss
    loss.backward()
    assert math.isnan(loss.item())
    assert math.isnan(logp.grad[0, 0].item())
    assert logp.grad[0, 1].item() == 0
