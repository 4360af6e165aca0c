"""Clarabel's answer to a problem, for its caller to judge.

It may be inaccurate, on some processors and not on others, and then cvxpy warns. So no test takes
it for the optimum. It is made feasible, as the point of comparison that ours must not be worse
than, and f(theirs) − f(ours) says how near to it ours is; that must be small, for the comparison to
say anything.
"""

from __future__ import annotations

import warnings
from typing import Any

import exactly
import pytest
import torch
from torch import Tensor

# What the second solver must come within, relative to the problem's size.
NEAR = 1e-6


def answer(variable: Any, objective: Any, constraints: list[Any]) -> Tensor:
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        cvxpy.Problem(objective, constraints).solve(solver=cvxpy.CLARABEL)
    return torch.from_numpy(variable.value).double()


def shortest(j: Tensor, lower: Tensor | None = None) -> Tensor:
    """min ‖Jᵀv‖² over the simplex, or over v >= lower: a feasible v near the optimum.

    Its tolerances are 1e-8, absolute in part, so the longest gradient is brought to a length of
    about 32: of its square they are 1e-11 then, well below NEAR.
    """
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy")
    j = torch.ldexp(j, 5 - torch.frexp(exactly.norm(j).max()).exponent)
    least = torch.zeros(len(j)).double() if lower is None else lower
    v = cvxpy.Variable(len(j))
    constraints = [v >= least.numpy()] + ([cvxpy.sum(v) == 1] if lower is None else [])
    objective = cvxpy.Minimize(cvxpy.sum_squares(j.numpy().T @ v))
    found = torch.maximum(answer(v, objective, constraints), least)
    return found / exactly.total(found) if lower is None else found


def assert_no_longer(j: Tensor, ours: Tensor, theirs: Tensor, slack: float) -> None:
    """x = Jᵀ ours is as short as Jᵀ theirs, and as near to it as the minimum must be.

    Where ours is the minimum, <x, x' − x> >= 0 for each feasible x', so ‖x' − x‖² <= ‖x'‖² − ‖x‖².
    """
    x, other = exactly.times(j.mT, ours), exactly.times(j.mT, theirs)
    apart = other - x
    behind = float(exactly.dot(other, other) - exactly.dot(x, x))
    assert behind >= -slack, behind
    assert float(exactly.dot(apart, apart)) <= behind + slack
    # Its tolerance is of the longest gradient, which may have no weight in the answer.
    length = float(exactly.norm(j).max() * exactly.total(theirs.abs()))
    assert behind <= NEAR * length**2, "the second solver has no answer"
