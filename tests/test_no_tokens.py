"""Arrays without a token: nothing is walked, however many rows or objectives they have, and results
have the shapes and values of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pama_ops as po

HUGE = 2**40  # rows that nobody could visit
REDUCTIONS = ["token", "sequence", "gram", "batch"]
AGGREGATES = ["token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum", "token-sum"]
# B and T: a huge number of sequences of no tokens, none of huge ones.
EMPTY = [(HUGE, 0), (0, HUGE), (3, 0), (0, 3), (0, 0)]

masked = pytest.mark.parametrize("mask_dtype", [None, torch.bool, torch.float32])
checked = pytest.mark.parametrize("check_values", [False, True])
shaped = pytest.mark.parametrize("shape", EMPTY)


@pytest.fixture
def nothing(backend):
    def make(*shape: int, dtype: torch.dtype | None = torch.float32) -> Tensor | None:
        return None if dtype is None else torch.empty(shape, dtype=dtype, device=backend.device)

    return make


@shaped
@masked
@checked
def test_gae_of_no_tokens(nothing, shape, mask_dtype, check_values):
    mask = nothing(*shape, dtype=mask_dtype)
    x = nothing(2, *shape)
    last = nothing(1).expand(2, shape[0]) if shape[0] else nothing(2, 0)
    for last_values in (None, last):
        for part in po.gae(x, x, mask, last_values=last_values, check_values=check_values):
            assert part.shape == x.shape


@checked
def test_many_objectives_of_no_tokens(nothing, backend, check_values):
    for shape in ((HUGE, 3, 0), (HUGE, 0, 3)):
        x, mask = nothing(*shape), nothing(*shape[1:])
        assert po.gae(x, x, mask, check_values=check_values).returns.shape == shape
        assert po.whiten(x, mask, check_values=check_values).shape == shape
    cu_seqlens = torch.zeros(4, dtype=torch.int64, device=backend.device)
    x, options = nothing(HUGE, 0), {"cu_seqlens": cu_seqlens, "check_values": check_values}
    assert po.gae(x, x, **options).returns.shape == x.shape
    assert po.whiten(x, **options).shape == x.shape
    assert po.whiten(x).shape == x.shape
    assert po.group_normalize(x, 3).shape == x.shape
    assert po.group_normalize(x, 3, return_informative=True).informative.shape == x.shape


@shaped
@masked
@checked
def test_whiten_of_no_tokens(nothing, shape, mask_dtype, check_values):
    mask = nothing(*shape, dtype=mask_dtype)
    assert po.whiten(nothing(2, *shape), mask, check_values=check_values).shape == (2, *shape)


@shaped
@masked
@checked
def test_losses_of_no_tokens(nothing, shape, mask_dtype, check_values):
    options = {"mask": nothing(*shape, dtype=mask_dtype), "check_values": check_values}
    x = nothing(*shape).requires_grad_()
    kl = po.kl_divergence(x, nothing(*shape), **options)
    assert kl.shape == shape
    assert torch.autograd.grad(kl.sum(), x)[0].shape == shape
    for aggregate in AGGREGATES:
        old, a, ref = (nothing(*shape) for _ in range(3))
        out = po.ppo_loss(x, old, a, aggregate=aggregate, ref_logp=ref, kl_coef=0.5, **options)
        assert all(part.item() == 0 for part in out)
        assert torch.autograd.grad(out.loss, x)[0].shape == shape
    x = nothing(2, *shape).requires_grad_()
    loss = po.value_loss(x, nothing(2, *shape), old_values=nothing(2, *shape), **options)
    assert loss.tolist() == [0, 0]
    assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
@shaped
@masked
def test_pama_advantages_of_no_tokens(nothing, shape, mask_dtype, reduction):
    if shape == (HUGE, 0) and reduction == "sequence":
        pytest.skip("weights of each sequence would fill the memory")
    step = po.pama_advantages(
        nothing(2, *shape),
        nothing(*shape, dtype=mask_dtype),
        nothing(*shape),
        reduction=reduction,
        ratio_weighted=mask_dtype is None,
        check_values=True,
    )
    problems = {"token": shape, "sequence": shape[:1]}.get(reduction, ())
    assert step.advantages.shape == shape
    assert step.weights.shape == (2, *problems)
    assert not bool(step.weights.any())
    assert step.active.tolist() == [False, False]
    if reduction == "gram":
        assert step.gram.tolist() == [[0, 0], [0, 0]]
    else:
        assert step.optimum.shape == problems
        assert not bool(step.optimum.any())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
def test_pama_advantages_of_no_tokens_by_a_preference_for_each_sequence(nothing, shape, reduction):
    preference = nothing(2, shape[0]).fill_(1)
    step = po.pama_advantages(nothing(2, *shape), preference=preference, reduction=reduction)
    problems = shape if reduction == "token" else shape[:1]
    assert step.advantages.shape == shape
    assert step.weights.shape == (2, *problems)
    assert not bool(step.weights.any())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@checked
def test_ragged_arrays_of_no_tokens(nothing, backend, reduction, check_values):
    cu_seqlens = torch.zeros(4, dtype=torch.int32, device=backend.device)
    options = {"cu_seqlens": cu_seqlens, "check_values": check_values}
    x, mask = nothing(2, 0), nothing(0)
    assert po.gae(x, x, mask, **options).advantages.shape == (2, 0)
    assert po.whiten(x, mask, **options).shape == (2, 0)
    assert po.value_loss(x, x, mask, **options).tolist() == [0, 0]
    assert po.ppo_loss(x[0], x[0], x[0], mask, **options).loss.item() == 0
    step = po.pama_advantages(x, mask, reduction=reduction, **options)
    problems = {"token": (0,), "sequence": (3,)}.get(reduction, ())
    assert step.weights.shape == (2, *problems)
    assert not bool(step.weights.any())


def test_losses_of_no_tokens_compile_for_any_number_of_rows():
    def loss(x: Tensor) -> Tensor:
        return po.ppo_loss(x, x.detach(), x.detach()).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((4, 5), (3, 2), (2, 0), (0, 2)):
        x = torch.ones(shape, requires_grad=True)
        out = compiled(x)
        assert out.item() == (-1 if x.numel() else 0)
        assert torch.autograd.grad(out, x)[0].shape == shape
