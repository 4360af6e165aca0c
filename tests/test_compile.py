"""torch.compile of whole steps: one graph, and no more graphs for other batches."""

from __future__ import annotations

import functools

import pytest
import torch
from strategies import normal
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import pama_ops as po


def batch(sequences: int, tokens: int) -> tuple[Tensor, ...]:
    """Rewards and values [2, B, T], a ragged mask [B, T] and two log-probabilities."""
    generator = torch.Generator().manual_seed(tokens)
    rewards, values = normal(2, 2, sequences, tokens, generator=generator)
    mask = torch.arange(tokens) < (1 + torch.arange(sequences) % tokens)[:, None]
    logp, old = -torch.rand(2, sequences, tokens, generator=generator)
    return rewards, values, mask, logp.requires_grad_(), old


def token_step(
    rewards: Tensor, values: Tensor, mask: Tensor, logp: Tensor, old: Tensor, reduction: str
) -> Tensor:
    """From rewards to the policy's loss."""
    advantages = po.whiten(po.gae(rewards, values, mask).advantages, mask)
    step = po.pama_advantages(advantages, mask, logp.detach() - old, reduction=reduction)
    return po.ppo_loss(logp, old, step.advantages, mask).loss


def gradient_step(grads: list[Tensor], weighting: po.backward.Weighting) -> list[Tensor]:
    combined = po.combine(grads, weighting(po.gram(grads)))
    assert isinstance(combined, Tensor)
    return [combined]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("reduction", ["token", "sequence", "gram", "batch"])
def test_a_token_step_takes_any_batch_without_compiling_anew(
    reduction: str, dynamic: bool | None
) -> None:
    """Left to itself torch compiles the first shape, and then once more for all others."""
    torch._dynamo.reset()
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(token_step, fullgraph=True, dynamic=dynamic, backend=count)
    counts = []
    for sequences, tokens in ((4, 7), (6, 8), (5, 9), (12, 31), (3, 64)):
        slopes = []
        args = batch(sequences, tokens)
        for function in (compiled, token_step):
            loss = function(*args, reduction)
            slopes.append(torch.autograd.grad(loss, args[3])[0])
        assert torch.equal(*slopes)
        counts.append(count.frame_count)
    assert counts[1:] == 4 * counts[1:2]
    assert counts[1] == counts[0] + (0 if dynamic else 1)


def rows() -> list[Tensor]:
    return [normal(100, generator=torch.Generator().manual_seed(k)) for k in range(3)]


@pytest.mark.parametrize("weighting", [po.min_norm, po.upgrad])
def test_gram_to_combine_compiles_whole(weighting: po.backward.Weighting) -> None:
    compiled = torch.compile(gradient_step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rows(), weighting)[0], gradient_step(rows(), weighting)[0])


def test_inductor_compiles_both_spaces_whole() -> None:
    def both(args: tuple[Tensor, ...], grads: list[Tensor]) -> tuple[Tensor, Tensor]:
        return token_step(*args, "gram"), gradient_step(grads, po.min_norm)[0]

    compiled = torch.compile(both, fullgraph=True)
    args = batch(6, 8)
    (ours, combined), (loss, want) = compiled(args, rows()), both(args, rows())
    assert torch.equal(combined, want)
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(*(torch.autograd.grad(x, args[3])[0] for x in (ours, loss)))


def test_what_writes_and_what_checks_compiles_whole():
    x, y = torch.arange(5.0), torch.ones(5)
    weights, out, total = torch.tensor([0.5, 2.0]), torch.zeros(5), torch.zeros(2, 2).double()

    def step(x, y, out, total):
        po.combine([x, y], weights, out=out)
        po.gram_accumulate(total, [x, y])
        g = po.gram([x, y], check_finite=True)
        return po.min_norm(g, ignore_zero=True, check_values=True)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = compiled(x, y, out, total)
    assert torch.equal(out, po.combine([x, y], weights))
    assert torch.equal(total, po.gram([x, y]))
    assert torch.equal(got, po.min_norm(total))
    with pytest.raises(ValueError, match="grads must be finite"):
        compiled(x, y / 0, out, total)
    saved = 2 * torch.ones(5).requires_grad_()
    h = (saved**2).sum()
    compiled(x, y, saved.detach(), total)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.backward()


def test_out_of_any_size_and_layout_compiles_whole():
    @functools.partial(torch.compile, fullgraph=True, dynamic=True, backend="aot_eager")
    def step(grads, weights, out):
        po.combine(grads, weights, out=out)

    weights = torch.tensor([0.5, 2.0])
    for size in 4, 6, 9:
        grads = [torch.ones(size, 3), torch.ones(size, 3)]
        holes, turned = torch.zeros(size, 6), torch.zeros(3, size)
        step(grads, weights, holes[:, ::2])
        step(grads, weights, turned.t())
        assert bool((turned == 2.5).all())
        assert holes.unique(dim=1).tolist() == [[0.0, 2.5]] * size
        with pytest.raises(ValueError, match=r"out\[0\] must have memory for each"):
            step(grads, weights, torch.zeros(3 * size + 10).as_strided((size, 3), (3, 6)))
