"""`pareto_backward` against its definition: autograd's gradients in float64, stacked."""

from __future__ import annotations

import functools
import gc
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from strategies import normal
from torch import nn
from torch.utils.checkpoint import checkpoint

import pama_ops as po

N = 3


class Model(nn.Module):
    """A shared trunk, a head for each loss, and optionally a checkpointed trunk."""

    def __init__(self, dtype=torch.float64, reentrant: bool | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in range(N))
        for x in self.parameters():
            x.data = normal(x.shape, generator=generator, dtype=torch.float64).to(dtype) / 2
        self.reentrant = reentrant

    def features(self, x):
        if self.reentrant is None:
            return self.trunk(x)
        return checkpoint(self.trunk, x, use_reentrant=self.reentrant)

    def losses(self, x):
        z = self.features(x)
        return [(head(z) - i).square().mean() for i, head in enumerate(self.heads)], z


def batch(dtype=torch.float64, seed: int = 1) -> torch.Tensor:
    return normal(16, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expected(losses, parameters, weighting=po.min_norm):
    """w, and the weighted gradient of each parameter (None where no loss reaches it)."""
    rows = [
        torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in losses
    ]
    columns = list(zip(*rows, strict=True))
    j = torch.stack(
        [
            torch.cat([(torch.zeros_like(p) if g is None else g).double().flatten()
                       for g, p in zip(row, parameters, strict=True)])
            for row in rows
        ]
    )  # fmt: skip
    w = weighting(j @ j.mT)
    sums = [
        None if all(g is None for g in column)
        else sum(w[i] * g for i, g in enumerate(column) if g is not None)
        for column in columns
    ]  # fmt: skip
    return w, sums


def close(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_the_weighted_sum(backend):
    model = Model().to(backend.device)
    losses, _ = model.losses(batch().to(backend.device))
    parameters = list(model.parameters())
    w, want = expected(losses, parameters)
    got = po.pareto_backward(losses, model.parameters())
    close(got, w)
    for x, g in zip(parameters, want, strict=True):
        close(x.grad, g)
        assert x.grad.stride() == x.stride()


def test_gradients_add_to_what_is_there(backend):
    model = Model().to(backend.device)
    parameters = list(model.parameters())
    totals = [torch.zeros_like(x) for x in parameters]
    for seed in (1, 2):
        losses, _ = model.losses(batch(seed=seed).to(backend.device))
        _, want = expected(losses, parameters)
        totals = [t + g for t, g in zip(totals, want, strict=True)]
        po.pareto_backward(losses, parameters)
    for x, total in zip(parameters, totals, strict=True):
        close(x.grad, total)


def test_any_function_is_a_weighting():
    model = Model()
    losses, _ = model.losses(batch())

    def first(gram, row):
        return torch.eye(len(gram))[row]

    w = po.pareto_backward(
        losses, model.trunk.parameters(), weighting=functools.partial(first, row=1)
    )
    assert w.tolist() == [0.0, 1.0, 0.0]
    losses, _ = model.losses(batch())
    for x, g in zip(
        model.trunk.parameters(),
        torch.autograd.grad(losses[1], list(model.trunk.parameters())),
        strict=True,
    ):
        close(x.grad, g)


def test_heads_get_their_own_gradient_unweighted():
    model = Model()
    losses, _ = model.losses(batch())
    trunk = list(model.trunk.parameters())
    w, want = expected(losses, trunk)
    own = [torch.autograd.grad(losses[i], list(h.parameters()), retain_graph=True)
           for i, h in enumerate(model.heads)]  # fmt: skip
    tasks = [head.parameters() for head in model.heads]
    close(po.pareto_backward(losses, model.parameters(), task_parameters=tasks), w)
    for x, g in zip(trunk, want, strict=True):
        close(x.grad, g)
    for head, grads in zip(model.heads, own, strict=True):
        for x, g in zip(head.parameters(), grads, strict=True):
            close(x.grad, g)


@pytest.mark.parametrize("named", [False, True])
def test_features_take_one_backward_of_the_weighted_loss(named):
    model = Model()
    losses, z = model.losses(batch())
    w, _ = expected(losses, [z])
    total = sum(a * b for a, b in zip(w, losses, strict=True))
    trunk = list(model.trunk.parameters())
    want = torch.autograd.grad(total, trunk, retain_graph=True)
    roots = losses if named else [total] * N
    heads = [torch.autograd.grad(root, list(h.parameters()), retain_graph=True)
             for root, h in zip(roots, model.heads, strict=True)]  # fmt: skip
    before = [torch.ones_like(x) for x in model.parameters()]
    for x, b in zip(model.parameters(), before, strict=True):
        x.grad = b.clone()
    tasks = [head.parameters() for head in model.heads] if named else None
    close(po.pareto_backward(losses, features=z, task_parameters=tasks), w)
    for x, g in zip(trunk, want, strict=True):
        close(x.grad, g + 1)
    for head, grads in zip(model.heads, heads, strict=True):
        for x, g in zip(head.parameters(), grads, strict=True):
            close(x.grad, g + 1)


def test_parameters_that_a_loss_does_not_reach_count_as_zero(backend):
    device = backend.device
    a, b, c = (torch.tensor([v], device=device, requires_grad=True) for v in (1.0, 2.0, 3.0))
    w = po.pareto_backward([(a * b).sum(), (3 * a).sum()], [a, b, c])
    close(w.cpu(), po.min_norm(torch.tensor([[5.0, 6.0], [6.0, 9.0]], dtype=torch.float64)))
    close(b.grad, (w[0] * 1.0).float().reshape(1))
    assert c.grad is None


def test_frozen_parameters_are_passed_over():
    model = Model()
    for x in model.trunk[0].parameters():
        x.requires_grad_(False)
    losses, _ = model.losses(batch())
    kept = [x for x in model.parameters() if x.requires_grad]
    w, want = expected(losses, kept)
    close(po.pareto_backward(losses, model.parameters()), w)
    for x, g in zip(kept, want, strict=True):
        close(x.grad, g)
    assert all(x.grad is None for x in model.trunk[0].parameters())


class LoRA(nn.Module):
    """A frozen linear map and a trained one of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(normal(rank, base.in_features, dtype=torch.float64))
        self.up = nn.Parameter(normal(base.out_features, rank, dtype=torch.float64))

    def forward(self, x):
        return self.base(x) + x @ self.down.mT @ self.up.mT


def test_low_rank_adapters_train():
    model = Model()
    model.trunk[0], model.trunk[2] = LoRA(model.trunk[0]), LoRA(model.trunk[2])
    losses, _ = model.losses(batch())
    kept = [x for x in model.trunk.parameters() if x.requires_grad]
    assert len(kept) == 4
    w, want = expected(losses, kept)
    close(po.pareto_backward(losses, model.trunk.parameters()), w)
    for x, g in zip(kept, want, strict=True):
        close(x.grad, g)


def test_checkpointing_without_reentry_works():
    plain, saved = Model(), Model(reentrant=False)
    po.pareto_backward(plain.losses(batch())[0], plain.parameters())
    po.pareto_backward(saved.losses(batch())[0], saved.parameters())
    for x, y in zip(plain.parameters(), saved.parameters(), strict=True):
        close(x.grad, y.grad)


def test_reentrant_checkpointing_is_refused_with_advice():
    model = Model(reentrant=True)
    losses, _ = model.losses(batch().requires_grad_())
    with pytest.raises(ValueError, match=r"call .* with use_reentrant=False"):
        po.pareto_backward(losses, model.parameters())
    assert all(x.grad is None for x in model.parameters())


def test_losses_may_differ_in_dtype():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    losses = [x.square().sum(), x.sum().bfloat16(), x.abs().sum().double(), x.prod().half()]
    w = po.pareto_backward(losses, [x])
    assert w.dtype == torch.float64
    assert x.grad.dtype == torch.float32
    z = torch.tensor([1.0, -2.0], requires_grad=True)
    y = 1 * z
    losses = [y.square().sum(), y.sum().bfloat16(), y.abs().sum().double(), y.prod().half()]
    close(po.pareto_backward(losses, features=y), w)


@pytest.mark.parametrize("scale", [1.0, 65536.0, 2.0**-20])
def test_scaled_losses_have_the_same_weights(scale):
    model = Model()
    losses, _ = model.losses(batch())
    w, want = expected(losses, list(model.parameters()))
    close(po.pareto_backward([scale * x for x in losses], model.parameters()), w)
    for x, g in zip(model.parameters(), want, strict=True):
        close(x.grad, scale * g)


@pytest.mark.parametrize("finite", [True, False])
def test_a_grad_scaler_steps_or_skips(finite):
    model = Model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = model.losses(batch(torch.float32))
    if not finite:
        losses[1] = losses[1] * torch.inf
    before = [x.detach().clone() for x in model.parameters()]
    po.pareto_backward([scaler.scale(x) for x in losses], model.parameters())
    scaler.step(optimizer)
    scaler.update()
    moved = any(not torch.equal(x, y) for x, y in zip(model.parameters(), before, strict=True))
    assert moved == finite
    assert all(bool(x.isfinite().all()) for x in model.parameters())


def test_losses_may_be_one_tensor():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    close(po.pareto_backward(torch.stack([x[0], x[1]]), [x]), torch.tensor([0.5, 0.5]).double())


MEMORY = """
import resource, torch, pama_ops as po
size, n = 5_000_000, 4
x = torch.zeros(size, requires_grad=True)
po.pareto_backward([x[:9].sum(), (2 * x[:9]).sum()], [x])
x.grad = None
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c):
        ctx.c, ctx.size = c, len(x)
        return x.new_zeros(())
    @staticmethod
    def backward(ctx, slope):
        return torch.full((ctx.size,), ctx.c) * 1, None
base = peak()
po.pareto_backward([Linear.apply(x, float(i + 1)) for i in range(n)], [x])
print((peak() - base) / (4 * size))
"""


def test_memory_is_that_of_n_plus_one_gradients():
    """Peak resident memory over what was resident before, in gradients, in a fresh process."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert (
        float(run.stdout) <= 4 + 1 + 0.3
    )  # the function's own temporary is freed, but counts once


def test_nothing_is_kept_between_calls():
    model = Model()
    gc.collect()
    losses, _ = model.losses(batch())
    po.pareto_backward(losses, model.parameters())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses[0].backward()


def train(steps: range, state: dict) -> list[torch.Tensor]:
    """GradVac with the paper's moving average of cosines, over a moving average of G."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    target, average = torch.zeros(N, N).double(), torch.zeros(N, N).double()
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        target, average = state["target"], state["average"]
        torch.set_rng_state(state["rng"])
    for step in steps:

        def weighting(gram: torch.Tensor) -> torch.Tensor:
            norm = gram.diagonal().sqrt()
            average.mul_(0.9).add_(gram, alpha=0.1)
            target.mul_(0.99).add_(gram / (norm[:, None] * norm), alpha=0.01)
            return po.gradvac(average, target=target)

        optimizer.zero_grad()
        po.pareto_backward(
            model.losses(batch(seed=step))[0], model.parameters(), weighting=weighting
        )
        optimizer.step()
    state.update(
        model=model.state_dict(), optimizer=optimizer.state_dict(), target=target, average=average,
        rng=torch.get_rng_state(),
    )  # fmt: skip
    return list(model.parameters())


def test_a_run_resumes_to_the_bit_from_tensors_that_the_caller_saves(tmp_path):
    torch.manual_seed(0)
    whole = train(range(10), {})
    torch.manual_seed(0)
    state: dict = {}
    train(range(5), state)
    torch.save(state, tmp_path / "state")
    torch.manual_seed(1)
    resumed = train(range(5, 10), torch.load(tmp_path / "state"))
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))


def args(**change):
    x = torch.ones(2, requires_grad=True)
    return {"losses": [x.sum(), x.prod()], "parameters": [x], **change}


X = torch.ones(2, requires_grad=True)
HELD = torch.ones(2, requires_grad=True)
BAD = [
    (args(losses=[]), ValueError, "losses must hold at least one loss"),
    (args(losses=3), TypeError, "losses must be a list of tensors, got int"),
    (args(losses=X.sum()), ValueError, r"losses must be .* a tensor \[n\], got \[\]"),
    (args(losses=[X]), ValueError, r"losses\[0\] must have one element, got \[2\]"),
    (args(losses=[torch.ones(())] * 2), ValueError, "losses must have a graph .* none requires"),
    (args(retain_graph=1), TypeError, "retain_graph must be .*"),
    (args(losses=[X.sum(), X.sum().item()]), TypeError, r"losses\[1\] must be .* got float"),
    (args(losses=[HELD.sum()]), ValueError, "losses must depend on parameters, but none"),
    (args(parameters=X), TypeError, "parameters must be an iterable of tensors, got Tensor"),
    (args(parameters=[2 * X]), ValueError, r"parameters\[0\] must be a leaf"),
    (args(parameters=[torch.ones(2)]), ValueError, "parameters must hold a shared one"),
    (args(parameters=None), ValueError, "exactly one of parameters and features .* neither"),
    (args(features=2 * X), ValueError, "exactly one of parameters and features .* both"),
    (args(parameters=None, features=torch.ones(2)), ValueError, r"features\[0\] must require"),
    (args(parameters=None, features=3), TypeError, "features must be a tensor or a list"),
    (args(task_parameters=[[X]]), ValueError, "task_parameters must have .* 2 losses, got 1"),
    (args(task_parameters=[[HELD], [HELD]]), ValueError, r"task_parameters\[1\] must not share"),
    (args(weighting=torch.Tensor.tolist), TypeError, "weighting must return .* got list"),
    (args(weighting=lambda gram: gram), ValueError, r"weighting must return 2 .*\[2, 2\]"),
    (args(weighting=lambda gram: gram[0].to(torch.float8_e5m2)), ValueError,
     r"weighting must return 2 .*got torch\.float8"),
    (args(weighting=lambda gram: gram[0].to("meta")), ValueError, "weighting must .* on meta"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_pareto_backward_names_the_bad_argument(arguments, error, message):
    parameters = arguments["parameters"]
    held = [x for x in parameters if x.is_leaf] if isinstance(parameters, list) else []
    with pytest.raises(error, match=message):
        po.pareto_backward(**arguments)
    assert all(x.grad is None for x in held)


def test_gradients_that_cannot_be_weighed_are_refused_by_the_place_of_their_parameter():
    table = nn.Embedding(5, 3, sparse=True)
    x, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    loss = table(torch.tensor([1, 2])).sum() + x.sum()
    with pytest.raises(TypeError, match=r"^parameters\[2\] must have dense .* losses\[0\]"):
        po.pareto_backward([loss], [frozen, x, table.weight])
    z = torch.ones(2, dtype=torch.cfloat, requires_grad=True)
    with pytest.raises(TypeError, match=r"^parameters\[2\] must have a floating-point dtype"):
        po.pareto_backward([x.sum() + z.abs().sum()], [frozen, x, z])
    assert table.weight.grad is x.grad is z.grad is None
    po.pareto_backward([x.sum()], [frozen, x, table.weight, z])  # x alone is reached
    assert x.grad.tolist() == [1.0, 1.0]
    assert table.weight.grad is z.grad is None


class Widened(torch.autograd.Function):
    """A gradient of float32, whatever the dtype of x."""

    @staticmethod
    def forward(_ctx, x):
        return x.float()

    @staticmethod
    def backward(_ctx, grad):
        return grad * 1.001


@pytest.mark.parametrize("dtype", [torch.float32, None])
@pytest.mark.parametrize("through", [False, True])
def test_gradients_of_another_dtype_than_their_parameter(through, dtype):
    """As `grad_dtype` allows them; a transposed parameter gives its layout to what is new."""
    x, head = (torch.ones(3, 4, dtype=torch.bfloat16).t().requires_grad_() for _ in range(2))
    x.grad_dtype = head.grad_dtype = dtype
    for calls in 1, 2:
        z = Widened.apply(x)
        losses = [(z + Widened.apply(head)).sum(), z.sum()]
        shared = {"features": z} if through else {"parameters": [x]}
        po.pareto_backward(losses, **shared, task_parameters=[[head], []])
        for p in x, head:
            assert p.grad.dtype == torch.float32
            assert p.grad.stride() == p.stride()
            torch.testing.assert_close(p.grad, torch.full((4, 3), calls * 1.001))


def test_a_gradient_that_cannot_be_added_to_is_refused():
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match=r"parameters\[0\]\.grad must be dense"):
        po.pareto_backward([x.sum()], [x])


def test_a_gradient_that_no_one_may_write_is_refused_before_anything_is_written():
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    losses = [(x + y).sum(), (x * y).sum()]
    with torch.inference_mode():
        inference = torch.zeros(2)
    one, two, many = torch.zeros(2), torch.zeros(3), torch.zeros(5)
    for grads, message in (
        ((None, torch.zeros(1).expand(2)), r"parameters\[1\]\.grad must have memory for each"),
        ((None, inference), r"parameters\[1\]\.grad must be no inference tensor"),
        ((one, one), r"parameters\[1\]\.grad must share no memory with parameters\[0\]\.grad"),
        ((two[:2], two[1:]), r"parameters\[1\]\.grad must share no memory with parameters\[0\]"),
        ((many[0:3:2], many[2:5:2]), r"parameters\[1\]\.grad must share no memory with"),
    ):
        x.grad, y.grad = grads
        with pytest.raises(ValueError, match=message):
            po.pareto_backward(losses, [x, y])
        assert x.grad is grads[0]
        assert not bool(one.any())
        assert not bool(two.any())


def test_grads_of_heads_and_trunk_that_share_memory_are_told_by_name():
    x, a, b = (torch.ones(2, requires_grad=True) for _ in range(3))
    losses = [(x * a).sum(), (x + b).sum()]
    memory = torch.zeros(3)
    for wrong, names in (
        ((x, a), ("task_parameters[0][0]", "parameters[0]")),
        ((a, b), ("task_parameters[1][0]", "task_parameters[0][0]")),
    ):
        x.grad = a.grad = b.grad = None
        wrong[0].grad, wrong[1].grad = memory[:2], memory[1:]
        words = f"{names[0]}.grad must share no memory with {names[1]}.grad, but does"
        for shared in ([x], [x, a, b]):
            with pytest.raises(ValueError, match="^" + re.escape(words)):
                po.pareto_backward(losses, shared, task_parameters=[[a], [b]])
    assert not bool(memory.any())


class Kept(torch.autograd.Function):
    """The sum, whose gradient is a tensor that the caller keeps."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return x.sum()

    @staticmethod
    def backward(ctx, _grad):
        return ctx.slope, None


def test_a_gradient_that_lies_in_its_grad_is_told():
    x = torch.ones(2, requires_grad=True)
    memory = torch.ones(3)
    x.grad = memory[:2]
    words = "a .grad that a gradient is added to must be that whole gradient or lie apart"
    with pytest.raises(ValueError, match=words):
        po.pareto_backward([Kept.apply(x, memory[1:]), x.sum()], [x])
    assert memory.tolist() == [1.0] * 3


def test_the_grad_of_a_head_is_memory_of_its_own():
    """Whether autograd's gradient is expanded, given to two tensors, or kept by a function."""
    w, a, b, c, d = (torch.arange(1.0, 4.0).requires_grad_() for _ in range(5))
    kept = torch.ones(3, requires_grad=True)  # of which no graph is wanted
    for calls in 1, 2:
        losses = [
            (w + a).sum(),
            (w * (b + c) * torch.arange(3.0)).sum(),
            w.sum() + Kept.apply(d, kept),
        ]
        po.pareto_backward(losses, [w], task_parameters=[[a], [b, c], [d]])
        assert a.grad.tolist() == d.grad.tolist() == [calls] * 3
        assert not d.grad.requires_grad
        assert b.grad.tolist() == c.grad.tolist() == (calls * w * torch.arange(3.0)).tolist()
    torch.nn.utils.clip_grad_norm_([w, a, b, c, d], 1.0)
    assert kept.tolist() == [1.0] * 3


@pytest.mark.parametrize("through", [False, True])
def test_a_head_whose_gradient_is_a_grad_gets_what_that_was(through):
    """Read before any `.grad` is written: of the trunk, of another head, or partly its own."""
    for whose in "trunk", "head", "own":
        w, a, b = (torch.ones(3, requires_grad=True) for _ in range(3))
        memory = torch.arange(4.0)
        w.grad, a.grad = torch.full((3,), 5.0), torch.full((3,), 7.0)
        slope = {"trunk": w.grad, "head": a.grad, "own": memory[1:]}[whose]
        if whose == "own":
            b.grad = memory[:3]
        z = w * 2
        losses = [(z * a).sum(), z.sum() + Kept.apply(b, slope)]
        want = slope.clone() + (0 if b.grad is None else b.grad)
        shared = {"features": z} if through else {"parameters": [w]}
        po.pareto_backward(losses, **shared, task_parameters=[[a], [b]])
        assert torch.equal(b.grad, want)


def test_gradients_bring_no_graph_of_their_own():
    """As a function's backward that returns a parameter gives them."""
    x, kept = (torch.ones(3, requires_grad=True) for _ in range(2))

    def plain(gram):
        assert not gram.requires_grad
        return gram.new_tensor([0.5, 0.5])

    for _ in range(2):
        po.pareto_backward([Kept.apply(x, kept), x.sum()], [x], weighting=plain)
    assert x.grad.tolist() == [2.0] * 3
    assert not x.grad.requires_grad
    z = x * 1
    po.pareto_backward([Kept.apply(z, kept), z.sum()], features=z, weighting=plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_losses_in_one_tensor_are_differentiated_in_any_mode(mode):
    x = torch.arange(1.0, 4.0).requires_grad_()
    losses = torch.stack([(x**2).sum() / 2, x.sum()])
    with mode():
        w = po.pareto_backward(losses, [x])
    assert torch.equal(x.grad, w[0].float() * x.detach() + w[1].float())


@pytest.mark.parametrize("layout", ["channels last", "transposed"])
def test_a_new_grad_is_laid_out_as_its_parameter(layout):
    x = normal(2, 3, 4, 5)
    x = x.mT if layout == "transposed" else x.to(memory_format=torch.channels_last)
    x = x.detach().requires_grad_()
    po.pareto_backward([x.sum(), (x * 2).sum()], [x])
    assert x.grad.stride() == x.stride()


def test_a_hook_that_would_step_a_head_by_the_weighted_gradient_is_refused():
    w, head = (torch.ones(3, requires_grad=True) for _ in range(2))
    head.register_post_accumulate_grad_hook(torch.Tensor.tolist)
    z = w * 2
    losses = [(z * head).sum(), z.sum()]
    with pytest.raises(ValueError, match=r"^task_parameters\[0\]\[0\] must have no post-accum"):
        po.pareto_backward(losses, features=z, task_parameters=[[head], []])
    assert w.grad is None
    po.pareto_backward(losses, [w], task_parameters=[[head], []])


def test_what_is_new_is_summed_before_any_grad_is_written():
    x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
    x.grad = torch.full((3,), 5.0)
    losses = [x.sum() + Kept.apply(y, x.grad), x.sum() + y.sum()]
    po.pareto_backward(losses, [x, y], weighting=lambda gram: gram.new_tensor([0.5, 0.5]))
    assert x.grad.tolist() == [6.0] * 3
    assert y.grad.tolist() == [3.0] * 3


@pytest.mark.parametrize("through", [False, True])
def test_a_head_may_have_sparse_gradients(through):
    """Beside a `.grad` that is sparse or dense, as torch's backward adds them."""
    w, table = torch.ones(3, requires_grad=True), nn.EmbeddingBag(5, 3, sparse=True)
    dense = nn.EmbeddingBag(5, 3)
    dense.load_state_dict(table.state_dict())
    words = torch.tensor([[1, 2]])
    for plain in False, False, True, False:
        for head in table, dense:
            z = w * 2
            shared = {"features": z} if through else {"parameters": [w]}
            own = (head.weight**2).sum() if plain else head(words)
            po.pareto_backward(
                [(z * own).sum(), z.sum()], **shared, task_parameters=[head.parameters(), []]
            )
        if not plain:
            assert table.weight.grad.is_sparse or dense.weight.grad.count_nonzero() == 15
        torch.testing.assert_close(table.weight.grad.to_dense(), dense.weight.grad)


def test_a_grad_with_a_graph_is_added_to_as_torch_does():
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    for leaf in x, y:
        leaf.grad = torch.autograd.grad((leaf**3).sum(), leaf, create_graph=True)[0]
    po.pareto_backward([x.sum(), x.sum()], [x])
    y.sum().backward()
    assert x.grad.tolist() == y.grad.tolist() == [4.0, 4.0]
    assert x.grad.requires_grad == y.grad.requires_grad


def test_a_grad_that_is_a_leaf_of_its_own_is_added_to_as_torch_does():
    x, a, b = (torch.ones(2, requires_grad=True) for _ in range(3))
    for leaf in x, a, b:
        leaf.grad = torch.ones(2, requires_grad=True)
    po.pareto_backward([(x * a).sum(), x.sum()], [x], task_parameters=[[a], []])
    b.sum().backward()
    assert x.grad.tolist() == a.grad.tolist() == b.grad.tolist() == [2.0, 2.0]
    assert x.grad.requires_grad == a.grad.requires_grad == b.grad.requires_grad


def test_adding_to_grad_raises_its_version():
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.zeros(2)
    held = x.grad
    po.pareto_backward([x.sum(), x.sum()], [x])
    assert x.grad is held
    assert held._version > 0


@pytest.mark.parametrize("through", [False, True])
def test_a_loss_without_a_graph_counts_as_a_gradient_of_zeros(through):
    model = Model()
    shared = list(model.trunk.parameters())
    x = torch.arange(18, dtype=torch.float64).view(3, 6) / 9
    losses, z = model.losses(x)
    losses[1] = torch.tensor(0.0)
    given = {"features": z} if through else {"parameters": shared}
    weights = po.pareto_backward(losses, **given, retain_graph=True)
    assert weights.tolist() == [0, 1, 0]
    assert not any(bool(p.grad.any()) for p in shared)
    left_out = functools.partial(po.min_norm, ignore_zero=True)
    weights = po.pareto_backward(losses, **given, weighting=left_out)
    assert weights[1] == 0
    model.zero_grad()
    others, z = model.losses(x)
    given = {"features": z} if through else {"parameters": shared}
    assert torch.equal(po.pareto_backward([others[0], others[2]], **given), weights[[0, 2]])


def test_the_graph_is_kept_if_asked():
    model = Model()
    for through in (False, True):
        losses, z = model.losses(torch.ones(2, 6, dtype=torch.float64))
        given = {"features": z} if through else {"parameters": list(model.trunk.parameters())}
        for keep in (True, False):
            po.pareto_backward([*losses, torch.tensor(0.0)], **given, retain_graph=keep)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            sum(losses).backward()


def test_weightings_are_told_apart_by_name_and_by_what_partial_sets():
    """That is what ranks compare: nothing that differs between processes, such as an address."""
    describe = po._agreement.described
    averaged = functools.partial(po.gradvac, target=torch.zeros(2, 2), seed=None)
    assert describe(averaged) == (
        "partial(pama_ops.weights.gradvac, seed=None, target=torch.float32 [2, 2])"
    )
    nested = functools.partial(functools.partial(po.cagrad, c=0.3), rtol=[1, "a"])
    assert describe(nested) == "partial(pama_ops.weights.cagrad, c=0.3, rtol=[1.0, 'a'])"
    for half in (np.array(0.5), np.float32(0.5), Decimal("0.5"), Fraction(1, 2)):
        assert describe(half) == "0.5"
    assert (describe(np.bool_(True)), describe(10**400)) == ("True", "builtins.int")
    assert describe(torch.nn.Softmax(0)) == "torch.nn.modules.activation.Softmax"
    assert describe(lambda gram: gram).endswith("partial_sets.<locals>.<lambda>")
