"""The mistakes that docs/trainers.md names: each made by hand, and what the function does instead.

Also that compiled token functions take batches of any size and length without compiling anew.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import pama_ops as po


def batch(sequences: int = 6, tokens: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Advantages [2, B, T] with ones of either sign, and a ragged mask [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(2, sequences, tokens, generator=generator)
    lengths = 1 + torch.arange(sequences) % tokens
    return advantages, torch.arange(tokens) < lengths[:, None]


def test_padding_in_means_changes_weights_unless_masked() -> None:
    advantages, mask = batch()
    whitened = po.whiten(advantages, mask)
    padded = torch.nn.functional.pad(advantages, (0, 24))
    longer = torch.nn.functional.pad(mask, (0, 24))
    assert torch.equal(po.whiten(padded, longer)[..., :8], whitened)
    step = po.pama_advantages(whitened, mask, reduction="batch")
    again = po.pama_advantages(po.whiten(padded, longer), longer, reduction="batch")
    assert torch.equal(step.weights, again.weights)
    mistaken = po.whiten(padded * longer)  # zeros of the padding counted as advantages
    # 21 of 192 positions are tokens: their deviation, 1 if masked, is near √(192 / 21) = 3.
    assert mistaken[..., :8][:, mask].std() > 2 * whitened[:, mask].std()


def test_micro_batches_need_the_count_of_the_whole_batch() -> None:
    advantages, mask = batch()
    logp = -torch.rand(advantages.shape[1:])
    advantage = po.pama_advantages(po.whiten(advantages, mask), mask).advantages
    whole = po.ppo_loss(logp, logp, advantage, mask).loss
    parts = [slice(0, 2), slice(2, 6)]

    def loss(k: slice, normalizer: Tensor | None) -> Tensor:
        return po.ppo_loss(logp[k], logp[k], advantage[k], mask[k], normalizer=normalizer).loss

    torch.testing.assert_close(sum(loss(k, mask.sum()) for k in parts), whole)
    mistaken = sum(loss(k, None) for k in parts) / len(parts)  # each by its own count
    assert abs(mistaken - whole) > 0.05 * abs(whole)


def test_weights_of_the_whole_batch_are_not_those_of_its_micro_batches() -> None:
    advantages, mask = batch()
    whitened = po.whiten(advantages, mask)
    whole = po.pama_advantages(whitened, mask, reduction="batch").weights
    apart = [
        po.pama_advantages(whitened[:, k], mask[k], reduction="batch").weights
        for k in (slice(0, 2), slice(2, 6))
    ]
    assert not torch.allclose(torch.stack(apart).mean(0), whole, rtol=1e-2)


def test_whitening_parts_apart_takes_their_difference_away() -> None:
    advantages, mask = batch(sequences=8)
    advantages[:, 4:] += 3  # one rank's sequences went better
    together = po.whiten(advantages, mask)
    apart = torch.cat([po.whiten(advantages[:, k], mask[k]) for k in (slice(4), slice(4, 8))], 1)
    better, worse = mask.clone(), mask.clone()
    better[:4], worse[4:] = False, False
    assert (together[:, better].mean(1) > together[:, worse].mean(1) + 1).all()
    for part in (better, worse):  # zero to the rounding of each entry
        eps = torch.finfo(torch.float32).eps
        assert (apart[:, part].mean(1).abs() <= eps * apart.abs().max()).all()


def test_compiled_token_functions_take_any_batch_without_compiling_anew() -> None:
    def step(advantages: Tensor, mask: Tensor, logp: Tensor) -> Tensor:
        whitened = po.whiten(advantages, mask)
        combined = po.pama_advantages(whitened, mask, reduction="gram").advantages
        return po.ppo_loss(logp, logp, combined, mask).loss

    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=count)
    compiled(*batch(4, 7), -torch.rand(4, 7))
    first = count.frame_count
    for sequences, tokens in ((6, 8), (5, 9), (12, 31), (3, 64)):
        advantages, mask = batch(sequences, tokens)
        logp = -torch.rand(sequences, tokens)
        assert torch.equal(compiled(advantages, mask, logp), step(advantages, mask, logp))
    assert count.frame_count == first


@pytest.mark.parametrize("weighting", [po.min_norm, po.upgrad])
def test_gram_to_combine_compiles_whole(weighting: object) -> None:
    def step(grads: list[Tensor]) -> Tensor:
        return po.combine(grads, weighting(po.gram(grads)))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    grads = [torch.randn(100, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    for ours, eager in zip(compiled(grads), step(grads), strict=True):
        assert torch.equal(ours, eager)
