"""Weights from the eigenvectors: aligned_mtl, imtl_g, config."""

from __future__ import annotations

import torch
from torch import Tensor

from pama_ops.reference.weighting import each, share, tolerance, weighting


@weighting(1, preference=True)
def aligned_mtl(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    p = share(preference, gram.detach().to(torch.float64))
    which, cut = options[0], gram.shape[-1] * tolerance(gram, rtol)

    def solve(g: Tensor, p: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(g)
        kept = values > max(cut * float(values.amax()), 0.0)
        if not bool(kept.any()):
            return p
        values, vectors = values[kept], vectors[:, kept]
        least, mean = values.amin(), values.mean()
        sigma = least if which == 0 else mean if which == 2 else values.median()
        w: Tensor = vectors @ ((sigma / values).sqrt() * (vectors.T @ p))
        return w

    return each(gram, solve, p)


def _unit_gram(g: Tensor, cut: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that are not 0, their norms, and the kept eigenpairs of their unit Gram matrix."""
    s = torch.nonzero(g.diagonal() > 0).flatten()
    norm = g.diagonal()[s].sqrt()
    values, vectors = torch.linalg.eigh(g[s][:, s] / norm[:, None] / norm)
    kept = values > max(cut * float(values.amax()), 0.0) if len(s) else values > 0
    return s, norm, values[kept], vectors[:, kept]


@weighting()
def imtl_g(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    cut = gram.shape[-1] * tolerance(gram, rtol)

    def solve(g: Tensor) -> Tensor:
        s, norm, values, vectors = _unit_gram(g, cut)
        w = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        if len(values) == len(s):
            w[s] = vectors @ (vectors.sum(0) / values) / norm
        else:
            span = torch.linalg.qr(norm[:, None] * vectors).Q  # the range of G
            d = span @ (span.T @ norm)
            if not float(d.abs().amax()) > cut * float(norm.amax()):
                return w
            w[s] = span @ (span.T @ (vectors @ ((vectors.T @ (d / norm)) / values) / norm))
        total = w.sum()
        nothing = not float(total.abs()) > cut * float(w.abs().sum())
        return torch.zeros_like(w) if nothing else w / total

    return each(gram, solve)


@weighting()
def config(
    gram: Tensor, preference: Tensor | None, options: list[float], rtol: float | None = None
) -> Tensor:
    cut = gram.shape[-1] * tolerance(gram, rtol)

    def solve(g: Tensor) -> Tensor:
        s, norm, values, vectors = _unit_gram(g, cut)
        along = vectors.sum(0)
        w = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        cosines = vectors @ along  # Ĝ v
        if not len(s) or not float(cosines.abs().amax()) > cut:
            return w
        w[s] = vectors @ (along / values) / norm * (norm @ cosines) / (along**2 / values).sum()
        return w

    return each(gram, solve)
