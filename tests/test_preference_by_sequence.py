"""`pama_advantages(preference=[N, B])`: what says nothing about a sequence leaves its problem."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import DTYPES, arrange, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference

REDUCTIONS = ["token", "sequence", "gram", "batch"]


def owners(batch):
    """The sequence of each token, like the batch's shape."""
    if batch.cu_seqlens is None:
        return torch.arange(batch.shape[0]).unsqueeze(1).expand(batch.shape)
    return torch.repeat_interleave(batch.cu_seqlens.cpu().diff().long())


@st.composite
def cases(draw, backend):
    """A batch, advantages, log ratios, a preference [N, B] with columns of zeros, and a rule."""
    batch = draw(tokens(backend.device, max_objectives=5, max_length=280))
    n, count = batch.objectives, batch.sequences
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.tensor(draw(st.sampled_from([[0.0, 1.0], [0.0, 1.0, 2.0, 5.0]])))
    p = values[torch.randint(len(values), (n, count), generator=generator)]
    kinds = torch.randint(4, (count,), generator=generator)
    p[:, kinds == 0] = 0
    p[:, kinds == 1] = 1
    advantages = batch.values(n)
    if draw(st.booleans()):
        advantages = (2 * advantages).round() / 2
    if draw(st.booleans()):  # a reward that does not apply may be NaN
        gone = (p[:, owners(batch)] == 0).to(backend.device)
        advantages = torch.where(gone, torch.nan, advantages)
    if draw(st.integers(0, 4)) == 0:
        advantages[draw(st.integers(0, n - 1))] = 0
    log_ratio = batch.values(scale=0.3) if draw(st.booleans()) else None
    p = arrange(p.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(["contiguous", "permuted",
                "sliced"]))).to(backend.device)  # fmt: skip
    low, high = draw(st.sampled_from([(0.2, 0.2), (0.1, 0.3), (1.5, 0.2)]))
    return batch, advantages, log_ratio, p, (low, high, draw(st.booleans()), draw(st.booleans()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(data=st.data())
def test_each_sequence_gets_what_its_preference_alone_would_give(backend, reduction, data):
    batch, a, log_ratio, p, rule = data.draw(cases(backend))
    low, high, noon, ratio_weighted = rule
    cu, kind, n = batch.cu_seqlens, REDUCTIONS.index(reduction), batch.objectives
    step = po.pama_advantages(
        a, batch.mask, log_ratio, clip=(low, high), reduction=reduction, preference=p, noon=noon,
        ratio_weighted=ratio_weighted, cu_seqlens=cu,
    )  # fmt: skip
    statistics = _ops.pama_statistics(a, batch.mask, log_ratio, p, cu, kind, *rule)
    if reduction in ("gram", "batch"):
        statistics = reference.of_own_tokens(statistics, n, kind)
    assert torch.equal(step.active, statistics[:n] != 0)
    if reduction == "gram":
        assert torch.equal(step.gram.flatten(), statistics[n:])
        assert torch.equal(step.gram, step.gram.T)
    owner = owners(batch).to(backend.device)
    by_token = reduction == "token"
    assert step.weights.shape == (n, *(batch.shape if by_token else (batch.sequences,)))
    for b in range(batch.sequences):
        here = owner == b
        weights = step.weights[:, here] if by_token else step.weights[:, b]
        if not bool((torch.where(step.active, p[:, b], 0) > 0).any()):
            assert not bool(step.advantages[here].any())
            assert not bool(weights.any())
            continue
        # The op by a preference [N], which other tests hold to the definition.
        want = _ops.pama_combine(
            a, batch.mask, log_ratio, p[:, b].double(), cu, statistics, kind, *rule
        )
        got = [step.advantages[here], weights]
        expected = [want[0][here], want[1][:, here] if by_token else want[1]]
        if reduction == "sequence":
            expected[1] = want[1][:, b]
        if reduction != "gram":
            got.append(step.optimum[here] if by_token else step.optimum[b])
            expected.append(want[2][here] if by_token else want[2])
            if reduction == "sequence":
                expected[2] = want[2][b]
        for x, y in zip(got, expected, strict=True):
            if (
                by_token
            ):  # where columns differ, float64 takes the place of float32: n + 2 roundings
                size = torch.where(a.isfinite(), a, 0).double().abs().amax(0)[here].amax(0) \
                    if bool(here.any()) else torch.zeros((), dtype=torch.float64)  # fmt: skip
                slack = (n + 2) * (1 + size) * torch.finfo(x.dtype).eps * 2.0**52 * 8
                assert_rounds(x, y.double(), slack, 1)
            else:
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(data=st.data())
def test_statistics_are_those_of_zeros_where_an_objective_is_dropped(backend, reduction, data):
    batch, a, log_ratio, p, rule = data.draw(cases(backend))
    cu, kind, n = batch.cu_seqlens, REDUCTIONS.index(reduction), batch.objectives
    present = (p > 0)[:, owners(batch).to(backend.device)]
    kept = torch.where(present, a, 0)
    # A ratio that is NaN makes NaN of a zero as well, so it is left out.
    log_ratio = None if log_ratio is None else log_ratio.nan_to_num()
    got = _ops.pama_statistics(a, batch.mask, log_ratio, p, cu, kind, *rule)
    want = reference.pama_statistics(kept, batch.mask, log_ratio, None, cu, kind, *rule)
    assert torch.equal(got[:n], want[:n])
    if len(want) == n:
        assert len(got) == n
        return
    inside = torch.ones(batch.shape) if batch.mask is None else batch.mask.cpu() != 0
    count = (present.cpu() & (inside != 0)).flatten(1).sum(1)
    assert got[-n:].tolist() == count.tolist()
    size = float(kept.double().abs().nan_to_num().amax()) if kept.numel() else 0.0
    size *= 8 if rule[3] else 1  # the largest ratio, at 0.3 * 3 and below log 1.3 where it counts
    slack = (1 + size) ** 2 * max(kept[0].numel(), 1)
    assert_rounds(got[n:-n], want[n:], slack, 4 * max(kept[0].numel(), 1) + 16)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ragged", [False, True])
def test_one_preference_for_all_sequences_is_that_preference(backend, reduction, ragged):
    generator = torch.Generator().manual_seed(0)
    a = normal(3, *((60,) if ragged else (4, 15)), generator=generator).to(backend.device)
    cu = torch.tensor([0, 7, 7, 40, 60], device=backend.device) if ragged else None
    for p in ([1.0, 1.0, 1.0], [1.0, 3.0, 2.0]):
        column = torch.tensor(p, device=backend.device)
        options = {"reduction": reduction, "cu_seqlens": cu}
        one = po.pama_advantages(a, preference=column, **options)
        each = po.pama_advantages(a, preference=column.unsqueeze(1).expand(3, 4), **options)
        assert torch.equal(one.advantages, each.advantages)
        if reduction in ("gram", "batch"):
            assert torch.equal(one.weights.unsqueeze(1).expand(3, 4), each.weights)
        else:
            assert torch.equal(one.weights, each.weights)
        if reduction == "gram":
            assert torch.equal(one.gram, each.gram)


def test_gram_and_batch_measure_each_objective_where_it_is_known(backend):
    """Objective 0 in 3 sequences of 2 tokens, 1 in 2 of them, 2 in none, by integers."""
    a = torch.tensor([[[1, 2], [3, 4], [5, 6], [7, 8]], [[9, 1], [9, 9], [2, 3], [9, 9]]])
    a = torch.cat([a, a[:1]]).double().to(backend.device)
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [0, 1]], device=backend.device)
    p = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], device=backend.device)
    by_gram = po.pama_advantages(a, mask, reduction="gram", preference=p)
    cross = (1 * 9 + 2 * 1 + 5 * 2 + 6 * 3) * math.sqrt(6 / 4)
    want = [[91.0, cross, 0.0], [cross, 95 * 6 / 4, 0.0], [0.0, 0.0, 0.0]]
    # Three roundings of the scale, and one of the product.
    torch.testing.assert_close(by_gram.gram.tolist(), want, rtol=4 * 2.0**-53, atol=0)
    assert by_gram.active.tolist() == [True, True, False]
    by_mean = po.pama_advantages(a, mask, reduction="batch", preference=p)
    assert by_mean.weights.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert by_mean.optimum.tolist() == [3.5, 3.5, 3.5, 0]  # 21 / 6, where objective 1 has 15 / 4


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_rewards_for_two_kinds_of_prompts_both_teach(backend, reduction):
    nan = torch.nan
    rewards = torch.tensor([[0.0, 1, 1, 0] + 4 * [nan], 4 * [nan] + [3.0, 1, 1, 1]])
    a, known = po.group_normalize(rewards.to(backend.device), 4, return_informative=True)
    step = po.pama_advantages(a.unsqueeze(-1), reduction=reduction, preference=known.float())
    taught = (step.advantages[:, 0] != 0).tolist()
    assert taught == [False, True, True, False, True, False, False, False]
    silenced = po.pama_advantages(a.unsqueeze(-1), reduction=reduction)
    if reduction in ("token", "sequence"):
        assert not bool(silenced.advantages.any())
    signed = po.pama_advantages(
        a.unsqueeze(-1), reduction=reduction, preference=known.float(), noon=False
    )
    assert torch.equal(signed.advantages[:, 0], a.sum(0))


@pytest.mark.parametrize("noon", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("right", [1.0, 0.999, 0.98, 0.9, 0.5])
def test_a_reward_that_is_nearly_always_flat_leaves_the_other_its_share(right, reduction, noon):
    """Half of what the sum of advantages teaches, under Noon that of its positive part."""
    draw = random.Random(f"{right}")
    groups, size = 4000, 8
    rewards = torch.tensor(
        [[draw.random() < p for _ in range(groups * size)] for p in (0.5, right)]
    ).double()
    a, known = po.group_normalize(rewards, size, return_informative=True)
    step = po.pama_advantages(
        a.unsqueeze(-1), reduction=reduction, preference=known.double(), noon=noon
    )
    total = a.sum(0)
    total = torch.where(total.abs() < 1e-9, 0, total)  # cancelled but for rounding
    taught = (step.advantages.abs() > 1e-9).double().mean()
    by_sum = ((total > 0) if noon else (total != 0)).double().mean()
    assert taught >= by_sum / 2
    assert taught >= 0.24


@pytest.mark.parametrize("reduction", ["gram", "batch"])
def test_more_problems_than_take_turns_on_a_gpu_are_all_solved(backend, reduction):
    """Beyond 46 objectives a problem takes scratch, which blocks share."""
    generator = torch.Generator().manual_seed(0)
    a = normal(48, 70, 1, generator=generator, dtype=torch.float64).to(backend.device)
    p = torch.zeros(48, 70, device=backend.device)
    for b in range(70):
        p[b % 48, b] = 1
        p[(5 * b + 1) % 48, b] = 1
    step = po.pama_advantages(a, reduction=reduction, preference=p)
    live = torch.where(step.active[:, None], p, 0).sum(0) > 0
    torch.testing.assert_close(step.weights.sum(0), live.double(), rtol=0, atol=1e-12)
    assert not bool(step.weights[p == 0].any())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0)])
def test_an_empty_batch_is_empty(backend, reduction, shape):
    a = torch.ones(shape, device=backend.device)
    p = torch.ones(shape[:2], device=backend.device)
    step = po.pama_advantages(a, reduction=reduction, preference=p)
    assert step.advantages.shape == shape[1:]
    assert not bool(step.active.any())
    assert not bool(step.weights.any())


def test_no_preference_anywhere_teaches_nothing(backend):
    a = torch.ones(2, 3, 4, device=backend.device)
    for reduction in REDUCTIONS:
        step = po.pama_advantages(a, reduction=reduction, preference=torch.zeros_like(a[..., 0]))
        assert not bool(step.advantages.any())
        assert not bool(step.weights.any())
        assert not bool(step.active.any())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bits_do_not_depend_on_thread_count(reduction):
    generator = torch.Generator().manual_seed(1)
    a = normal(3, 37, 300, generator=generator)
    p = torch.randint(3, (3, 37), generator=generator).float()
    assert_independent_of_thread_count(
        lambda: po.pama_advantages(a, reduction=reduction, noon=False, preference=p)
    )


A = torch.ones(2, 3, 4)
BAD = [
    (torch.ones(2, 4), ValueError, r"preference .*\[2\].*\[2, 3\] .* each sequence, got \[2, 4\]"),
    (torch.ones(3, 2), ValueError, r"preference .*\[2, 3\].*got \[3, 2\]"),
    (torch.ones(2, 3, 4), ValueError, r"preference .*\[2, 3\].*got \[2, 3, 4\]"),
    (torch.ones(2, 3).bool(), TypeError, "preference must have a floating-point dtype"),
    (torch.ones(2, 3, device="meta"), ValueError, "preference must be on cpu"),
]


@pytest.mark.parametrize(("preference", "error", "message"), BAD)
def test_bad_shapes_are_named(preference, error, message):
    with pytest.raises(error, match=message):
        po.pama_advantages(A, preference=preference)


@pytest.mark.parametrize("value", [-1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_are_checked_before_anything_is_written(backend, value, reduction):
    by_itself = {} if backend.checks_values else {"check_values": True}
    p = torch.ones(2, 3, device=backend.device)
    p[1, 2] = value
    with pytest.raises(ValueError, match="preference must be nonnegative and finite"):
        po.pama_advantages(A.to(backend.device), reduction=reduction, preference=p, **by_itself)


def test_ops_refuse_other_shapes(backend):
    a = A.to(backend.device)
    if backend.name == "default":
        pytest.skip("the default has no pointers to run off")
    for kind in range(4):
        with pytest.raises(ValueError, match=r"preference must have the shape \[2, 3\]"):
            _ops.pama_statistics(
                a, None, None, torch.ones(2, 4, device=a.device), None, kind, 0.2, 0.2, True, False
            )


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("ragged", [False, True])
def test_ops_pass_opcheck(kind, ragged):
    shape = (6,) if ragged else (2, 3)
    a, log_ratio = normal(3, *shape), 0.1 * normal(shape)
    cu = torch.tensor([0, 2, 6]) if ragged else None
    rule = (kind, 0.2, 0.2, False, True)
    p = torch.tensor([[1.0, 2.0], [0.0, 1.0], [0.0, 3.0]])
    args = (a, None, log_ratio, p, cu, *rule)
    torch.library.opcheck(_ops.pama_statistics, args)
    statistics = _ops.pama_statistics(*args)
    if kind >= 2:
        statistics = reference.of_own_tokens(statistics, 3, kind)
    torch.library.opcheck(_ops.pama_combine, (*args[:5], statistics, *rule))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rewards_to_advantages_compile_whole(reduction):
    def door(rewards):
        a, known = po.group_normalize(rewards, 4, return_informative=True)
        step = po.pama_advantages(
            a.unsqueeze(-1), reduction=reduction, preference=known * torch.ones(3, 1)
        )
        return step.advantages, step.weights, step.active

    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(2, (3, 16), generator=generator).float()
    rewards[1, :6] = torch.nan
    compiled = torch.compile(door, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(rewards), door(rewards), strict=True):
        assert torch.equal(got, want)


def test_documented_snippet_runs():
    text = (Path(__file__).parents[1] / "docs" / "choosing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    rewards = torch.tensor([[0.0, 1, 0, 1], [1, 1, 1, 1]])
    given = {name: getattr(po, name) for name in ("group_normalize", "pama_advantages")}
    given.update(rewards=rewards, group_size=4)
    exec(code, given)
    assert (given["step"].advantages[:, 0] > 0).tolist() == [False, True, False, True]


def test_a_preference_by_sequence_is_a_tensor():
    advantages = torch.ones(2, 3, 4)
    for listed in ([[1, 0, 1], [0, 1, 1]], ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0))):
        with pytest.raises(TypeError, match=r"^preference must be a tensor \[2, 3\] .* got"):
            po.pama_advantages(advantages, preference=listed)
