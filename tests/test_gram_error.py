"""What is known of a Gram matrix, from the gradients through `gram` to the weightings."""

from __future__ import annotations

import functools
import math

import exactly
import pytest
import torch
from properties import ROUNDOFF
from strategies import normal
from weightings import TABLE

import pama_ops as po

READERS = [weighting.function for weighting in TABLE if weighting.accepts("rtol")]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def dependent(dtype: torch.dtype, device: torch.device, size: int = 20_000) -> list[torch.Tensor]:
    """a, b and a + b, each rounded to `dtype`."""
    generator = torch.Generator().manual_seed(0)
    a, b = (normal(size, generator=generator, dtype=torch.float64) for _ in range(2))
    return [x.to(dtype).to(device) for x in (a, b, a + b)]


def length(weights: torch.Tensor, gradients: list[torch.Tensor]) -> float:
    w = weights.double().cpu()
    combined = sum(x * g.double().cpu() for x, g in zip(w, gradients, strict=True))
    return math.sqrt(math.fsum((combined * combined).tolist()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_notes_the_error_of_its_entries(backend, dtype):
    gradients = dependent(dtype, backend.device)
    gram = po.gram(gradients)
    rows = torch.stack([x.double().cpu() for x in gradients])
    norm = exactly.product(rows, rows.mT).diagonal().sqrt()
    off = (gram.cpu() - exactly.product(rows, rows.mT)).abs() / norm / norm[:, None]
    assert float(off.max()) <= gram.rtol
    # What the rounding of the third one leaves of a + b − (a + b), which was 0.
    rest = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    left = float(rest @ exactly.product(rows, rows.mT) @ rest)
    assert left <= gram.rtol * float(norm.sum()) ** 2
    assert po.gram(gradients, dtype=torch.float32).rtol >= torch.finfo(torch.float32).eps


def test_gram_accumulate_notes_the_largest_error(backend):
    gram = torch.zeros(3, 3, dtype=torch.float64, device=backend.device)
    po.gram_accumulate(gram, dependent(torch.bfloat16, backend.device))
    coarse = gram.rtol
    po.gram_accumulate(gram, dependent(torch.float64, backend.device))
    assert gram.rtol == coarse > po.gram(dependent(torch.float32, backend.device)).rtol


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighting", [po.imtl_g, po.config, po.aligned_mtl])
def test_dependent_gradients_keep_the_length_of_what_they_span(backend, weighting, dtype):
    """The gradients' rounding is no direction of theirs: it would take all the weight."""
    exact = dependent(torch.float64, backend.device)
    want = length(weighting(po.gram(exact)), exact)
    assert want > 10
    gradients = dependent(dtype, backend.device)
    got = length(weighting(po.gram(gradients)), gradients)
    # Of weights below 2, the rounding of gradients of this length moves the sum by that much.
    assert abs(got - want) <= 64 * ROUNDOFF[dtype] * want + 1e-4 * want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighting", [po.imtl_g, po.config, po.aligned_mtl])
def test_pareto_backward_passes_the_error_on(weighting, dtype):
    gradients = dependent(dtype, torch.device("cpu"))
    p = torch.zeros_like(gradients[0], requires_grad=True)
    w = po.pareto_backward([(p * g).sum() for g in gradients], [p], weighting=weighting)
    want = length(weighting(po.gram(gradients)), gradients)
    assert abs(length(w, gradients) - want) <= 1e-6 * want
    assert math.sqrt(math.fsum((p.grad.double() ** 2).tolist())) > 0.9 * want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parallel_losses_are_aligned_along_their_line(backend, dtype):
    a = dependent(torch.float64, backend.device)[0]
    gradients = [a.to(dtype), (0.3 * a).to(dtype)]
    got = length(po.aligned_mtl(po.gram(gradients)), gradients)
    norm = math.sqrt(math.fsum((a * a).tolist()))
    # √σ V Λ^(−½) Vᵀ p for the one eigenvalue σ = (1 + .09) ‖a‖², p = (½, ½): 1.3 / 2 ‖a‖.
    assert abs(got - 0.65 * norm) <= 1e-2 * norm


FEW = [
    [[-0.9 * s, -0.3 * s] for s in (2.39, 0.19, -0.51)],
    [[x * y for y in (1.62, 0.09, -1.98)] for x in (1.62, 0.09, -1.98)],
]


@pytest.mark.parametrize("rows", FEW)
@pytest.mark.parametrize("weighting", [po.nash_mtl, functools.partial(po.fairgrad, alpha=2.0)])
def test_stationary_gradients_in_float32_are_found_so(backend, weighting, rows):
    gradients = [torch.tensor(row, device=backend.device) for row in rows]
    gram = po.gram(gradients)
    w = weighting(gram).cpu()
    assert bool((w >= 0).all())
    assert abs(float(w.sum()) - 1) <= 1e-12
    norm = gram.cpu().diagonal().sqrt()
    size = float(w @ norm)
    slopes = gram.cpu() @ w
    assert bool((slopes.abs() <= math.sqrt(16 * gram.rtol) * norm * size).all())
    p = torch.zeros_like(gradients[0], requires_grad=True)
    po.pareto_backward([(p * g).sum() for g in gradients], [p], weighting=weighting)
    assert float(p.grad.norm()) <= math.sqrt(16 * gram.rtol) * size


# J = C B in float32 with C of small integers and rank 1; its Gram matrix, as float64 numbers.
INDEFINITE = [
    [16.361167907714844, 12.32160758972168, -19.121850967407227],
    [12.32160758972168, 10.365760803222656, -15.124914169311523],
    [-19.121850967407227, -15.124914169311523, 22.8311767578125],
]


@pytest.mark.parametrize("rtol", [None, 1e-6])
@pytest.mark.parametrize("weighting", [po.nash_mtl, functools.partial(po.fairgrad, alpha=2.0)])
def test_a_matrix_that_rounding_made_indefinite_has_weights(backend, weighting, rtol):
    gram = torch.tensor(INDEFINITE, dtype=torch.float64, device=backend.device)
    w = weighting(gram, rtol=rtol).cpu()
    torch.testing.assert_close(w, torch.tensor([2, 2, 3]).double() / 7, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", READERS)
def test_rtol_is_taken_from_the_matrix_unless_given(function):
    gradients = dependent(torch.float32, torch.device("cpu"))
    gram = po.gram(gradients)
    bare = gram.clone()
    assert torch.equal(function(gram), function(bare, rtol=gram.rtol))
    assert torch.equal(function(bare), function(bare, rtol=torch.finfo(torch.float64).eps))
    for bad, error in ((-1.0, ValueError), (math.nan, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="rtol must be"):
            function(gram, rtol=bad)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_ops_refuse_an_rtol_that_is_none(bad):
    for weighting in TABLE:
        op = getattr(torch.ops.pama_ops, weighting.name)
        vector = weighting.vector_for((), 2, torch.Generator())
        with pytest.raises(ValueError, match="rtol must be nonnegative and finite"):
            op(torch.eye(2), vector, weighting.options, bad)


def test_the_error_goes_through_a_compiled_step():
    gradients = dependent(torch.float32, torch.device("cpu"))

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def step(gradients: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        gram = po.gram(gradients)
        return po.imtl_g(gram), gram

    weights, gram = step(gradients)
    assert torch.equal(weights, po.imtl_g(po.gram(gradients)))
    assert gram.rtol == po.gram(gradients).rtol
    again = torch.compile(po.imtl_g, fullgraph=True, backend="aot_eager")
    assert torch.equal(again(gram), weights)
