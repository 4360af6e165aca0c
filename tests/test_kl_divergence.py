from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import down_decades, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference

ESTIMATORS = ["k1", "k2", "k3"]
# csrc/core/tokens/exponential.h: e^x − 1 − x is right to 1e-14 of itself, as are the reference's
# terms.
RELATIVE = 50


def textbook(logp, ref_logp, estimator):
    k = logp - ref_logp
    return {"k1": k, "k2": k**2 / 2, "k3": torch.exp(-k) - 1 + k}[estimator]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(data=st.data())
def test_kl_is_its_definition(backend, estimator, data):
    batch = data.draw(tokens(backend.device))
    logp, ref_logp = batch.values(scale=3), batch.values(scale=3)
    got = po.kl_divergence(logp, ref_logp, batch.mask, estimator=estimator)
    want = reference.kl_divergence(logp, ref_logp, batch.mask, ESTIMATORS.index(estimator) + 1)
    assert got.is_contiguous()
    assert_rounds(got, want, want.abs(), RELATIVE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(data=st.data())
def test_kl_gradient_is_its_definition(backend, estimator, data):
    batch = data.draw(tokens(backend.device))
    logp, ref_logp, grad = batch.values(), batch.values(), batch.values()
    ours, theirs = logp.clone().requires_grad_(), ref_logp.clone().requires_grad_()
    out = po.kl_divergence(ours, theirs, batch.mask, estimator=estimator)
    out.backward(grad.to(out.dtype))
    code = ESTIMATORS.index(estimator) + 1
    want = reference.kl_divergence_backward(grad, logp, ref_logp, batch.mask, code)
    for got, slope in (ours.grad, want), (theirs.grad, -want):
        assert got.dtype == logp.dtype
        assert_rounds(got, slope, slope.abs(), RELATIVE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_and_its_gradient_are_those_of_the_formula(backend, estimator):
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = normal(2, 4, 50, generator=generator, dtype=torch.float64)
    logp, ref_logp = logp.to(backend.device), ref_logp.to(backend.device)
    arguments = [x.clone().requires_grad_() for x in (logp, ref_logp, logp, ref_logp)]
    got = po.kl_divergence(*arguments[:2], estimator=estimator)
    want = textbook(*arguments[2:], estimator)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)
    (got.sum() + want.sum()).backward()
    for ours, theirs in zip(arguments[:2], arguments[2:], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-15)


def exact_k3(k):
    """exp(−k) − 1 + k in extended precision, by its series near 0."""
    k = k.astype(np.longdouble)
    series = np.ones_like(k)
    for j in range(30, 2, -1):
        series = 1 - k / j * series
    return np.where(np.abs(k) < 1, k * k / 2 * series, np.exp(-k) - 1 + k)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs 80-bit extended precision")
def test_k3_does_not_cancel(backend):
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (4000,), generator=generator) * 2 - 1
    small = down_decades(150, (4000,), generator) * sign
    wide = normal(2, 4000, generator=generator, dtype=torch.float64)
    k = torch.cat([small, wide[0], 233 * wide[1]]).numpy()
    logp = torch.from_numpy(k).to(backend.device)
    got = po.kl_divergence(logp, torch.zeros_like(logp)).cpu().numpy()
    want = exact_k3(k)
    assert float(np.max(np.abs(got - want) / want)) < 1e-14


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs 80-bit extended precision")
def test_exponential_is_right_to_an_ulp(backend):
    """Through the slope of k3, exp(−k) − 1, where that is not near −1: to an ulp of the exponential
    or to two of the slope, of which four make one where the slope is just below 1/2."""
    generator = torch.Generator().manual_seed(1)
    wide = 749 * torch.rand(20000, generator=generator, dtype=torch.float64) - 40
    near = normal(5000, generator=generator, dtype=torch.float64) * 1e-3
    x = torch.cat([wide, near]).numpy()
    logp = torch.from_numpy(-x).to(backend.device)
    grad = torch.full_like(logp, -1.0)
    slope = _ops.kl_divergence_backward(grad, logp, torch.zeros_like(logp), None, 3)
    want = np.expm1(x.astype(np.longdouble))
    own = 2 * np.spacing(np.abs(want.astype(np.float64)))
    bound = np.maximum(own, np.spacing((want + 1).astype(np.float64)))
    assert float(np.max(np.abs(slope.cpu().numpy() - want) / bound)) <= 1


def test_kl_at_the_ends_of_the_range(backend):
    ends = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -800.0, 800.0, -709.7]
    k = torch.tensor(ends, dtype=torch.float64, device=backend.device)
    got = po.kl_divergence(k, torch.zeros_like(k)).tolist()
    assert got[:4] == [0.0, 0.0, torch.inf, torch.inf]
    assert got[4] != got[4]
    assert got[5:7] == [torch.inf, 799.0]
    assert got[7] == pytest.approx(np.exp(709.7), rel=1e-13)


def test_kl_never_reads_masked_tokens_and_propagates_nan_inside(backend):
    k = torch.tensor([[1.0, torch.nan, torch.nan, 1.0]], device=backend.device, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 0]], device=backend.device)
    out = po.kl_divergence(k, torch.zeros_like(k), mask)
    assert out[0].isnan().tolist() == [False, False, True, False]
    assert out[0, 1] == out[0, 3] == 0
    out.sum().backward()
    assert k.grad[0].isnan().tolist() == [False, False, True, False]
    assert k.grad[0, 1] == k.grad[0, 3] == 0


def test_kl_takes_the_widest_dtype(backend):
    x = torch.ones(1, 2, device=backend.device)
    assert po.kl_divergence(x.half(), x.bfloat16()).dtype == torch.float32
    assert po.kl_divergence(x.half(), x.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(2500,), (2, 2500)])
def test_kl_of_long_sequences_is_its_definition(backend, shape):
    """Longer than what one block of a GPU takes at a time."""
    generator = torch.Generator().manual_seed(3)
    logp, ref_logp = (normal(shape, generator=generator).to(backend.device) for _ in range(2))
    want = reference.kl_divergence(logp, ref_logp, None, 3)
    assert_rounds(po.kl_divergence(logp, ref_logp), want, want.abs(), RELATIVE)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 0)])
def test_kl_of_an_empty_batch_is_empty(backend, shape):
    x = torch.ones(shape, device=backend.device, requires_grad=True)
    out = po.kl_divergence(x, x.detach(), torch.ones(shape, device=backend.device))
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape


def test_kl_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    logp, ref_logp = normal(2, 37, 3000, generator=generator)
    mask = torch.rand(37, 3000, generator=generator) < 0.8
    assert_independent_of_thread_count(lambda: po.kl_divergence(logp, ref_logp, mask))


BAD = [
    (lambda a: {**a, "logp": [1.0]}, TypeError, "logp must be a torch.Tensor, got list"),
    (lambda a: {**a, "logp": a["logp"].long()}, TypeError, "logp .* floating-point"),
    (
        lambda a: {**a, "logp": torch.ones(2, 3, 4)},
        ValueError,
        r"logp must have 1 or 2 dim.*\[2, 3",
    ),
    (lambda a: {**a, "logp": torch.tensor(1.0)}, ValueError, r"logp must have 1 or 2 dim.*\[\]"),
    (lambda a: {**a, "ref_logp": a["logp"][:1]}, ValueError, r"ref_logp .*\[3, 4\].*\[1, 4\]"),
    (lambda a: {**a, "ref_logp": None}, TypeError, "ref_logp must be a torch.Tensor"),
    (lambda a: {**a, "mask": a["mask"][:2]}, ValueError, r"mask .*\[3, 4\].*\[2, 4\]"),
    (lambda a: {**a, "mask": a["mask"] + 0j}, TypeError, "mask must be bool, integer or float"),
    (lambda a: {**a, "estimator": "k4"}, ValueError, "estimator must be one of 'k1', 'k2', 'k3'"),
    (lambda a: {**a, "estimator": 3}, ValueError, "estimator must be one of .* got 3"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_kl_names_the_bad_argument(backend, change, error, message):
    x = torch.ones(3, 4, device=backend.device)
    with pytest.raises(error, match=message):
        po.kl_divergence(**change({"logp": x, "ref_logp": x, "mask": x}))


def test_kl_checks_the_mask_before_it_writes(backend):
    x = torch.ones(2, 2, device=backend.device)
    bad = torch.tensor([[1.0, 1.0], [0.5, 1.0]], device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        po.kl_divergence(x, x, bad, **by_itself)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_passes_gradcheck(backend, estimator):
    generator = torch.Generator().manual_seed(2)
    logp, ref_logp = normal(2, 2, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]], device=backend.device)
    arguments = [x.to(backend.device).requires_grad_() for x in (logp, ref_logp)]
    assert torch.autograd.gradcheck(
        lambda x, y: po.kl_divergence(x, y, mask, estimator=estimator), arguments
    )


def test_kl_refuses_a_second_derivative(backend):
    x = torch.ones(1, 3, device=backend.device, requires_grad=True)
    out = po.kl_divergence(x, torch.zeros_like(x))
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"pama_ops\.kl_divergence can be differentiated once"):
        slope.sum().backward()


@pytest.mark.parametrize("estimator", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_kl_passes_opcheck(masked, estimator):
    logp = normal(3, 4, requires_grad=True)
    ref_logp = normal(3, 4, requires_grad=True)
    mask = torch.ones(3, 4, dtype=torch.bool) if masked else None
    torch.library.opcheck(_ops.kl_divergence, (logp, ref_logp, mask, estimator))
    backward = (normal(3, 4), logp.detach(), ref_logp.detach(), mask, estimator)
    torch.library.opcheck(_ops.kl_divergence_backward, backward)


def test_kl_compiles_whole_with_its_gradient():
    def loss(logp, ref_logp, mask):
        return po.kl_divergence(logp, ref_logp, mask).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logp, ref_logp, mask = normal(3, 4), normal(3, 4), torch.ones(3, 4)
    results = []
    for function in (compiled, loss):
        x = logp.clone().requires_grad_()
        out = function(x, ref_logp, mask)
        out.backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results)
