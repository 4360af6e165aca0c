"""Forward-mode derivatives: right where there are some, and an error that names the function where
there are none. A tangent is never dropped in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from public_calls import PublicCall, copied, public_calls, tensors_in
from torch import Tensor
from torch.autograd import forward_ad
from weightings import TABLE

import pama_ops as po

CALLS = public_calls()
DIFFERENTIABLE = [(name, x) for name, call in CALLS.items() for x in call.differentiable]
CONSTANT = [
    (name, x)
    for name, call in CALLS.items()
    for x in call.options
    if name.split(" ")[0].rstrip(",") not in ("gram", "combine", "pareto_backward")
    and x not in call.differentiable
    and any(y.is_floating_point() for y in tensors_in(call.options[x]))
]


def first_of(value: Any) -> Tensor:
    return first_of(value[0]) if isinstance(value, list) else value


def with_first(value: Any, x: Tensor) -> Any:
    return [with_first(value[0], x), *value[1:]] if isinstance(value, list) else x


def tangent_like(x: Tensor) -> Tensor:
    return ((torch.arange(x.numel()) * 7) % 5 - 1.5).reshape(x.shape).to(x.dtype)


@pytest.fixture
def call_of(backend):
    def found(name: str) -> PublicCall:
        if backend.name == "cuda":
            pytest.skip("the arguments lie on a CPU")
        call = CALLS[name]
        return replace(call, options=copied(call.options))

    return found


@pytest.mark.parametrize("how", ["func", "dual"])
@pytest.mark.parametrize(("name", "argument"), DIFFERENTIABLE)
def test_tangents_are_those_of_reverse_mode(call_of, name, argument, how):
    """⟨v, J t⟩ = ⟨Jᵀ v, t⟩; each side rounds its few products of float32 on its own."""
    call = call_of(name)
    value = call.options[argument]
    x = first_of(value)
    t = tangent_like(x)

    def function(x: Tensor) -> Tensor:
        return call(**{argument: with_first(value, x)})[0]

    if how == "func":
        out, got = torch.func.jvp(function, (x,), (t,))
    else:
        with forward_ad.dual_level():
            out, got = forward_ad.unpack_dual(function(forward_ad.make_dual(x, t)))
    assert torch.equal(out, function(x))
    assert got is not None
    leaf = x.clone().requires_grad_()
    v = tangent_like(out)
    slope = torch.autograd.grad(function(leaf), leaf, v)[0]
    want = slope.double() * t.double()
    mine = got.double() * v.double()
    size = float(want.abs().sum() + mine.abs().sum())
    assert abs(float(mine.sum() - want.sum())) <= 64 * 2.0**-24 * size


def test_a_masked_tangent_is_not_read(backend):
    x = torch.zeros(1, 2, device=backend.device)
    mask = torch.tensor([[1, 0]], device=backend.device)
    t = torch.tensor([[1.0, torch.nan]], device=backend.device)
    _, kl = torch.func.jvp(lambda y: po.kl_divergence(y, x - 1, mask), (x,), (t,))
    assert kl.isfinite().all()
    _, ppo = torch.func.jvp(lambda y: po.ppo_loss(y, x, x + 1, mask).loss, (x,), (t,))
    assert ppo.item() == -1
    _, value = torch.func.jvp(lambda y: po.value_loss(y[None], x[None] - 2, mask), (x,), (t,))
    assert value.tolist() == [2.0]


@pytest.mark.parametrize("how", ["func", "dual"])
@pytest.mark.parametrize(("name", "argument"), CONSTANT)
def test_constants_refuse_tangents(call_of, name, argument, how):
    call = call_of(name)
    value = call.options[argument]
    x = first_of(value)

    def function(x: Tensor) -> Tensor:
        return call(**{argument: with_first(value, x)})[0]

    def by_dual_numbers() -> None:
        with forward_ad.dual_level():
            function(forward_ad.make_dual(x, tangent_like(x)))

    def by_func() -> None:
        torch.func.jvp(function, (x,), (tangent_like(x),))

    spoken = name.split(" ")[0].rstrip(",")
    with pytest.raises(
        RuntimeError,
        match=rf"pama_ops\.{spoken} has no forward-mode derivative (here|in {argument})",
    ):
        (by_func if how == "func" else by_dual_numbers)()


def test_a_detached_argument_has_no_tangent():
    x = torch.zeros(2, 1, 3)
    _, t = torch.func.jvp(
        lambda y: y.sum() * po.gae(y.detach(), x).advantages.sum(), (x + 1,), (x + 1,)
    )
    assert t.item() == 6 * po.gae(x + 1, x).advantages.sum()


def test_pareto_backward_refuses_tangents():
    x = torch.ones(3, requires_grad=True)
    with forward_ad.dual_level():
        loss = (x * forward_ad.make_dual(torch.ones(3), torch.ones(3))).sum()
        with pytest.raises(RuntimeError, match=r"pama_ops\.pareto_backward has no forward-mode"):
            po.pareto_backward([loss, x.sum()], [x])
    assert x.grad is None


def test_combine_into_out_refuses_tangents(backend):
    x = torch.ones(3, device=backend.device)
    out = torch.empty_like(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"pama_ops\.combine into"):
        po.combine([forward_ad.make_dual(x, x), x], torch.ones(2).to(x), out=out)


@pytest.mark.parametrize(("name", "argument"), DIFFERENTIABLE)
def test_gradients_refuse_tangents(call_of, name, argument):
    """Forward over reverse: of the losses there is no second derivative."""
    call = call_of(name)
    value = call.options[argument]
    leaf = first_of(value).clone().requires_grad_()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(leaf, tangent_like(leaf))
        total = call(**{argument: with_first(value, x)})[0].sum()
        with pytest.raises(RuntimeError, match=r"pama_ops\.\w+'s gradient has no forward-mode"):
            torch.autograd.grad(total, leaf, retain_graph=True)
    primal = forward_ad.unpack_dual(total).primal  # outside nothing is lost
    want = torch.autograd.grad(call(**{argument: with_first(value, leaf)})[0].sum(), leaf)
    assert torch.equal(torch.autograd.grad(primal, leaf)[0], want[0])


@pytest.mark.parametrize(("name", "argument"), DIFFERENTIABLE)
def test_gradients_of_tangents_are_refused(call_of, name, argument):
    """Reverse over forward, but for those that are differentiable twice."""
    call = call_of(name)
    value = call.options[argument]
    leaf = first_of(value).clone().requires_grad_()
    if name.startswith(("gram", "combine")):
        pytest.skip("products of gradients have their second derivatives")
    with forward_ad.dual_level():
        x = forward_ad.make_dual(leaf, tangent_like(leaf))
        tangent = forward_ad.unpack_dual(call(**{argument: with_first(value, x)})[0]).tangent
    with pytest.raises(RuntimeError, match=r"can be differentiated once, not twice"):
        torch.autograd.grad(tangent.sum(), leaf)


def floating_options() -> dict[tuple[str, str], Tensor]:
    """Masks, preferences and targets as floating-point tensors, which may well have a tangent."""
    preference, target = torch.tensor([1.0, 2.0, 4.0]), torch.full((3, 3), 0.25)
    weightings = [weighting.name for weighting in TABLE if weighting.takes_preference]
    masks = [name for name in CALLS if name.startswith(("gae", "whiten", "pama_advantages"))]
    return {
        **{(name, "mask"): CALLS[name].options["mask"].float() for name in masks},
        **{(name, "preference"): preference for name in weightings},
        ("pama_advantages by gram", "preference"): preference[:2],
        ("gradvac", "target"): target,
    }


@pytest.mark.parametrize(("name", "option"), floating_options())
def test_options_that_are_tensors_refuse_tangents_and_gradients(call_of, name, option):
    call, x = call_of(name), floating_options()[name, option]
    want = call(**{option: x})
    out = call(**{option: x.requires_grad_()})
    assert all(map(torch.equal, out, want))
    spoken = name.split(" ")[0].rstrip(",")
    with pytest.raises(RuntimeError, match=rf"pama_ops\.{spoken} is not differentiable"):
        out[0].sum().backward()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match=rf"pama_ops\.{spoken} has no forward-mode"):
            call(**{option: dual})
