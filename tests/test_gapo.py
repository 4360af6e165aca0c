from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from properties import assert_optimal, unit_roundoff
from strategies import draw_gradients, gram_matrices, gram_of

import pama_ops as po


@settings(max_examples=60)
@given(data=st.data())
def test_gapo_is_min_norm_of_the_scaled_gradients(backend, data):
    gram = data.draw(gram_matrices(backend.device, dtypes=[torch.float64, torch.float32]))
    power = data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    assert_shortest_of_scaled(gram, po.gapo(gram, p=power), power)


def test_gapo_of_more_rows_than_lanes(backend, many_rows):
    gram = gram_of(draw_gradients("common", many_rows)).to(backend.device)
    assert_shortest_of_scaled(gram, po.gapo(gram), 1.0)


def assert_shortest_of_scaled(gram: torch.Tensor, weights: torch.Tensor, power: float) -> None:
    g, w = gram.cpu().double(), weights.cpu().double()
    used = g.diagonal() > 0
    assert bool((w[~used] == 0).all())
    if not bool(used.any()):
        return
    unit = g.diagonal()[used] ** (-power / 2)
    scaled = g[used][:, used] * unit[:, None] * unit
    c = w[used] / unit
    assert bool((c >= 0).all())
    assert abs(float(c.sum()) - 1) <= 8 * len(c) * 2.0**-53 + 2 * unit_roundoff(gram.dtype)
    assert_optimal(scaled, c / c.sum(), unit_roundoff(gram.dtype))


def test_gapo_of_published_values(backend):
    gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64, device=backend.device)
    got = po.gapo(gram).cpu()
    want = 0.5 / gram.diagonal().cpu().sqrt()  # two unit gradients balance
    torch.testing.assert_close(got, want, rtol=8 * 2.0**-53, atol=0)
    torch.testing.assert_close(po.gapo(gram, p=0), po.min_norm(gram), rtol=1e-15, atol=0)


@settings(max_examples=20)
@given(st.lists(st.integers(-10, 10), min_size=2, max_size=6), st.lists(
    st.sampled_from([0.1, 0.2, 0.3, 0.7]), min_size=1, max_size=4
))  # fmt: skip
@example([-3, -7, 1, 10], [0.3, 0.1, 0.2])
def test_gapo_of_parallel_gradients_that_oppose_each_other_is_stationary(backend, factors, row):
    """Rows of one direction are equal to rounding once they are scaled, of which none is lost."""
    assume(min(factors) < 0 < max(factors))
    rows = torch.tensor(factors).double()[:, None] * torch.tensor(row).double()
    rows = rows[torch.tensor(factors) != 0].to(backend.device)
    weights = po.gapo(po.gram(list(rows)))
    size = float((weights[:, None] * rows).norm(dim=1).sum())
    # A weight is in error by n + 4 roundings (a root, a power, two divisions, a sum of n), what
    # rows equal to rounding pass to each other by 4, the sum here by n: at most 16 n for n >= 1.
    assert float((weights @ rows).norm()) <= 16 * len(rows) * 2.0**-53 * size


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gapo_scales_as_its_formula_says(backend, scale):
    gram = torch.tensor([[2.0, -1.0], [-1.0, 5.0]], dtype=torch.float64, device=backend.device)
    for power in (0.0, 1.0, 1.5):
        got, base = po.gapo(gram * scale, p=power), po.gapo(gram, p=power)
        torch.testing.assert_close(got, base * scale ** (-power / 2), rtol=1e-14, atol=0)


def test_gapo_of_what_is_degenerate(backend):
    zero = torch.zeros((3, 3), dtype=torch.float64, device=backend.device)
    assert po.gapo(zero).tolist() == [0, 0, 0]
    assert po.gapo(
        torch.diag(zero[0] + torch.tensor([4.0, 0, 1], device=backend.device))
    ).tolist() == [0.25, 0, 0.5]
    assert po.gapo(zero[:1, :1] + 4).tolist() == [0.5]
    zero[0, 1] = zero[1, 0] = torch.nan
    assert bool(po.gapo(zero).isnan().all())
    with pytest.raises(ValueError, match="p must be finite"):
        po.gapo(zero, p=float("nan"))
