"""pama_ops.integrations.torchjd, against the installed TorchJD."""

from __future__ import annotations

import doctest
import functools
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction

import exactly
import pytest
import torch

pytest.importorskip("torchjd", reason="wants torchjd: pip install 'pama_ops[torchjd]'")

from rational_solver import rational, solve
from strategies import normal
from torchjd import aggregation as jd
from torchjd import scalarization
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad
from weightings import TABLE

import pama_ops as po
from pama_ops.integrations import torchjd as integration
from pama_ops.integrations.torchjd import (
    GramAggregator,
    GramWeighting,
    as_function,
    loss_weights,
)

JACOBIAN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)


def model_and_losses(
    dtype: torch.dtype = torch.float64,
    before_forward: Callable[[torch.nn.Module], object] = lambda _: None,
) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    model = model.to(dtype)
    before_forward(model)
    x = normal(16, 3, dtype=dtype)
    return model, ((model(x) - normal(16, 4, dtype=dtype)) ** 2).mean(0)


@pytest.fixture(params=TABLE, ids=lambda row: row.name)
def ours(request: pytest.FixtureRequest):
    return request.param.solve


def perturbation(gram: torch.Tensor, d: int, dtype: torch.dtype) -> float:
    """How far two evaluations of G in `dtype`, summed in different orders, move its weights.

    Entries differ by 2 (d + 8) u ‖g_i‖ ‖g_j‖, 8 for the gradients' own rounding in as many layers'
    sums; weights by that times the condition of the unit Gram matrix, to first order.
    """
    g = gram.double()
    unit = g.diagonal().rsqrt()
    condition = exactly.condition(g * unit[:, None] * unit)
    return 2 * (d + 8) * torch.finfo(dtype).eps / 2 * len(g) * condition


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimize", [False, True])
def test_jac_to_grad_gives_the_gradient_of_pareto_backward(ours, dtype, optimize):
    model, losses = model_and_losses(dtype)
    grams = []
    want_weights = po.pareto_backward(
        losses, model.parameters(), weighting=lambda g: (grams.append(g), ours(g))[1]
    )
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    model, losses = model_and_losses(dtype)
    backward(list(losses))
    weights = jac_to_grad(
        model.parameters(), GramAggregator(ours), optimize_gramian_computation=optimize
    )
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    bound = perturbation(grams[0], len(want), dtype)
    assert bound < 0.05
    norms = grams[0].diagonal().sqrt()
    size = norms * want_weights.abs()
    assert float((norms * (weights - want_weights).abs()).max()) <= bound * float(size.sum())
    assert float((got - want).norm()) <= bound * float(size.sum())


def test_autogram_gives_the_gradient_of_pareto_backward(ours):
    model, losses = model_and_losses()
    grams = []
    po.pareto_backward(
        losses, model.parameters(), weighting=lambda g: (grams.append(g), ours(g))[1]
    )
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    engine: list[Engine] = []
    model, losses = model_and_losses(
        before_forward=lambda m: engine.append(Engine(m, batch_dim=None))
    )
    weights = GramWeighting(ours)(engine[0].compute_gramian(losses))
    assert not weights.requires_grad
    losses.backward(weights)
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    size = float((grams[0].diagonal().sqrt() * weights.abs()).sum())
    bound = perturbation(grams[0], len(want), torch.float64)
    assert float((got - want).norm()) <= bound * size


@pytest.mark.parametrize(
    "weighting", [row for row in TABLE if row.torchjd], ids=lambda row: row.name
)
def test_aggregators_agree_with_torchjd_within_its_regularisation(weighting):
    """TorchJD adds 1e-4 of the trace of G to its diagonal."""
    function, aggregator = weighting.function, weighting.torchjd(jd)
    got, want = GramAggregator(function)(JACOBIAN), aggregator(JACOBIAN)
    gram = exactly.gram(JACOBIAN)
    # w = G⁻¹ b: the shift δ moves weights by δ / λ_min of themselves, to first order.
    shift = 1e-4 * float(gram.trace() / exactly.eigen(gram)[0][0])
    weights = as_weights(JACOBIAN, want)
    torch.testing.assert_close(function(gram), weights, rtol=shift, atol=shift)
    size = float(exactly.dot(exactly.norm(JACOBIAN), weights.abs()))
    assert float((got - want).norm()) <= shift * size


def as_weights(jacobian: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The weights of a combination of independent rows."""
    right = exactly.times(jacobian, x).tolist()
    weights = solve(rational(exactly.gram(jacobian).tolist()), [Fraction(y) for y in right])
    return torch.tensor([float(w) for w in weights], dtype=torch.float64)


@pytest.mark.parametrize(
    "weighting",
    [
        jd.UPGradWeighting(),
        jd.MGDAWeighting(),
        jd.DualProjWeighting(),
        jd.MeanWeighting(),
        jd.KrumWeighting(n_byzantine=1),
        jd.AlignedMTLWeighting(),
        jd.UPGrad(),
        jd.IMTLG(),
    ],
    ids=lambda w: type(w).__name__,
)
def test_torchjd_weightings_work_in_pareto_backward(weighting):
    model, losses = model_and_losses()
    rows = [torch.autograd.grad(x, list(model.parameters()), retain_graph=True) for x in losses]
    weights = po.pareto_backward(losses, model.parameters(), weighting=as_function(weighting))
    gramian = getattr(weighting, "gramian_weighting", weighting)
    torch.testing.assert_close(weights, gramian(po.gram(rows)), rtol=0, atol=0)
    for p, *grads in zip(model.parameters(), *rows, strict=True):
        want = sum(w * g for w, g in zip(weights, grads, strict=True))
        torch.testing.assert_close(p.grad, want, rtol=1e-14, atol=1e-15)


def test_as_function_takes_a_batch_and_runs_hooks():
    calls = []
    weighting = jd.UPGradWeighting()
    weighting.register_forward_hook(lambda *_: calls.append(1))
    function = as_function(weighting)
    j = normal((2, 3, 4, 8), dtype=torch.float64, requires_grad=True)
    gram = exactly.product(j, j.mT)
    got = function(gram)
    assert got.shape == (2, 3, 4)
    assert not got.requires_grad
    assert len(calls) == 6
    assert torch.equal(got[1, 2], jd.UPGradWeighting()(gram[1, 2].detach()))
    assert function(torch.zeros(0, 3, 3)).shape == (0, 3)


def scalarizers() -> list[scalarization.Scalarizer]:
    """All that TorchJD has, each with what it must be given for four losses."""
    even = torch.full((4,), 0.25, dtype=torch.float64)
    given = {
        "Constant": (even,),
        "COSMOS": (1.0, even),
        "PBI": (1.0, even),
        "STCH": (0.5,),
        "FAMO": (4,),
        "IMTLL": (4,),
        "UW": (4,),
    }
    names = [name for name in scalarization.__all__ if name != "Scalarizer"]
    return [getattr(scalarization, name)(*given.get(name, ())) for name in names]


@pytest.mark.parametrize("scalarizer", scalarizers(), ids=lambda s: type(s).__name__)
def test_loss_scalarizers_give_their_gradient_through_pareto_backward(scalarizer):
    scalarizer = scalarizer.double()
    model, losses = model_and_losses()
    torch.manual_seed(1)
    scalarizer(losses).backward()
    want = [p.grad for p in model.parameters()]
    own = [p.grad for p in scalarizer.parameters()]
    scalarizer.zero_grad()
    model, losses = model_and_losses()
    torch.manual_seed(1)
    weights = po.pareto_backward(
        losses, model.parameters(), weighting=lambda _: loss_weights(scalarizer, losses)
    )
    assert not weights.requires_grad
    size = float(weights.abs().sum())
    for p, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-13, atol=1e-14 * max(size, 1.0))
    for p, grad in zip(scalarizer.parameters(), own, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_loss_weights_moves_the_state_of_a_scalarizer():
    famo = scalarization.FAMO(2, lr=0.1)
    before = loss_weights(famo, [torch.tensor(1.0), torch.tensor([2.0])])
    famo.update(torch.tensor([0.5, 2.0]))
    after = loss_weights(famo, torch.tensor([1.0, 2.0]))
    assert float(after[1] / after[0]) > float(before[1] / before[0])


def test_repr_names_the_weighting():
    assert repr(GramWeighting(po.min_norm)) == "GramWeighting(min_norm)"
    aggregator = GramAggregator(functools.partial(po.cagrad, c=0.3))
    assert repr(aggregator) == "GramAggregator(cagrad, c=0.3)"


def test_integration_names_bad_arguments():
    for make in (GramWeighting, GramAggregator):
        with pytest.raises(TypeError, match="function must be a weighting, got str"):
            make("upgrad")
    with pytest.raises(TypeError, match=r"weighting must be a TorchJD weighting .* got GradDrop"):
        as_function(jd.GradDrop())
    with pytest.raises(TypeError, match=r"scalarizer must be .* got Mean"):
        loss_weights(jd.Mean(), torch.ones(2))


def test_examples_run():
    results = doctest.testmod(integration)
    assert results.attempted >= 4
    assert results.failed == 0


def run(script: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


def test_torchjd_is_imported_only_when_asked_for():
    run("import sys, pama_ops, pama_ops.integrations; assert 'torchjd' not in sys.modules")


def test_a_missing_torchjd_is_named_with_its_extra():
    run(
        "import sys, pama_ops\n"
        "sys.modules['torchjd'] = None\n"
        "try:\n"
        "    import pama_ops.integrations.torchjd\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'pama_ops[torchjd]'\" in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no ImportError')"
    )


def test_defaults_of_torch_change_no_bit():
    """With torch's own default dtype or device changed around what is ours."""
    losses, gramian = torch.tensor([1.0, 3.0]), JACOBIAN @ JACOBIAN.T

    def results() -> list[torch.Tensor]:
        return [
            GramWeighting(po.upgrad)(gramian),
            GramAggregator(po.upgrad)(JACOBIAN),
            as_function(GramAggregator(po.min_norm))(gramian),
            loss_weights(scalarization.Mean(), losses),
        ]

    want = results()
    with torch.device("meta"):
        got = results()
    torch.set_default_dtype(torch.float16)
    try:
        got += results()
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(got, want * 2, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)
