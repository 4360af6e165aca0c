"""What users run today in place of `gram`, `combine` and the step from gradients to `.grad`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import Call
from torch import Tensor

Gradients = list[list[Tensor]]
ITERATIONS = 250  # of Frank-Wolfe, as in Sener & Koltun's code


def jacobian(grads: Gradients) -> Tensor:
    """J, [n, d], by one concatenation. (Stacking a concatenation a row, as often seen, copies twice
    and takes 1.4 to 5 times as long.)"""
    return torch.cat([x.flatten() for row in grads for x in row]).view(len(grads), -1)


def cat_gram(grads: Gradients) -> Tensor:
    j = jacobian(grads)
    return j @ j.mT


def pair_dots(grads: Gradients) -> Tensor:
    """A dot product a pair of objectives and parameter."""
    n = len(grads)
    out = torch.empty(n, n)
    for i in range(n):
        for j in range(i, n):
            pairs = zip(grads[i], grads[j], strict=True)
            out[i, j] = out[j, i] = sum(torch.dot(a.flatten(), b.flatten()) for a, b in pairs)
    return out


def foreach_combine(grads: Gradients, weights: list[float]) -> list[Tensor]:
    """torch._foreach_mul and add, as optimizers do: each term is written and read again."""
    total = torch._foreach_mul(grads[0], weights[0])
    for row, w in zip(grads[1:], weights[1:], strict=True):
        torch._foreach_add_(total, torch._foreach_mul(row, w))
    return total


def frank_wolfe(gram: list[list[float]]) -> list[float]:
    """The shortest vector in the hull, by exact line searches toward the steepest vertex."""
    n = len(gram)
    w = [1 / n] * n
    for _ in range(ITERATIONS):
        slope = [sum(g * x for g, x in zip(row, w, strict=True)) for row in gram]
        t = min(range(n), key=slope.__getitem__)
        value = sum(x * s for x, s in zip(w, slope, strict=True))
        away = value - 2 * slope[t] + gram[t][t]
        if value - slope[t] <= 1e-10 * value or away <= 0:
            break
        step = min(1.0, (value - slope[t]) / away)
        w = [(1 - step) * x + step * (i == t) for i, x in enumerate(w)]
    return w


def on_host(grads: Gradients) -> tuple[Call, Callable[[], Tensor]]:
    """cat, J @ J.mT and weights on the host; and from there w @ J, the combined gradient [d]."""

    def weights() -> tuple[Tensor, Tensor]:
        j = jacobian(grads)
        return j, torch.tensor(frank_wolfe((j @ j.mT).float().tolist())).to(j)

    def step() -> Tensor:
        j, w = weights()
        return w @ j

    return weights, step


def parameters_of(grads: Gradients) -> list[Tensor]:
    """Parameters that these are gradients of, whose values nobody reads."""
    return [torch.empty_like(x).requires_grad_() for x in grads[0]]


def on_host_into_grad(grads: Gradients) -> Call:
    """The step of `on_host`, with `.grad` made of views of the combined gradient."""
    parameters = parameters_of(grads)
    sizes = [x.numel() for x in parameters]
    _, combined = on_host(grads)

    def step() -> None:
        for x, grad in zip(parameters, combined().split(sizes), strict=True):
            x.grad = grad.view(x.shape)

    return step


def torchjd_into_grad(grads: Gradients) -> dict[str, Call]:
    """TorchJD's jac_to_grad with its MGDA, from the `.jac` that its backward leaves to `.grad`: as
    it is by default, and without the concatenation. Nothing where TorchJD is not installed."""
    try:
        from torchjd.aggregation import MGDA
        from torchjd.autojac import jac_to_grad
    except ImportError:
        return {}
    parameters, aggregator = parameters_of(grads), MGDA()
    for x, column in zip(parameters, zip(*grads, strict=True), strict=True):
        x.jac = torch.stack(column)  # type: ignore[attr-defined]

    def step(**options: bool) -> None:
        for x in parameters:
            x.grad = None
        jac_to_grad(parameters, aggregator, retain_jac=True, **options)

    return {
        "TorchJD jac_to_grad": step,
        "TorchJD, no cat": lambda: step(optimize_gramian_computation=True),
    }
