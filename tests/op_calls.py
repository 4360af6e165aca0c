"""Calls of every op in _dispatch.SCHEMAS, long enough for several warps, blocks and tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import exactly
import torch
from strategies import normal
from torch import Tensor
from torch.utils._pytree import tree_map_only
from weightings import TABLE

from pama_ops import reference

# Ops that compute nothing: they raise, or pass a tensor on.
WITHOUT_KERNELS = {"constant", "refuse_gradient", "require"}

Call = tuple[str, tuple[Any, ...]]  # the op's name and its arguments


def calls(seed: int = 0) -> list[Call]:
    """Calls on the CPU, with values drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return [*_token_calls(generator), *_gradient_calls(generator), *_weight_calls(generator)]


def run(op: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The results of an op, and its arguments, which it may have written to."""
    mine = tree_map_only(Tensor, torch.Tensor.clone, arguments)
    results = op(*mine)
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, (results, mine))
    return found


def _token_calls(generator: torch.Generator) -> Iterator[Call]:
    """3 objectives of 2600 tokens: in 2 padded sequences, and in 3 ragged ones."""
    padded, ragged = (2, 1300), (2600,)
    for shape, cu in (padded, None), (ragged, torch.tensor([0, 1500, 1501, 2600])):
        x, y = (normal((3, *shape), generator=generator) for _ in range(2))
        p, q, r, a = (normal(shape, generator=generator) for _ in range(4))
        mask = torch.rand(shape, generator=generator) < 0.7
        sequences = shape[0] if cu is None else 3
        last = normal((3, sequences), generator=generator)
        yield "gae", (x, y, mask, last, cu, 0.99, 0.95)
        yield "whiten_moments", (x, mask, cu)
        moments = reference.whiten_moments(x, mask, cu)
        yield "whiten_apply", (x, mask, cu, moments[None], 1e-8)
        large = 1e200 * y.double()  # whose squares are out of range
        yield "whiten_moments", (large, mask, cu)
        both = torch.stack([moments, reference.whiten_moments(large, mask, cu)])
        yield "whiten_apply", (large, mask, cu, both, 1e-8)
        for reduction in reference.TOKEN, reference.SEQUENCE, reference.BATCH, reference.GRAM:
            options = (reduction, 0.2, 0.2, True, False)
            for preference in None, torch.randint(3, (3, sequences), generator=generator).float():
                statistics = reference.pama_statistics(x, mask, p, preference, cu, *options)
                yield "pama_statistics", (x, mask, p, preference, cu, *options)
                if len(statistics) > 3 and preference is not None:
                    statistics = reference.of_own_tokens(statistics, 3, reduction)
                yield "pama_combine", (x, mask, p, preference, cu, statistics, *options)
        for aggregate in (
            reference.TOKEN_MEAN,
            reference.TOKEN_SUM,
            reference.SEQUENCE_MEAN_TOKEN_MEAN,
            reference.SEQUENCE_MEAN_TOKEN_SUM,
        ):
            options = (0.2, 0.2, aggregate, 1.0, 0.1, reference.K3)
            forward = (p, q, a, mask, r, None, cu, *options)
            yield "ppo_loss", forward
            weights = reference.ppo_loss(*forward)[2]
            backward = (weights, p, q, a, mask, r, cu, 0.2, 0.2, 0.1, reference.K3)
            yield "ppo_loss_backward", (torch.ones(()), *backward)
        yield "value_loss", (x, y, mask, y, None, cu, 0.2, 1.0)
        scale = torch.ones((), dtype=torch.float64)
        yield "value_loss_backward", (torch.ones(3), scale, x, y, mask, y, cu, 0.2)
        for estimator in reference.K1, reference.K2, reference.K3:
            yield "kl_divergence", (p, q, mask, estimator)
            yield "kl_divergence_backward", (a, p, q, mask, estimator)
    # Several tiles of a GPU's block, and of a block made for sequences that are short in the mean.
    one_long = torch.cat([torch.zeros(1).long(), torch.arange(2000, 2040)])
    for shape, cu in ((1, 1, 2500), None), ((1, 2039), one_long):
        x, y = (normal(shape, generator=generator) for _ in range(2))
        yield "gae", (x, y, None, None, cu, 0.99, 0.95)
    # More objectives than a GPU's thread holds at once, and more tokens than a tile of them.
    x, p = normal((10, 2, 300), generator=generator), normal((2, 300), generator=generator)
    mask = torch.rand(2, 300, generator=generator) < 0.8
    for reduction in reference.TOKEN, reference.SEQUENCE, reference.GRAM:
        # Without Noon the weights depend on every mean.
        batch, options = (x, mask, p, None, None), (reduction, 0.2, 0.2, False, False)
        yield "pama_statistics", (*batch, *options)
        yield "pama_combine", (*batch, reference.pama_statistics(*batch, *options), *options)
    yield "group_normalize", (normal((3, 70), generator=generator), 14, 1e-8)
    yield "group_informative", (torch.randint(2, (3, 280), generator=generator).double(), 35)


def _gradient_calls(generator: torch.Generator) -> Iterator[Call]:
    shapes = [(90, 70), (7,), (5000,)]
    for n in 2, 3, 10:
        for dtype in torch.float32, torch.bfloat16, torch.float64:
            grads = [
                normal(shape, generator=generator).to(dtype) for _ in range(n) for shape in shapes
            ]
            weights = torch.rand(n, generator=generator)
            yield "gram", (grads, n)
            yield "gram_accumulate", (torch.ones((n, n), dtype=torch.float64), grads)
            if n > 2:  # of two a weight fewer is another good call, which test_ops.py has none of
                yield "combine", (grads, weights)
            yield "combine_into", (grads[: len(shapes)], grads, weights, True)
    yield "refuse_gradient", (torch.ones(3), "gram")


def _weight_calls(generator: torch.Generator) -> Iterator[Call]:
    for n in 3, 10:
        j = normal((4, n, n + 2), generator=generator, dtype=torch.float64)
        gram = exactly.gram(j)
        for weighting in TABLE:
            vector = weighting.vector_for((4,), n, generator)
            yield weighting.name, (gram, vector, list(weighting.options))
        yield "duality_gap", (gram, torch.full((4, n), 1 / n, dtype=torch.float64), [])
        yield "pama_weights", (j[..., 0], None)
