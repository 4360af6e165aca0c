from __future__ import annotations

import math

import exactly
import pytest
import second_solver
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    assert_independent_of_thread_count,
    assert_rounds,
    gap_bound,
    unit_roundoff,
)
from strategies import normal, tokens

import pama_ops as po
from pama_ops import _ops, reference

REDUCTIONS = ["token", "sequence", "gram", "batch"]
FLOATS = [torch.float64, torch.float32, torch.bfloat16]


def drawn(data, backend):
    """A batch with advantages of full, all-zero, repeated and negative objectives, and options."""
    batch = data.draw(tokens(backend.device, max_objectives=5, max_length=280))
    n = batch.objectives
    advantages = batch.values(n)
    # A few distinct values make ties and zeros ordinary.
    if data.draw(st.booleans()):
        advantages = (2 * advantages).round() / 2
    kinds = data.draw(st.lists(st.sampled_from("..0=-"), min_size=n, max_size=n))
    for i, kind in enumerate(kinds):
        if kind == "0":
            advantages[i] = advantages[i] * 0
        elif kind == "=":
            advantages[i] = advantages[0]
        elif kind == "-":
            advantages[i] = -advantages[i].abs()
    log_ratio = batch.values(scale=0.3) if data.draw(st.booleans()) else None
    preference = None
    if data.draw(st.booleans()):
        preference = data.draw(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=n, max_size=n)
        )
        if not any(preference):
            preference = None
    options = {
        "clip": data.draw(st.sampled_from([0.2, (0.1, 0.3), (1.5, 0.2)])),
        "noon": data.draw(st.booleans()),
        "ratio_weighted": data.draw(st.booleans()),
        "preference": preference,
        "cu_seqlens": batch.cu_seqlens,
    }
    return batch, advantages, log_ratio, options


def reference_step(batch, advantages, log_ratio, reduction, options):
    low, high = options["clip"] if isinstance(options["clip"], tuple) else (options["clip"],) * 2
    p = options["preference"]
    p = None if p is None else torch.tensor(p, dtype=torch.float64, device=advantages.device)
    kind = REDUCTIONS.index(reduction)
    rule = (kind, low, high, options["noon"], options["ratio_weighted"])
    cu = batch.cu_seqlens
    statistics = reference.pama_statistics(advantages, batch.mask, log_ratio, p, cu, *rule)
    return statistics, reference.pama_combine(
        advantages, batch.mask, log_ratio, p, cu, statistics, *rule
    )


@pytest.mark.parametrize("reduction", ["token", "sequence", "batch"])
@given(data=st.data())
def test_theorem_1_reductions_are_their_definition(backend, reduction, data):
    batch, advantages, log_ratio, options = drawn(data, backend)
    step = po.pama_advantages(advantages, batch.mask, log_ratio, reduction=reduction, **options)
    _, want = reference_step(batch, advantages, log_ratio, reduction, options)
    combined, weights, optimum, active = want
    assert step.gram is None
    assert torch.equal(step.active, active)
    size = torch.where(advantages.isfinite(), advantages, 0).double().abs().amax(0)
    terms = 4 * batch.objectives + 4 * max(batch.shape[-1], 1)
    if reduction == "sequence" or reduction == "batch":
        # The means are sums whose rounding the weights of a straddling pair amplify by the ratio of
        # the largest to the difference of the pair: hold the result to the definition instead.
        check_theorem_1(batch, advantages, log_ratio, reduction, options, step)
        return
    near, part = nearly_tied(batch, advantages, log_ratio, options, step)
    if near.any():
        weights, combined, optimum = chosen_among_ties(advantages, part, near, step, want)
    # float32 weights: one rounding; the sums over objectives: n more, relative to the largest.
    unit = torch.finfo(step.weights.dtype).eps / 2
    slack = (batch.objectives + 2) * unit / torch.finfo(torch.float64).eps * torch.ones_like(size)
    assert_rounds(step.weights, weights, slack, 64)
    assert_rounds(step.advantages, combined, slack * size, 64 + terms)
    bound = size if log_ratio is None or not options["ratio_weighted"] else size * 8
    assert_rounds(step.optimum, optimum, slack * bound, 64 + terms)


def nearly_tied(batch, advantages, log_ratio, options, step):
    """Of which objectives [N, B, T] or [N, T] any may be chosen, at tokens where they are several;
    and their parts.

    Parts that the ratio weighs, divided by preferences that differ, round: ranks that are equal but
    for that tie in one evaluation and not in another.
    """
    rows = reference.tokens.Tokens(advantages, batch.mask, batch.cu_seqlens)
    low, high = options["clip"] if isinstance(options["clip"], tuple) else (options["clip"],) * 2
    _, part = reference.pama.active_part(
        rows, advantages, log_ratio, low, high, options["noon"], options["ratio_weighted"]
    )
    p = torch.tensor(options["preference"] or [1.0] * batch.objectives, device=part.device).double()
    used = step.active & (p > 0)
    if not used.any() or log_ratio is None or not options["ratio_weighted"]:
        return torch.zeros_like(step.weights, dtype=torch.bool), part
    part, p = torch.where(used[:, None, None], part, 0.0), p[:, None, None]
    one_sided = ((part >= 0).all(0) | (part <= 0).all(0)) & rows.mask
    rank = torch.where(used[:, None, None], part.abs() / p, math.inf)
    least = rank.amin(0)
    near = (rank <= least * (1 + 32 * unit_roundoff(torch.float64))) & one_sided & (least > 0)
    return rows.unpad(near & (near.sum(0) > 1)), rows.unpad(part)


def chosen_among_ties(advantages, part, near, step, want):
    """What is wanted where any of the tied may be chosen: what was, if it is one of these."""
    combined, weights, optimum, _ = want
    c, at = step.weights.double(), near.any(0)
    slack = len(c) * torch.finfo(step.weights.dtype).eps
    assert bool((c >= 0).all())
    assert not bool(c[~near & at].any())
    assert bool(((c.sum(0) - 1).abs()[at] <= slack).all())
    means = [torch.where(c == 0, 0.0, c * x.double()).sum(0) for x in (advantages, part)]
    pairs = zip((c, *means), (weights, combined, optimum), strict=True)
    return [torch.where(at, mine, theirs.double()) for mine, theirs in pairs]


def check_theorem_1(batch, advantages, log_ratio, reduction, options, step):
    """c on the simplex over the objectives in play, with |Σ c a| the least possible."""
    low, high = options["clip"] if isinstance(options["clip"], tuple) else (options["clip"],) * 2
    rows = reference.tokens.Tokens(advantages, batch.mask, batch.cu_seqlens)
    a, part = reference.pama.active_part(
        rows, advantages, log_ratio, low, high, options["noon"], options["ratio_weighted"]
    )
    p = torch.tensor(options["preference"] or [1.0] * batch.objectives, device=part.device).double()
    p = torch.where(step.active, p, 0.0)
    c = step.weights.double().reshape(batch.objectives, -1)
    if reduction == "sequence":
        problem, magnitude = part.sum(-1), part.abs().sum(-1)
        problem, magnitude = problem / rows.count.clamp(min=1), magnitude / rows.count.clamp(min=1)
        empty = rows.count == 0
        c_tokens = c[:, :, None]
    else:
        total = rows.mask.sum().clamp(min=1)
        problem, magnitude = (
            part.sum((1, 2))[:, None] / total,
            part.abs().sum((1, 2))[:, None] / total,
        )
        empty = torch.zeros(1, dtype=torch.bool, device=part.device)
        c_tokens = c[:, :, None]
    if not bool((p > 0).any()):
        assert not bool(c.any())
        assert not bool(step.advantages.any())
        return
    unit = torch.finfo(step.weights.dtype).eps
    n = batch.objectives
    assert bool((c[:, empty] == 0).all())
    assert bool((c >= 0).all())
    assert bool(((c.sum(0) - 1).abs()[~empty] <= n * unit).all())
    assert not bool(c[p == 0].any())
    used = p > 0
    means, size = problem[used], problem[used].abs().amax(0)
    spread = float((p[used].max() / p[used].min()).item())
    # `delta` bounds how far the kernel's means a' are from these, a. Each is a quotient of a sum of
    # k terms, over the tokens of a sequence and then over sequences: right to (k + 1) u64 of the
    # terms' magnitudes. exp and the product in a weighted term cost either at most 5 u64 more.
    roundoff = unit_roundoff(torch.float64)
    k = batch.shape[-1] + rows.count.numel()
    delta = 2 * (k + 6) * roundoff * magnitude[used].amax(0)
    # Σ c a is near Σ c' a', where c' are the weights before rounding: delta for a', half a `unit`
    # of the largest mean for c', and n u64 for evaluating each of the two sums of n products.
    #
    # - If a' straddle 0, Σ c' a' is 0 but for the solver: it leaves the rounding of its own sum of
    #   n products, (n + 1) u64, and of the weights, 3 u64 each; together at most 4 n u64. If a do
    #   not straddle 0 then, one of them is within delta of 0.
    # - Else c' is on the objectives of least rank |a'| / p. If a straddle 0 nevertheless, some a'
    #   is at most delta, so the chosen ones are at most delta times the spread of p.
    #
    # Ranks carry delta / p each and one rounding each: any of those that may be the least can be.
    slack = (1 + spread) * delta + (4 * n * roundoff + (n + 2) * unit) * size
    rank = means.abs() / p[used, None]
    near = rank <= rank.amin(0) * (1 + 4 * roundoff) + 2 * delta / p[used].min()
    straddle = (means < 0).any(0) & (means > 0).any(0)
    low = torch.where(straddle, 0.0, torch.where(near, means, torch.inf).amin(0))
    high = torch.where(straddle, 0.0, torch.where(near, means, -torch.inf).amax(0))
    value = (c * problem).sum(0)
    assert bool(((value >= low - slack) & (value <= high + slack))[~empty].all())
    # The optimum is Σ c' a', rounded by half a `unit`.
    optimum = step.optimum.double().reshape(-1)
    assert bool(((optimum - value).abs() <= slack)[~empty].all())
    # Σ c A: c and the result are rounded by half a `unit` each, the sums of n products as above.
    want = rows.unpad(
        torch.where(rows.mask, (torch.where(c_tokens == 0, 0.0, c_tokens * a)).sum(0), 0.0)
    )
    error = (step.advantages.double() - want).abs()
    size = torch.where(advantages.isfinite(), advantages, 0).double().abs().amax(0)
    assert bool((error <= (n + 2) * unit * size).all())


@given(data=st.data())
def test_gram_reduction_is_its_definition(backend, data):
    batch, advantages, log_ratio, options = drawn(data, backend)
    step = po.pama_advantages(advantages, batch.mask, log_ratio, reduction="gram", **options)
    statistics, _ = reference_step(batch, advantages, log_ratio, "gram", options)
    n = batch.objectives
    gram = statistics[n:].reshape(n, n)
    assert step.optimum is None
    assert torch.equal(step.active, statistics[:n] != 0)
    assert torch.equal(step.gram, step.gram.T)
    norms = gram.diagonal().sqrt()
    assert_rounds(step.gram, gram, norms[:, None] * norms, 4 * max(advantages.numel(), 1))
    p = torch.tensor(options["preference"] or [1.0] * n, device=gram.device).double()
    p = torch.where(step.active, p, 0.0)
    c = step.weights.double()
    if not bool((p > 0).any()):
        assert not bool(c.any())
        return
    # The duality gap on the rows divided by the preference certifies the weights.
    used = p > 0
    q = p[used] / p[used].max()
    scaled = step.gram[used][:, used] / (q[:, None] * q)
    x = c[used] * q
    x = x / x.sum()
    slope = exactly.times(scaled, x)
    gap = exactly.dot(x, slope) - slope.min()
    # In units of the largest entry that they touch, on top of what min_norm leaves in float64:
    # weights c rounded to their dtype by u move Σ_j S_ij x_j and f by 2 u each, since dividing by
    # their sum moves all by another u. S and x are rounded three times each here, sums n times.
    bound = gap_bound(scaled) + 4 * unit_roundoff(step.weights.dtype) + (12 + 3 * n) * 2.0**-53
    assert gap <= bound * scaled.diagonal().max()


def test_gram_reduction_is_symmetric_to_the_bit(backend):
    generator = torch.Generator().manual_seed(0)
    for length in range(97, 161):
        for n in (2, 3, 5):
            a = normal(n, 1, length, generator=generator, dtype=torch.float64)
            gram = po.pama_advantages(a.to(backend.device), reduction="gram").gram
            assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_trap_1_the_optimum_is_never_the_advantage(backend, reduction):
    """The scalar s* gives no credit: tokens of different advantages must keep different results."""
    a = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]], device=backend.device)
    step = po.pama_advantages(a, reduction=reduction)
    assert step.advantages.flatten().tolist() == pytest.approx([1.0, 2.0, 3.0], rel=1e-6)


def test_trap_2_whitened_advantages_straddle_zero_without_noon(backend):
    generator = torch.Generator().manual_seed(0)
    a = po.whiten(normal(3, 4, 50, generator=generator).double().to(backend.device))
    step = po.pama_advantages(a, reduction="batch", noon=False)
    assert float(step.optimum.abs()) < 1e-12


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("noon", [True, False])
def test_trap_3_an_inactive_objective_takes_no_weight(backend, reduction, noon):
    generator = torch.Generator().manual_seed(0)
    a = normal(3, 2, 40, generator=generator).to(backend.device)
    a[1] = 0
    step = po.pama_advantages(a, reduction=reduction, noon=noon)
    assert step.active.tolist() == [True, False, True]
    assert not bool(step.weights[1].any())
    assert bool(step.advantages.any())
    nothing = po.pama_advantages(torch.zeros_like(a), reduction=reduction, noon=noon)
    assert not bool(nothing.active.any())
    assert not bool(nothing.advantages.any())
    assert not bool(nothing.weights.any())


def test_trap_3_a_zero_at_one_token_is_an_ordinary_value(backend):
    a = torch.tensor([[[0.0, 5.0]], [[2.0, 1.0]]], device=backend.device)
    step = po.pama_advantages(a, reduction="token")
    assert step.weights[:, 0, 0].tolist() == [1.0, 0.0]
    assert step.advantages.tolist() == [[0.0, 1.0]]


def test_trap_4_batch_with_noon_is_one_hot_on_the_weakest(backend):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, 40, generator=generator).to(backend.device) + torch.tensor(
        [1.0, 0.0, 2.0], device=backend.device
    ).view(3, 1, 1)
    assert po.pama_advantages(a, reduction="batch").weights.tolist() == [0.0, 1.0, 0.0]


def test_trap_5_min_norm_favours_small_scales(backend):
    generator = torch.Generator().manual_seed(0)
    a = normal(2, 4, 60, generator=generator).to(backend.device)
    scaled = a * torch.tensor([1.0, 100.0], device=backend.device).view(2, 1, 1)
    assert float(po.pama_advantages(scaled, reduction="gram").weights[0]) > 0.9
    white = po.pama_advantages(po.whiten(scaled), reduction="gram").weights
    torch.testing.assert_close(white, po.pama_advantages(po.whiten(a), reduction="gram").weights)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_noon_collapses_the_clipped_losses_into_one(backend, reduction):
    """Σ c_i min(u A⁺_i, clip(u) A⁺_i) = min(u Ā, clip(u) Ā), the identity that PAMA rests on."""
    generator = torch.Generator().manual_seed(3)
    a = normal(3, 4, 30, generator=generator, dtype=torch.float64).to(backend.device)
    log_ratio = (0.3 * normal(4, 30, generator=generator, dtype=torch.float64)).to(backend.device)
    step = po.pama_advantages(a, None, log_ratio, reduction=reduction)
    u = log_ratio.exp()

    def surrogate(x):
        return torch.minimum(u * x, u.clamp(0.8, 1.2) * x)

    c = step.weights.reshape(3, *step.weights.shape[1:], *(1,) * (3 - step.weights.dim()))
    separate = (c * surrogate(a.clamp(min=0))).sum(0)
    torch.testing.assert_close(surrogate(step.advantages), separate, rtol=1e-12, atol=1e-12)


@settings(max_examples=10)
@given(data=st.data())
def test_gram_reduction_agrees_with_cvxpy(data):
    n = data.draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    a = normal(n, 2, 20, generator=generator, dtype=torch.float64)
    step = po.pama_advantages(a, reduction="gram")
    part = a.clamp(min=0).flatten(1)
    slack = 2 * gap_bound(step.gram) * float(step.gram.diagonal().max())
    second_solver.assert_no_longer(part, step.weights, second_solver.shortest(part), slack)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_permuting_objectives_permutes_weights(backend, reduction):
    generator = torch.Generator().manual_seed(0)
    a = normal(4, 3, 20, generator=generator).to(backend.device)
    order = torch.tensor([2, 0, 3, 1], device=backend.device)
    for noon in (True, False):
        step = po.pama_advantages(a, reduction=reduction, noon=noon)
        other = po.pama_advantages(a[order], reduction=reduction, noon=noon)
        torch.testing.assert_close(other.weights, step.weights[order], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.advantages, step.advantages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_gives_nan_where_it_counts(backend, reduction, value):
    a = torch.rand(2, 2, 3, device=backend.device) + 0.5
    a[0, 1, 2] = value
    step = po.pama_advantages(a, reduction=reduction)
    spoiled = step.advantages.isnan()
    expected = torch.zeros(2, 3, dtype=torch.bool, device=backend.device)
    if reduction == "token":
        expected[1, 2] = True
    elif reduction == "sequence":
        expected[1] = True
    else:
        expected[:] = True
    assert torch.equal(spoiled, expected)
    # Masked, it is garbage that nobody reads; with preference 0 its objective is dropped.
    mask = torch.ones(2, 3, device=backend.device)
    mask[1, 2] = 0
    assert bool(po.pama_advantages(a, mask, reduction=reduction).advantages.isfinite().all())
    dropped = po.pama_advantages(a, reduction=reduction, preference=[0.0, 1.0])
    assert bool(dropped.advantages.isfinite().all())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0)])
def test_an_empty_batch_is_empty(backend, reduction, shape):
    a = torch.ones(shape, device=backend.device)
    step = po.pama_advantages(a, reduction=reduction)
    assert step.advantages.shape == shape[1:]
    assert not bool(step.active.any())
    assert not bool(step.weights.any())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bits_do_not_depend_on_thread_count(reduction):
    generator = torch.Generator().manual_seed(1)
    a = normal(3, 37, 300, generator=generator)
    log_ratio = 0.2 * normal(37, 300, generator=generator)
    assert_independent_of_thread_count(
        lambda: po.pama_advantages(a, None, log_ratio, reduction=reduction, noon=False)
    )


BAD = [
    ({"advantages": torch.ones(2, 3, 4).long()}, TypeError, "advantages .* floating-point .*int64"),
    ({"advantages": torch.ones(3, 4)}, ValueError, r"advantages must have the 3 dimensions"),
    ({"mask": torch.ones(2, 3, 4)}, ValueError, r"mask .*\[3, 4\].*\[2, 3, 4\]"),
    ({"log_ratio": torch.ones(3, 5)}, ValueError, r"log_ratio .*\[3, 4\].*\[3, 5\]"),
    ({"clip": 0.0}, ValueError, "clip must be positive and finite, got 0.0"),
    ({"clip": (0.2, -1)}, ValueError, r"clip\[1\] must be positive and finite, got -1"),
    ({"clip": (0.2,)}, ValueError, "clip must be a number or a pair"),
    ({"reduction": "tokens"}, ValueError, "reduction must be one of 'token', .* got 'tokens'"),
    ({"preference": [1.0]}, ValueError, r"preference must have the 2 entries .* got \[1.0\]"),
    ({"preference": [1.0, -1.0]}, ValueError, "preference must be nonnegative"),
    ({"preference": [0.0, 0.0]}, ValueError, "preference must be nonnegative .*positive sum"),
    ({"preference": torch.ones(3)}, ValueError, r"preference .*\[2\].*\[3\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_are_named(change, error, message):
    args = {"advantages": torch.ones(2, 3, 4), **change}
    with pytest.raises(error, match=message):
        po.pama_advantages(**args)


def test_values_are_checked_before_anything_is_written(backend):
    a = torch.ones(2, 3, 4, device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        po.pama_advantages(a, torch.full((3, 4), 2, device=backend.device), **by_itself)
    bad = torch.tensor([1.0, -1.0], device=backend.device)
    with pytest.raises(ValueError, match="preference must be nonnegative"):
        po.pama_advantages(a, preference=bad, **by_itself)


def test_gradients_are_refused(backend):
    a = torch.ones(2, 1, 3, device=backend.device, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"pama_ops\.pama_advantages is not differentiable"):
        po.pama_advantages(a).advantages.sum().backward()


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("ragged", [False, True])
def test_ops_pass_opcheck(kind, ragged):
    shape = (6,) if ragged else (2, 3)
    a, log_ratio = normal(3, *shape), 0.1 * normal(shape)
    cu = torch.tensor([0, 2, 6]) if ragged else None
    mask = torch.ones(shape, dtype=torch.bool)
    rule = (kind, 0.2, 0.2, False, True)
    preference = torch.tensor([1.0, 2.0, 0.0])
    args = (a, mask, log_ratio, preference, cu, *rule)
    torch.library.opcheck(_ops.pama_statistics, args)
    statistics = _ops.pama_statistics(*args)
    torch.library.opcheck(
        _ops.pama_combine, (a, mask, log_ratio, preference, cu, statistics, *rule)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_token_door_compiles_whole(reduction):
    def door(rewards, values, mask, log_ratio):
        advantages, _ = po.gae(rewards, values, mask)
        advantages = po.whiten(advantages, mask)
        return po.pama_advantages(advantages, mask, log_ratio, reduction=reduction).advantages

    generator = torch.Generator().manual_seed(0)
    rewards, values = normal(2, 3, 4, 10, generator=generator)
    mask = torch.rand(4, 10, generator=generator) < 0.8
    log_ratio = 0.1 * normal(4, 10, generator=generator)
    compiled = torch.compile(door, fullgraph=True, backend="aot_eager")
    args = (rewards, values, mask, log_ratio)
    assert torch.equal(compiled(*args), door(*args))


@pytest.mark.parametrize("log_ratio", [400.0, 1000.0, math.inf])
@pytest.mark.parametrize("noon", [True, False])
@pytest.mark.parametrize("reduction", ["token", "sequence", "gram", "batch"])
def test_weights_by_a_ratio_beyond_the_range_of_numbers(backend, reduction, noon, log_ratio):
    """An advantage of 0 has no part in the weights, and one below 0 a large one."""
    advantages = torch.tensor([[[0.0, 1.0]], [[1.0, -1.0]]], device=backend.device)
    ratios = torch.tensor([[log_ratio, 0.0]], device=backend.device)
    options = {"reduction": reduction, "noon": noon, "ratio_weighted": True}
    step = po.pama_advantages(advantages, None, ratios, **options)
    assert step.advantages.isfinite().all()
    assert step.weights.isfinite().all()
    below = torch.tensor([[[-1.0, 1.0]], [[0.0, 1.0]]], device=backend.device)
    step = po.pama_advantages(below, None, ratios, **options)
    assert step.weights.isfinite().all()
    if reduction == "gram" and not noon:  # the first one's part is as long as numbers go
        torch.testing.assert_close(step.weights, torch.tensor([0.0, 1.0]).to(step.weights))
