"""aligned_mtl, imtl_g and config: held to what defines them on the gradients themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import exactly
import mpmath as mp
import numpy as np
import pytest
import torch
from properties import unit_roundoff
from strategies import DTYPES, GRADIENT_FAMILIES, gram_of
from strategies import draw_gradients as draw
from strategies import matrix_on as on

import pama_ops as po

FUNCTIONS = [po.aligned_mtl, po.imtl_g, po.config]


def test_spectral_weightings_of_published_values(backend):
    """TorchJD's test values for J = [[-4, 1, 1], [6, 1, 1]]; its ConFIG's from the same matrix."""
    gram = on(backend, [18, -22], [-22, 38])
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(po.aligned_mtl(gram), on(backend, 0.5591, 0.4083), **close)
    torch.testing.assert_close(po.imtl_g(gram), on(backend, 0.5923, 0.4077), **close)
    x = on(backend, [-4, 1, 1], [6, 1, 1]).T @ po.config(gram)
    torch.testing.assert_close(x, on(backend, 0.1588, 2.0706, 2.0706), **close)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize(
    "family", ["gaussian", "common", "rank-deficient", "duplicated", "zero rows", "condition 1e6"]
)
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_aligned_mtl_is_the_preferred_row_of_the_nearest_orthogonal_system(
    backend, scale, family, n
):
    """Jᵀ w = √σ (U Vᵀ)ᵀ p for J = U S Vᵀ over the numerical range."""
    j = draw(family, n)
    gram = gram_of(j)
    p = torch.arange(1.0, n + 1, dtype=torch.float64)
    p = p / p.sum()
    got = po.aligned_mtl(
        gram.to(backend.device), preference=p.to(backend.device), scale=scale
    ).cpu()
    if not bool(gram.any()):
        assert torch.equal(got, p)
        return
    values, u = exactly.eigen(gram)  # Vᵀ = S⁻¹ Uᵀ J
    kept = values > n * 2.0**-52 * values[-1]
    u, s = u[:, kept], values[kept].sqrt()
    sigma = {"min": s.min(), "median": s.median(), "rmse": (s**2).mean().sqrt()}[scale]
    want = sigma * exactly.times(j.T, exactly.times(u, exactly.times(u.T, p) / s))
    # Eigenvectors turn by the rounding of G over the eigenvalues' distance from 0.
    bound = 64 * n * 2.0**-53 * float((s[-1] / s[0]) ** 2)
    assert float(exactly.norm(exactly.times(j.T, got) - want)) <= bound * float(sigma)
    # And the weights have no part in the null space.
    null = got - exactly.times(u, exactly.times(u.T, got))
    assert float(exactly.norm(null)) <= bound * float(exactly.norm(got))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("family", ["gaussian", "common", "twelve decades", "condition 1e6"])
def test_imtl_g_and_config_project_alike_onto_all_gradients(backend, family, n):
    j = draw(family, n)
    gram = gram_of(j).to(backend.device)
    norm = exactly.norm(j)
    unit = j / norm[:, None]
    bound = 64 * n * 2.0**-53 * exactly.condition(gram_of(unit))
    w = po.imtl_g(gram).cpu()
    assert abs(float(w.sum()) - 1) <= bound * float(w.abs().sum())
    projections = exactly.times(unit, exactly.times(j.T, w))
    size = float((norm * w.abs()).sum())
    assert float(projections.max() - projections.min()) <= bound * size
    w = po.config(gram).cpu()
    x = exactly.times(j.T, w)
    projections = exactly.times(unit, x)
    size = float((norm * w.abs()).sum())
    assert float(projections.max() - projections.min()) <= bound * size
    assert float(projections.min()) > 0
    # The length is the sum of the gradients' projections.
    length = exactly.norm(x)
    assert abs(float(length - exactly.total(exactly.times(j, x)) / length)) <= bound * size


@pytest.mark.parametrize(
    "family", ["rank-deficient", "duplicated", "opposite", "zero rows", "integers"]
)
@pytest.mark.parametrize("n", [2, 3, 6])
def test_imtl_g_and_config_of_dependent_gradients_are_their_pseudoinverses(backend, family, n):
    j = draw(family, n, 1)
    gram = gram_of(j)
    norm = gram.diagonal().sqrt()
    raw = pseudoinverse_times(gram, norm)
    got = po.imtl_g(gram.to(backend.device)).cpu()
    if float(exactly.norm(exactly.times(gram, raw))) < 1e-6 * float(exactly.norm(norm)):
        assert not bool(got.any())
    elif float(exactly.total(raw).abs()) > 1e-6 * float(exactly.total(raw.abs())):
        torch.testing.assert_close(got, raw / exactly.total(raw), rtol=1e-7, atol=1e-8)
    used = norm > 0
    unit = j[used] / norm[used, None]
    # ConFIG as published: x = pinv(unit gradients) 1, and pinv(A) = Aᵀ (A Aᵀ)⁺.
    ones = torch.ones(len(unit), dtype=torch.float64)
    x = exactly.times(unit.T, pseudoinverse_times(gram_of(unit), ones))
    got = exactly.times(j.T, po.config(gram.to(backend.device)).cpu())
    if float(exactly.norm(x)) > 1e-6:
        x = x / exactly.norm(x)
        want = exactly.total(exactly.times(j, x)) * x
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    else:
        assert float(exactly.norm(got)) <= 1e-7


def pseudoinverse_times(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if not len(g):
        return x
    values, vectors = exactly.eigen(g)
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return exactly.times(vectors, exactly.times(vectors.T, x) / values)


class Spectrum(NamedTuple):
    """The eigenpairs that a cut may keep, to 50 digits, and how far rounding may turn them."""

    values: np.ndarray
    vectors: np.ndarray
    turn: float

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return self.vectors @ ((self.vectors.T @ x) / self.values)


def spectra(g: np.ndarray, cut: float) -> Iterator[Spectrum]:
    """Of each rank that the cut may give.

    float64 moves eigenvalues by 64 n u of the largest. Cholesky with pivoting stops short of a rest
    of the size of what G lacks to be positive semidefinite, which rounding to float32 took from it.
    """
    n = len(g)
    with mp.workdps(50):
        values, vectors = mp.eigsy(mp.matrix(g.tolist()))
        values = np.array(list(values))[::-1]
        vectors = np.array(vectors.tolist())[:, ::-1]
        noise = 64 * n * 2.0**-53 + 4 * n * max(-float(values[-1] / values[0]), 0.0)
        for rank in range(1, n + 1):
            dropped = max(values[rank], 0) if rank < n else 0
            if values[rank - 1] <= max(cut - noise, 0) * values[0] or values[rank - 1] <= dropped:
                continue
            if dropped <= (cut + noise) * values[0]:
                turn = noise * float(values[0] / (values[rank - 1] - dropped))
                yield Spectrum(values[:rank], vectors[:, :rank], turn)


Expected = list[tuple[np.ndarray, np.ndarray]]  # weights and their bounds


def exact_aligned_mtl(g: np.ndarray, cut: float) -> Expected:
    """√σ V Λ^(−½) Vᵀ p: as p turns with V, by the largest factor."""
    n = len(g)
    found = []
    for s in spectra(g, cut):
        factors = (s.values[-1] / s.values) ** 0.5
        want = s.vectors @ (factors * (s.vectors.T @ np.full(n, mp.mpf(1) / n)))
        found.append((want, np.full(n, s.turn / n**0.5)))
    return found


def exact_config(g: np.ndarray, cut: float) -> Expected:
    """w_i = L v_i / (‖g_i‖ ‖x‖²), v = Ĝ⁺ 1, ‖x‖² = 1ᵀ Ĝ Ĝ⁺ 1, L = Σ ‖g_i‖ (Ĝ Ĝ⁺ 1)_i."""
    unit, norm = unit_gram(g)
    n = len(g)
    found = []
    for s in spectra(unit, cut):
        v = s.inverse(np.ones(n))
        cosine = s.vectors @ s.vectors.sum(0)
        square, length, size = (v * cosine).sum(), (norm * cosine).sum(), (v**2).sum() ** 0.5
        if max(abs(cosine)) <= cut + s.turn:  # x = 0, to rounding
            found.append((np.zeros(n), np.full(n, s.turn)))
            continue
        off = abs(length) + norm.sum() * n**0.5 + abs(length) * size * n**0.5 / square
        found.append((length * v / norm / square, s.turn * off * size / square / norm))
    return found


def exact_imtl_g(g: np.ndarray, cut: float) -> Expected:
    """w ∝ D^(−½) Ĝ⁻¹ 1; where Ĝ is singular, G⁺ √diag G, of gradients made unit by Ĝ's range."""
    unit, norm = unit_gram(g)
    n = len(g)
    found = []
    for s in spectra(unit, cut):
        spread = mp.mpf(1)
        if len(s.values) == n:
            z = s.inverse(np.ones(n)) / norm
        else:
            basis = mp.qr(mp.matrix((norm[:, None] * s.vectors).tolist()), mode="skinny")[0]
            basis = np.array(basis.tolist())
            d = basis @ (basis.T @ norm)
            z = basis @ (basis.T @ (s.inverse(d / norm) / norm))
            spread = (norm.max() / norm.min()) ** 2
            if max(abs(d)) <= (cut + s.turn * spread) * max(norm):
                found.append((np.zeros(n), np.full(n, np.inf)))
                continue
        off = s.turn * spread * ((z * norm) ** 2).sum() ** 0.5 / norm
        total, rounding = z.sum(), off.sum()
        if abs(total) <= cut * abs(z).sum() + 2 * rounding:  # 0 to rounding
            found.append((np.zeros(n), np.full(n, np.inf)))
            continue
        found.append((z / total, 2 * (off + abs(z / total) * rounding) / abs(total)))
    return found


def unit_gram(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norm = np.array([mp.sqrt(x) for x in np.diag(g)])
    return g / norm[:, None] / norm, norm


@functools.cache
def exact(
    name: str, family: str, n: int, dtype: torch.dtype, rtol: float
) -> tuple[torch.Tensor, Expected]:
    gram = (gram_of(draw(family, n, 2)) / 64).to(dtype)
    used = np.flatnonzero(gram.diagonal().numpy() > 0)
    cut = n * rtol
    with mp.workdps(50):
        g = np.array(mp.matrix(gram.double().tolist()).tolist())
        if name == "aligned_mtl":
            return gram, exact_aligned_mtl(g, cut)
        rows = {"config": exact_config, "imtl_g": exact_imtl_g}[name](g[np.ix_(used, used)], cut)
    wide = []
    for want, bound in rows:
        both = np.zeros((2, n), dtype=object)
        both[:, used] = want, bound
        wide.append((both[0], both[1]))
    return gram, wide


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_spectral_weightings_are_exact_to_rounding_on_every_family(backend, function, family):
    """As what defines them, computed to 50 digits from the Gram matrix as rounded.

    At the eps of float64 rounding may decide a rank; at 1e-10 it decides none, as no family has an
    eigenvalue that near to the cut.
    """
    for n in (2, 5):
        for dtype in DTYPES[:2]:
            for rtol in (1e-10, 2.0**-52) if dtype == torch.float64 else (2.0**-23,):
                gram, expected = exact(function.__name__, family, n, dtype, rtol)
                got = function(gram.to(backend.device), rtol=rtol).cpu().double().numpy()
                assert np.isfinite(got).all()
                u = 2 * unit_roundoff(dtype)
                assert any(
                    (abs(got - want) <= bound + u * abs(want)).all() for want, bound in expected
                ), (n, dtype, rtol, got, expected)


def test_spectral_weightings_of_what_is_degenerate(backend):
    zero = torch.zeros((2, 2), dtype=torch.float64, device=backend.device)
    assert po.aligned_mtl(zero, preference=[1.0, 3.0]).tolist() == [0.25, 0.75]
    assert po.imtl_g(zero).tolist() == [0, 0]
    assert po.config(zero).tolist() == [0, 0]
    opposite = on(backend, [1, -1], [-1, 1])
    assert po.imtl_g(opposite).tolist() == [0, 0]
    assert po.config(opposite).tolist() == [0, 0]
    lone = on(backend, [4, 0], [0, 0])
    assert po.imtl_g(lone).tolist() == [1, 0]
    assert po.config(lone).tolist() == [1, 0]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_spectral_weightings_of_one_objective_are_one(backend, function):
    for x in (3.0, 5e-324, 1e308):
        torch.testing.assert_close(function(on(backend, [x])), on(backend, 1.0), rtol=1e-15, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_spectral_weightings_of_what_is_not_finite_are_nan(backend, function, bad):
    for n, i, k in [(1, 0, 0), (3, 1, 1), (3, 2, 0)]:
        gram = torch.eye(n, dtype=torch.float64, device=backend.device)
        gram[i, k] = gram[k, i] = bad
        assert bool(function(gram).isnan().all())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_spectral_weightings_are_permutation_equivariant(backend, function):
    gram = gram_of(draw("gaussian", 6)).to(backend.device)
    order = torch.tensor([3, 1, 5, 0, 2, 4], device=backend.device)
    want = function(gram)[order]
    bound = 64 * 2.0**-53 * exactly.condition(gram)
    torch.testing.assert_close(function(gram[order][:, order]), want, rtol=0, atol=bound)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_spectral_weightings_of_more_rows_than_lanes(backend, function, many_rows):
    gram = gram_of(draw("gaussian", many_rows)).to(backend.device)
    weights = function(torch.stack([gram, 4 * gram]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-14, atol=0)
    # Of any solver of eigenvalues within n u of the largest, as the condition is below 10.
    want = po.reference.WEIGHTINGS[function.__name__](
        gram, None, [0.0, 1e-14] if function is po.aligned_mtl else [1e-14]
    )
    torch.testing.assert_close(weights[0], want, rtol=1e-11, atol=1e-11)


def test_rank_decisions_obey_rtol(backend):
    gram = on(backend, [1, 1 - 1e-6], [1 - 1e-6, 1])
    for function in FUNCTIONS:
        assert function(gram, rtol=1e-3).shape == (2,)
        with pytest.raises(ValueError, match="rtol must be nonnegative"):
            function(gram, rtol=-1.0)
    # With 1 and −1 as one direction, σ is the other eigenvalue, 2.
    torch.testing.assert_close(po.aligned_mtl(gram, rtol=1e-3), on(backend, 0.5, 0.5))
    with pytest.raises(ValueError, match="scale must be one of 'min', 'median', 'rmse', got 'max'"):
        po.aligned_mtl(gram, scale="max")
