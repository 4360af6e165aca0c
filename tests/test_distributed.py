"""Process groups in token space: the statistics of two ranks' tokens are those of the batch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed
from strategies import normal

import pama_ops as po


def shard(rank: int, first: int, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Rank 0 holds the first entries of a dimension, rank 1 the others."""
    return x.narrow(dim, 0, first) if rank == 0 else x.narrow(dim, first, x.shape[dim] - first)


# --- whiten -------------------------------------------------------------------------------------


def whiten_shard(rank: int, first: int, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    group = torch.distributed.group.WORLD
    return po.whiten(shard(rank, first, x, 1), shard(rank, first, mask, 0), group=group)


@pytest.mark.parametrize("first", [2, 5, 0])
def test_whiten_over_ranks_is_that_of_the_whole_batch(ranks, first):
    """Also where a rank holds no sequence."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + normal(2, 5, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 40, generator=generator) < 0.6
    got = torch.cat(ranks(whiten_shard, first, x, mask), 1)
    torch.testing.assert_close(got, po.whiten(x, mask), rtol=1e-13, atol=1e-13)


def whiten_twin(rank: int, x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a collective that torch deprecates, say
        return po.whiten(x, group=torch.distributed.group.WORLD)


def test_whiten_gives_ranks_the_same_bits(ranks):
    x = normal(2, 3, 40, generator=torch.Generator().manual_seed(1))
    ours, theirs = ranks(whiten_twin, x)
    assert torch.equal(ours, theirs)


# --- defaults of torch ---------------------------------------------------------------------------


def with_groups(rank: int) -> list[torch.Tensor]:
    """What takes a group, on numbers of this rank."""
    group = torch.distributed.group.WORLD
    x = (torch.arange(24, device="cpu", dtype=torch.float32) * (3 + rank) % 11 - 4).view(2, 3, 4)
    results = [po.whiten(x, group=group)]
    preference = x.new_tensor([[1, 0, 2], [1, 3, 0]])
    for reduction in ("token", "sequence", "gram", "batch"):
        for p in (None, [1, 3], preference):
            step = po.pama_advantages(x, reduction=reduction, preference=p, group=group)
            results += [part for part in step if part is not None]
    results += [po.gram(list(x), group=group), po.gram(list(x), group=group, check_finite=True)]
    parameter = x[0].clone().requires_grad_()
    losses = [(parameter * y).sum() for y in x]
    results += [po.pareto_backward(losses, [parameter], group=group), parameter.grad]
    parameter.grad = None
    losses = [(parameter * y).sum() for y in x]
    return [*results, po.pareto_backward(losses, [parameter]), parameter.grad]


def defaults_change_nothing(rank: int) -> list[bool]:
    want, got = with_groups(rank), []
    with torch.device("meta"):
        got.append(with_groups(rank))
    torch.set_default_device("meta")
    try:
        got.append(with_groups(rank))
    finally:
        torch.set_default_device(None)
    for dtype in (torch.float16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            got.append(with_groups(rank))
        finally:
            torch.set_default_dtype(torch.float32)
    return [
        all(
            x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)
            for x, y in zip(results, want, strict=True)
        )
        for results in got
    ]


def test_defaults_of_torch_change_no_bit_of_a_group(ranks):
    assert ranks(defaults_change_nothing) == [[True] * 4] * 2


# --- pama_advantages ----------------------------------------------------------------------------


def pama_shard(
    rank: int, first: int, x: torch.Tensor, mask: torch.Tensor, reduction: str
) -> tuple[torch.Tensor, ...]:
    x, mask = shard(rank, first, x, 1), shard(rank, first, mask, 0)
    group = torch.distributed.group.WORLD
    step = po.pama_advantages(x, mask, reduction=reduction, group=group)
    return step.advantages, step.weights, step.active


@pytest.mark.parametrize("reduction", ["token", "sequence", "gram", "batch"])
@pytest.mark.parametrize("first", [2, 0])
def test_pama_over_ranks_is_that_of_the_whole_batch(ranks, first, reduction):
    """An objective that is active on one rank alone is active on all, and in one problem."""
    generator = torch.Generator().manual_seed(0)
    x = normal(3, 5, 40, generator=generator, dtype=torch.float64)
    x[1, :4] = 0
    mask = torch.rand(5, 40, generator=generator) < 0.6
    whole = po.pama_advantages(x, mask, reduction=reduction)
    parts = ranks(pama_shard, first, x, mask, reduction)
    got = torch.cat([advantages for advantages, _, _ in parts])
    torch.testing.assert_close(got, whole.advantages, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(active, whole.active) for _, _, active in parts)
    if reduction in ("gram", "batch"):
        assert torch.equal(parts[0][1], parts[1][1])


def pama_of_four(rank: int, x: torch.Tensor, mask: torch.Tensor, reduction: str) -> Any:
    """Sequences in parts of 2, 0, 3 and 1."""
    k = [slice(0, 2), slice(2, 2), slice(2, 5), slice(5, 6)][rank]
    group = torch.distributed.group.WORLD
    whitened = po.whiten(x[:, k], mask[k], group=group)
    step = po.pama_advantages(whitened, mask[k], reduction=reduction, group=group)
    return step.advantages, step.weights


@pytest.mark.parametrize("reduction", ["gram", "batch"])
def test_four_uneven_ranks_have_the_weights_of_the_whole_batch(four_ranks, reduction):
    generator = torch.Generator().manual_seed(2)
    x = normal(3, 6, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 40, generator=generator) < 0.6
    whole = po.pama_advantages(po.whiten(x, mask), mask, reduction=reduction)
    parts = four_ranks(pama_of_four, x, mask, reduction)
    got = torch.cat([advantages for advantages, _ in parts])
    torch.testing.assert_close(got, whole.advantages, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(weights, parts[0][1]) for _, weights in parts)


def compiled_with_group(rank: int) -> bool:
    def step(x: torch.Tensor) -> torch.Tensor:
        group = torch.distributed.group.WORLD
        return po.pama_advantages(po.whiten(x, group=group), reduction="gram", group=group)[0]

    x = normal(2, 3, 5, generator=torch.Generator().manual_seed(rank))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    return torch.equal(compiled(x), step(x))


def test_the_token_space_of_a_group_compiles_whole(ranks):
    assert ranks(compiled_with_group) == [True, True]


def dropped_on_ranks(rank: int, reduction: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, preference = with_preference()
    k = slice(4 * rank, 4 * rank + 4)
    group = torch.distributed.group.WORLD
    step = po.pama_advantages(
        x[:, k], reduction=reduction, preference=preference[:, k], group=group
    )
    return step.advantages, step.weights, step.active


def with_preference() -> tuple[torch.Tensor, torch.Tensor]:
    """Objective 2 counts in no sequence of the first rank; a sequence has none at all."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-8, 9, (3, 8, 4), generator=generator).double()
    preference = torch.randint(3, (3, 8), generator=generator).double()
    preference[2, :4] = 0
    preference[:, 6] = 0
    return x, preference


@pytest.mark.parametrize("reduction", po.advantages.REDUCTIONS)
def test_preferences_of_ranks_sequences_are_those_of_one_batch(ranks, reduction):
    """Integers add to the same bits in any order."""
    x, preference = with_preference()
    whole = po.pama_advantages(x, reduction=reduction, preference=preference)
    ours, theirs = ranks(dropped_on_ranks, reduction)
    assert torch.equal(torch.cat([ours[0], theirs[0]]), whole.advantages)
    assert torch.equal(torch.cat([ours[1], theirs[1]], dim=1), whole.weights)
    assert torch.equal(ours[2], whole.active)
    assert torch.equal(theirs[2], whole.active)


# --- disagreement -------------------------------------------------------------------------------


def message(function: Any, *arguments: Any, **options: Any) -> str:
    try:
        function(*arguments, **options)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def disagreements(rank: int) -> dict[str, str]:
    """Calls that must fail on both ranks; the group must serve on after each."""
    group = torch.distributed.group.WORLD
    x = torch.ones(3, 2, 4)
    twos = torch.full((2, 4), 1 + rank)

    def pama(one: dict[str, Any], other: dict[str, Any], data: torch.Tensor = x) -> str:
        return message(po.pama_advantages, data, group=group, **(other if rank else one))

    said = {
        "objectives": pama({}, {}, x[: 2 + rank]),
        "reduction": pama({"reduction": "gram"}, {"reduction": "batch"}),
        "clip": pama({}, {"clip": (0.2, 0.3)}),
        "noon": pama({}, {"noon": False}),
        "ratio_weighted": pama({}, {"ratio_weighted": True}),
        "preference": pama({"preference": [1, 2, 3]}, {"preference": torch.tensor([1.0, 2, 4])}),
        "its form": pama({"preference": [1, 2, 3]}, {"preference": torch.ones(3, 2)}),
        "a preference is refused": pama(
            {"preference": torch.ones(3, 2)}, {"preference": -torch.ones(3, 2)}
        ),
        "one refuses": pama({}, {"mask": torch.ones(2, 5)}),
        "a kernel refuses": pama({}, {"mask": twos}),
        "whitened": message(po.whiten, x[: 2 + rank], group=group),
        "eps": message(po.whiten, x, eps=(1 + rank) * 1e-8, group=group),
        "whiten refuses": message(po.whiten, x, twos, group=group),
        "function": message((po.whiten, po.pama_advantages)[rank], x, group=group),
    }
    assert bool(po.pama_advantages(x, group=group).weights.isfinite().all())
    return said


def test_a_disagreement_is_an_error_on_every_rank_that_names_it(ranks):
    ours, theirs = ranks(disagreements)
    refused = {"a preference is refused", "one refuses", "a kernel refuses", "whiten refuses"}
    assert all(ours[case] == theirs[case] for case in ours.keys() - refused)
    for case, got in {
        "objectives": "the number of objectives, got 2 on ranks [0], 3 on ranks [1]",
        "reduction": "reduction, got gram on ranks [0], batch on ranks [1]",
        "clip": "clip, got (0.2, 0.2) on ranks [0], (0.2, 0.3) on ranks [1]",
        "noon": "noon, got True on ranks [0], False on ranks [1]",
        "ratio_weighted": "ratio_weighted, got False on ranks [0], True on ranks [1]",
        "preference": "preference, got [1.0, 2.0, 3.0] on ranks [0], [1.0, 2.0, 4.0] on ranks [1]",
        "its form": (
            "preference, got [1.0, 2.0, 3.0] on ranks [0], one for each sequence on ranks [1]"
        ),
        "whitened": "the number of objectives, got 2 on ranks [0], 3 on ranks [1]",
        "eps": "eps, got 1e-08 on ranks [0], 2e-08 on ranks [1]",
        "function": "the function, got whiten on ranks [0], pama_advantages on ranks [1]",
    }.items():
        assert ours[case] == f"ValueError: group must have ranks that agree in {got}"
    for case in refused:
        assert theirs[case].startswith(("ValueError: mask must", "ValueError: preference must"))
        assert ours[case].endswith(f"but ranks [1] raise {theirs[case]}")


def collectives(rank: int) -> list[list[int]]:
    """Numbers in each collective that `pama_advantages` makes."""
    sizes: list[list[int]] = []
    gather = torch.distributed.all_gather

    def counted(rows: Any, x: torch.Tensor, **options: Any) -> None:
        sizes.append([x.numel(), x.element_size()])
        gather(rows, x, **options)

    torch.distributed.all_gather = counted
    try:
        x = torch.ones(3, 2, 4)
        po.pama_advantages(x, reduction="gram", group=torch.distributed.group.WORLD)
    finally:
        torch.distributed.all_gather = gather
    return sizes


def test_what_travels_is_a_header_of_two_numbers_and_the_statistics(ranks):
    assert ranks(collectives) == 2 * [[[2, 8], [3 + 3 * 3, 8]]]
