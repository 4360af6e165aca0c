from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import Tokens, long_batch, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference

# Roundings of one token's terms: two differences, a square, products with the weight.
TERMS = 8


def drawn(data: st.DataObject, backend) -> tuple[Tokens, dict, dict]:
    batch = data.draw(tokens(backend.device))
    n = batch.objectives
    arrays = {
        "values": batch.values(n),
        "returns": batch.values(n),
        "mask": batch.mask,
        "old_values": batch.values(n) if data.draw(st.booleans()) else None,
        "cu_seqlens": batch.cu_seqlens,
    }
    normalizer = data.draw(st.sampled_from([None, 3.5, "tensor"]))
    if normalizer == "tensor":
        normalizer = torch.full((1,), 7, device=backend.device)
    return batch, arrays, {"clip": data.draw(st.sampled_from([0.2, 1.0])), "normalizer": normalizer}


def code(options: dict) -> dict:
    normalizer = options["normalizer"]
    tensor = isinstance(normalizer, torch.Tensor)
    return {
        "clip": options["clip"],
        "normalizer": normalizer if tensor else None,
        "divisor": 0.0 if tensor or normalizer is None else normalizer,
    }


def sizes(batch: Tokens, arrays: dict) -> torch.Tensor:
    """|V| + |R| + |V_old| + ε per token, 0 where masked: what the differences are taken of."""
    mask = torch.ones(batch.shape, device=batch.device) if batch.mask is None else batch.mask
    given = [arrays[k] for k in ("values", "returns", "old_values") if arrays[k] is not None]
    total = sum(x.double().abs() for x in given)
    return torch.where(mask != 0, total + 1, 0.0)


@given(data=st.data())
def test_value_loss_is_its_definition(backend, data):
    batch, arrays, options = drawn(data, backend)
    got = po.value_loss(**arrays, **options)
    want, scale = reference.value_loss(**arrays, **code(options))
    squares = sizes(batch, arrays).flatten(1) ** 2
    assert_rounds(got, want, squares.sum(-1) * scale, squares.shape[1] + TERMS)


@given(data=st.data())
def test_value_loss_gradient_is_its_definition(backend, data):
    batch, arrays, options = drawn(data, backend)
    values = arrays["values"].clone().requires_grad_()
    loss = po.value_loss(**{**arrays, "values": values}, **options)
    grad = normal(batch.objectives, generator=batch.generator).to(backend.device)
    loss.backward(grad.to(loss.dtype))
    _, scale = reference.value_loss(**arrays, **code(options))
    want = reference.value_loss_backward(grad, scale, **arrays, clip=options["clip"])
    assert values.grad.dtype == arrays["values"].dtype
    lead = grad.double().abs().reshape(-1, *[1] * len(batch.shape)) * scale
    assert_rounds(values.grad, want, lead * sizes(batch, arrays), TERMS)


@pytest.mark.parametrize("ragged", [False, True])
def test_value_loss_of_long_sequences_is_its_definition(backend, ragged):
    """Longer than what one block of a GPU takes at a time."""
    batch = long_batch(backend.device, ragged)
    arrays = {k: batch.values(2) for k in ("values", "returns", "old_values")}
    arrays |= {"mask": batch.mask, "cu_seqlens": batch.cu_seqlens}
    values = arrays["values"].clone().requires_grad_()
    loss = po.value_loss(**{**arrays, "values": values})
    loss.sum().backward()
    want, scale = reference.value_loss(**arrays, clip=0.2, normalizer=None, divisor=0.0)
    squares = sizes(batch, arrays).flatten(1) ** 2
    assert_rounds(loss.detach(), want, squares.sum(-1) * scale, squares.shape[1] + TERMS)
    ones = torch.ones(2, device=backend.device)
    want = reference.value_loss_backward(ones, scale, **arrays, clip=0.2)
    assert_rounds(values.grad, want, scale * sizes(batch, arrays), TERMS)


def textbook(values, returns, mask, old_values=None, clip=0.2):
    """As OpenAI's baselines write it, differentiable."""
    error = (values - returns) ** 2
    if old_values is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * (error * mask).sum((-2, -1)) / mask.sum()


@pytest.mark.parametrize("clipped", [False, True])
def test_value_loss_and_its_gradient_are_those_of_the_formula(backend, clipped):
    generator = torch.Generator().manual_seed(0)
    draws = normal(3, 2, 5, 40, generator=generator, dtype=torch.float64)
    values, returns, old_values = draws.to(backend.device)
    mask = torch.rand(5, 40, generator=generator) < 0.7
    mask = mask.to(backend.device)
    old_values = old_values if clipped else None
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    got = po.value_loss(ours, returns, mask, old_values=old_values, clip=0.3)
    want = textbook(theirs, returns, mask, old_values, 0.3)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, device=backend.device)
    (got @ weight + want @ weight).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def test_value_loss_of_ragged_sequences_is_that_of_padded_ones(backend):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([3, 0, 40, 1])
    padded = normal(3, 2, 4, 40, generator=generator, dtype=torch.float64)
    inside = torch.arange(40) < lengths[:, None]
    ragged = [x[:, inside].to(backend.device) for x in padded]
    values, returns, old_values = padded.to(backend.device)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(backend.device)
    whole = po.value_loss(values, returns, inside.to(backend.device), old_values=old_values)
    got = po.value_loss(ragged[0], ragged[1], old_values=ragged[2], cu_seqlens=cu_seqlens)
    torch.testing.assert_close(got, whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0), (1, 0, 0)])
def test_value_loss_of_an_empty_batch_is_zero(backend, shape):
    x = torch.ones(shape, device=backend.device, requires_grad=True)
    loss = po.value_loss(x, x.detach(), torch.ones(shape[1:], device=backend.device))
    assert loss.tolist() == [0.0] * shape[0]
    loss.sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("normalizer", [None, 2.0, 0])
def test_value_loss_without_unmasked_tokens_is_zero(backend, normalizer):
    """A normalizer of 0 is the count of a batch whose every rank is empty."""
    normalizer = torch.tensor(0, device=backend.device) if normalizer == 0 else normalizer
    x = torch.full((2, 2, 3), torch.nan, device=backend.device, requires_grad=True)
    mask = torch.zeros(2, 3, device=backend.device)
    loss = po.value_loss(x, x.detach(), mask, old_values=x.detach(), normalizer=normalizer)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("where", ["values", "returns", "old_values"])
def test_value_loss_propagates_nan_inside_the_mask(backend, where):
    """To the loss of that objective, but in the gradient only to that token."""
    arrays = {
        k: torch.zeros(2, 2, 3, device=backend.device) for k in ("values", "returns", "old_values")
    }
    arrays[where][1, 0, 1] = torch.nan
    values = arrays["values"].requires_grad_()
    loss = po.value_loss(**arrays)
    assert loss.isnan().tolist() == [False, True]
    loss.sum().backward()
    nan = torch.zeros(2, 2, 3, dtype=torch.bool)
    nan[1, 0, 1] = True
    assert torch.equal(values.grad.isnan().cpu(), nan)


def test_value_loss_takes_the_widest_dtype(backend):
    x = torch.ones(1, 1, 2, device=backend.device)
    half = x.half().requires_grad_()
    assert po.value_loss(half, x.bfloat16()).dtype == torch.float32
    loss = po.value_loss(half, x, old_values=x.double())
    assert loss.dtype == torch.float64
    loss.sum().backward()
    assert half.grad.dtype == torch.float16


def test_value_loss_takes_gradients_to_values_alone(backend):
    x, y, z = normal(3, 1, 2, 3, device=backend.device).requires_grad_().unbind()
    loss = po.value_loss(x, y, old_values=z).sum()
    grads = torch.autograd.grad(loss, [x, y, z], allow_unused=True)
    assert [g is None for g in grads] == [False, True, True]


def test_value_loss_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    values, returns, old_values = normal(3, 3, 37, 300, generator=generator)
    mask = torch.rand(37, 300, generator=generator) < 0.8

    def call():
        x = values.clone().requires_grad_()
        loss = po.value_loss(x, returns, mask, old_values=old_values)
        loss.sum().backward()
        return loss, x.grad

    assert_independent_of_thread_count(call)


BAD = [
    (lambda a: {**a, "values": [1.0]}, TypeError, "values must be a torch.Tensor, got list"),
    (lambda a: {**a, "values": a["values"].long()}, TypeError, "values .* floating-point"),
    (lambda a: {**a, "values": a["values"][0]}, ValueError, r"values .*\[N, B, T\], got \[3, 4\]"),
    (lambda a: {**a, "values": a["values"][:0]}, ValueError, "at least one objective"),
    (
        lambda a: {**a, "returns": a["values"][:1]},
        ValueError,
        r"returns .*\[2, 3, 4\].*\[1, 3, 4\]",
    ),
    (lambda a: {**a, "old_values": a["mask"]}, ValueError, r"old_values .*\[2, 3, 4\].*\[3, 4\]"),
    (lambda a: {**a, "mask": a["values"]}, ValueError, r"mask .*\[3, 4\].*\[2, 3, 4\]"),
    (lambda a: {**a, "clip": 0.0}, ValueError, "clip must be positive and finite, got 0.0"),
    (lambda a: {**a, "clip": (0.1, 0.2)}, TypeError, "clip must be a number, got tuple"),
    (lambda a: {**a, "normalizer": -1.0}, ValueError, "normalizer must be positive"),
    (lambda a: {**a, "normalizer": torch.ones(3)}, ValueError, r"normalizer must hold one .*\[3\]"),
    (lambda a: {**a, "cu_seqlens": torch.tensor([0, 4])}, ValueError, r"\[N, total\] when"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_value_loss_names_the_bad_argument(backend, change, error, message):
    x = torch.ones(2, 3, 4, device=backend.device)
    with pytest.raises(error, match=message):
        po.value_loss(**change({"values": x, "returns": x, "mask": x[0]}))


def test_value_loss_checks_values_before_it_writes(backend):
    x = torch.ones(1, 2, 2, device=backend.device)
    bad_mask = torch.tensor([[1, 2], [1, 1]], device=backend.device)
    bad_offsets = torch.tensor([0, 3, 2], device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        po.value_loss(x, x, bad_mask, **by_itself)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 2 tokens"):
        po.value_loss(x[0], x[0], cu_seqlens=bad_offsets, **by_itself)
    with pytest.raises(ValueError, match="normalizer must not be negative, got -1"):
        po.value_loss(x, x, normalizer=torch.tensor(-1, device=backend.device), **by_itself)


@pytest.mark.parametrize("clipped", [False, True])
def test_value_loss_passes_gradcheck(backend, clipped):
    generator = torch.Generator().manual_seed(4)
    draws = normal(3, 2, 2, 4, generator=generator, dtype=torch.float64)
    values, returns, old_values = draws.to(backend.device)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]], device=backend.device)
    old_values = old_values if clipped else None
    assert torch.autograd.gradcheck(
        lambda x: po.value_loss(x, returns, mask, old_values=old_values), [values.requires_grad_()]
    )


def test_value_loss_refuses_a_second_derivative(backend):
    x = normal(1, 2, 3, device=backend.device, requires_grad=True)
    loss = po.value_loss(x, torch.zeros_like(x)).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"pama_ops\.value_loss can be differentiated once, not"):
        slope.sum().backward()


@pytest.mark.parametrize("full", [False, True])
def test_value_loss_passes_opcheck(full):
    shape = (2, 6) if full else (2, 2, 3)
    values, returns, old_values = normal(3, *shape)
    mask = torch.ones(shape[1:]) if full else None
    cu_seqlens = torch.tensor([0, 2, 6]) if full else None
    old_values, norm = (old_values, torch.tensor(5.0)) if full else (None, None)
    arguments = (values.requires_grad_(), returns, mask, old_values, norm, cu_seqlens, 0.2, 0.0)
    torch.library.opcheck(_ops.value_loss, arguments)
    scale = torch.tensor(0.5, dtype=torch.float64)
    arguments = (normal(2), scale, values.detach(), returns, mask, old_values, cu_seqlens, 0.2)
    torch.library.opcheck(_ops.value_loss_backward, arguments)


def test_value_loss_compiles_whole_with_its_gradient():
    def run(values, returns, mask):
        return po.value_loss(values, returns, mask, old_values=returns).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    values, returns = normal(2, 2, 3, 4)
    results = []
    for function in (compiled, run):
        x = values.clone().requires_grad_()
        loss = function(x, returns, torch.ones(3, 4))
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_value_loss_of_infinite_values_and_returns_is_nan(backend):
    """Infinity less itself is NaN, also where the clipped error is infinite."""
    values = torch.full((1, 1, 1), torch.inf, device=backend.device, requires_grad=True)
    returns, old = values.detach(), torch.zeros(1, 1, 1, device=backend.device)
    loss = po.value_loss(values, returns, old_values=old)
    loss.sum().backward()
    assert loss.isnan().all()
    assert values.grad.isnan().all()
