from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import DTYPES, arrange, normal

import pama_ops as po
from pama_ops import _ops, reference


def slack_of(rewards, group_size, eps, want):
    """What rounding of the mean does to a result.

    A mean of g rewards up to M in size is off by at most g u M. That moves a deviation, and with it
    the deviation's part in σ, by as much, hence a result y by at most (1 + |y|) g u M / (σ + ε).
    """
    groups = rewards.double().unflatten(-1, (-1, group_size)).nan_to_num()
    largest = groups.abs().amax(-1, keepdim=True).expand(groups.shape).flatten(-2)
    valid = rewards.double().unflatten(-1, (-1, group_size))
    count = (~valid.isnan()).sum(-1, keepdim=True)
    mean = groups.sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(valid.isnan(), 0.0, valid - mean) ** 2
    std = (squares.sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    std = std.expand(groups.shape).flatten(-2) + eps
    return torch.where(std > 0, (1 + want.abs()) * (largest / std) + want.abs(), 0.0)


@given(data=st.data())
def test_group_normalize_is_its_definition(backend, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    size = data.draw(st.sampled_from([1, 2, 3, 8, 33, 100]))
    lead = data.draw(st.sampled_from([(), (1,), (3,)]))
    shape = (*lead, size * data.draw(st.integers(1, 5)))
    rewards = normal(shape, generator=generator) + data.draw(st.sampled_from([0.0, 5.0]))
    missing = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    rewards = torch.where(missing, torch.nan, rewards).to(data.draw(st.sampled_from(DTYPES)))
    layout = data.draw(st.sampled_from(["contiguous", "permuted", "sliced"]))
    rewards = arrange(rewards, layout).to(backend.device)
    eps = data.draw(st.sampled_from([0.0, 1e-4]))
    got = po.group_normalize(rewards, size, eps=eps)
    want = reference.group_normalize(rewards, size, eps)
    assert got.is_contiguous()
    assert_rounds(got, want, slack_of(rewards, size, eps, want), 4 * size + 16)


def test_group_normalize_is_that_of_numpy(backend):
    generator = torch.Generator().manual_seed(0)
    rewards = (normal(3, 12, 6, generator=generator, dtype=torch.float64) * 2 + 1).numpy()
    missing = torch.rand(3, 12, generator=generator) < 0.5
    rewards[:, :, 2] = np.where(missing.numpy(), np.nan, rewards[:, :, 2])
    deviation = rewards - np.nanmean(rewards, -1, keepdims=True)
    want = deviation / (np.nanstd(rewards, -1, ddof=1, keepdims=True) + 1e-4)
    got = po.group_normalize(torch.from_numpy(rewards).reshape(3, 72).to(backend.device), 6)
    want = torch.from_numpy(np.nan_to_num(want)).reshape(3, 72)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-14)


@given(data=st.data())
def test_informative_is_where_a_group_is_not_flat(backend, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    size = data.draw(st.sampled_from([1, 2, 3, 8, 33, 100]))
    lead = data.draw(st.sampled_from([(), (1,), (3,)]))
    shape = (*lead, size * data.draw(st.integers(0, 5)))
    kinds = data.draw(st.sampled_from([[0.1], [0.0, -0.0], [0.1, 0.1, 0.1, 0.2], [1.0, torch.inf]]))
    rewards = torch.tensor(kinds)[torch.randint(len(kinds), shape, generator=generator)]
    missing = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    rewards = torch.where(missing, torch.nan, rewards).to(data.draw(st.sampled_from(DTYPES)))
    layout = data.draw(st.sampled_from(["contiguous", "permuted", "sliced"]))
    x = arrange(rewards, layout).to(backend.device)
    got = po.group_normalize(x, size, return_informative=True)
    assert isinstance(got, po.GroupAdvantages)
    torch.testing.assert_close(
        got.advantages, po.group_normalize(x, size), rtol=0, atol=0, equal_nan=True
    )
    assert got.informative.dtype == torch.bool
    assert got.informative.shape == shape
    want = []
    for group in rewards.reshape(-1, size).tolist():
        valid = {r for r in group if r == r}
        want += [r == r and len(valid) > 1 for r in group]
    assert got.informative.flatten().tolist() == want
    # What is not informative has no advantage, but for infinities, of which none is known.
    silent = got.advantages[~got.informative]
    assert bool((silent == 0).logical_or(silent.isnan()).all())


def test_informative_is_exact_where_the_deviation_vanishes(backend):
    """One ulp apart, at a size where its square underflows, and with ε = 0."""
    tiny = 2.0**-1074
    rewards = torch.tensor([[0.0, tiny, 1.0, 1.0 + 2.0**-52]], dtype=torch.float64)
    got = po.group_normalize(rewards.to(backend.device), 2, return_informative=True)
    assert got.informative.tolist() == [[True] * 4]


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_group_normalize_of_equal_rewards_is_zero(backend, eps):
    """To the bit, although 0.1 · 3 / 3 is not 0.1: rounding must not be scaled up to ±1."""
    rewards = torch.full((2, 6), 0.1, dtype=torch.float64, device=backend.device)
    rewards[1, 1] = torch.nan
    assert bool((po.group_normalize(rewards, 3, eps=eps) == 0).all())


def test_group_normalize_of_a_lone_reward_is_zero(backend):
    nan = torch.nan
    rewards = torch.tensor([[nan, 3.0, nan, nan, nan, nan, 1.0, 2.0, nan]], device=backend.device)
    got = po.group_normalize(rewards, 3, eps=0)
    half = 0.5**0.5
    want = torch.tensor([[0.0, 0, 0, 0, 0, 0, -half, half, 0]], device=backend.device)
    torch.testing.assert_close(got, want)
    assert bool((po.group_normalize(rewards, 1) == 0).all())


def test_group_normalize_propagates_infinity_within_its_group(backend):
    rewards = torch.tensor([1.0, torch.inf, 2.0, 1.0, 2.0, 4.0], device=backend.device)
    got = po.group_normalize(rewards, 3)
    assert got.isnan().tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 4)])
def test_group_normalize_of_an_empty_batch_is_empty(backend, shape):
    assert po.group_normalize(torch.ones(shape, device=backend.device), 2).shape == shape


def test_group_normalize_takes_at_least_float32(backend):
    x = torch.ones(1, 2, device=backend.device)
    assert po.group_normalize(x.half(), 2).dtype == torch.float32
    assert po.group_normalize(x.double(), 2).dtype == torch.float64


def test_group_normalize_is_independent_of_thread_count():
    rewards = normal(3, 16000, generator=torch.Generator().manual_seed(1))
    assert_independent_of_thread_count(lambda: po.group_normalize(rewards, 8))


BAD = [
    (lambda a: {**a, "rewards": [1.0]}, TypeError, "rewards must be a torch.Tensor, got list"),
    (lambda a: {**a, "rewards": a["rewards"].long()}, TypeError, "rewards .* floating-point"),
    (
        lambda a: {**a, "rewards": torch.ones(2, 3, 4)},
        ValueError,
        r"\[N, B\] or \[B\], got \[2, 3, 4",
    ),
    (lambda a: {**a, "group_size": 3}, ValueError, "group_size .* divide rewards' B = 4, got 3"),
    (lambda a: {**a, "group_size": 0}, ValueError, "group_size must be positive"),
    (lambda a: {**a, "group_size": -2}, ValueError, "group_size must be positive"),
    (lambda a: {**a, "group_size": 2.0}, TypeError, "group_size must be an integer, got float"),
    (lambda a: {**a, "group_size": True}, TypeError, "group_size must be an integer, got bool"),
    (lambda a: {**a, "eps": -1e-4}, ValueError, "eps must not be negative, got -0.0001"),
    (lambda a: {**a, "eps": float("nan")}, ValueError, "eps must not be negative, got nan"),
    (lambda a: {**a, "eps": None}, TypeError, "eps must be a number, got NoneType"),
    (
        lambda a: {**a, "return_informative": 1},
        TypeError,
        "return_informative must be True or False",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_group_normalize_names_the_bad_argument(backend, change, error, message):
    with pytest.raises(error, match=message):
        po.group_normalize(
            **change({"rewards": torch.ones(2, 4, device=backend.device), "group_size": 2})
        )


def test_group_normalize_refuses_a_gradient(backend):
    x = normal(2, 4, device=backend.device, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"pama_ops\.group_normalize is not differentiable"):
        po.group_normalize(x, 2).sum().backward()


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_group_normalize_passes_opcheck(shape):
    torch.library.opcheck(_ops.group_informative, (normal(shape), 2))
    torch.library.opcheck(_ops.group_normalize, (normal(shape), 2, 1e-4))


def test_group_normalize_compiles_whole():
    compiled = torch.compile(po.group_normalize, fullgraph=True, backend="aot_eager")
    rewards = normal(2, 8)
    torch.testing.assert_close(compiled(rewards, 4), po.group_normalize(rewards, 4))


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e300, 5e-324])
def test_group_normalize_keeps_rewards_whose_squares_leave_the_range_of_numbers(backend, size):
    rewards = torch.tensor([[size, -size, 1.0, 3.0]], dtype=torch.float64, device=backend.device)
    got = po.group_normalize(rewards, 2, eps=0.0)
    want = torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    torch.testing.assert_close(got.cpu(), want, rtol=4 * 2.0**-53, atol=0)
