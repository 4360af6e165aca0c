"""Weights from the eigenvectors: aligned_mtl, imtl_g, config."""

from __future__ import annotations

import torch
from torch import Tensor

from pama_ops.reference.weighting import Problem, of_each_matrix, weighting


def _eigenpairs(g: Tensor, cut: float) -> tuple[Tensor, Tensor]:
    """Those whose values are positive, and beyond the share `cut` of the largest."""
    values, vectors = torch.linalg.eigh(g)
    kept = values > max(cut * float(values.amax()), 0.0) if len(g) else values > 0
    return values[kept], vectors[:, kept]


@weighting(1, preference=True)
@of_each_matrix
def aligned_mtl(problem: Problem) -> Tensor:
    g, p, which = problem.gram, problem.preference, problem.options[0]
    values, vectors = _eigenpairs(g, len(g) * problem.rtol)
    if not len(values):
        return p
    least, mean = values.amin(), values.mean()
    sigma = least if which == 0 else mean if which == 2 else values.median()
    return vectors @ ((sigma / values).sqrt() * (vectors.T @ p))


def _unit_gram(g: Tensor, cut: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that are not 0, their norms, and the kept eigenpairs of their unit Gram matrix."""
    s = torch.nonzero(g.diagonal() > 0).flatten()
    norm = g.diagonal()[s].sqrt()
    return s, norm, *_eigenpairs(g[s][:, s] / norm[:, None] / norm, cut)


@weighting()
@of_each_matrix
def imtl_g(problem: Problem) -> Tensor:
    g, cut = problem.gram, len(problem.gram) * problem.rtol
    s, norm, values, vectors = _unit_gram(g, cut)
    w = g.new_zeros(len(g))
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


@weighting()
@of_each_matrix
def config(problem: Problem) -> Tensor:
    g, cut = problem.gram, len(problem.gram) * problem.rtol
    s, norm, values, vectors = _unit_gram(g, cut)
    along = vectors.sum(0)
    w = g.new_zeros(len(g))
    cosines = vectors @ along  # Ĝ v
    if len(s) and float(cosines.abs().amax()) > cut:
        w[s] = vectors @ (along / values) / norm * (norm @ cosines) / (along**2 / values).sum()
    return w
