"""The mistakes that docs/trainers.md names: each made by hand, and what is right instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from strategies import normal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pama_ops as po

Ranks = Callable[..., list[Any]]


def batch(sequences: int = 6, tokens: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Advantages [2, B, T] with ones of either sign, and a ragged mask [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    advantages = normal(2, sequences, tokens, generator=generator)
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


def test_zeros_of_a_flat_group_silence_the_others_unless_they_are_dropped() -> None:
    rewards = torch.tensor([[0.0, 1, 0, 1], [1, 1, 1, 1]])
    advantages, informative = po.group_normalize(rewards, 4, return_informative=True)
    by_token, preference = advantages.unsqueeze(-1), informative.float()
    step = po.pama_advantages(by_token, reduction="sequence", preference=preference)
    assert torch.equal(step.advantages[:, 0], advantages[0].clamp(min=0))
    one = torch.tensor([[0.0, 1, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0, 0, 1]])
    mistaken = po.pama_advantages(po.group_normalize(one, 4).unsqueeze(-1), reduction="sequence")
    assert not mistaken.advantages[:4].any()  # the second group shows format active


def whiten_on_two_ranks(rank: int, with_group: bool) -> tuple[Tensor, Tensor]:
    """This rank's half of a batch whose second half went better, whitened and combined."""
    group = torch.distributed.group.WORLD if with_group else None
    x, mask = (y.chunk(2, -2)[rank] for y in better_second_half())
    whitened = po.whiten(x, mask, group=group)
    step = po.pama_advantages(whitened, mask, reduction="batch", noon=False, group=group)
    return whitened, step.weights


def better_second_half() -> tuple[Tensor, Tensor]:
    advantages, mask = batch(sequences=8)
    advantages[:, 4:] += torch.tensor([3.0, 1.0])[:, None, None]
    return advantages, mask


def test_whitening_by_rank_takes_the_difference_of_ranks_away(ranks: Ranks) -> None:
    advantages, mask = better_second_half()
    whole = po.whiten(advantages, mask)
    weights = po.pama_advantages(whole, mask, reduction="batch", noon=False).weights
    together, apart = ranks(whiten_on_two_ranks, True), ranks(whiten_on_two_ranks, False)
    torch.testing.assert_close(torch.cat([x for x, _ in together], 1), whole)
    assert torch.equal(together[0][1], together[1][1])
    torch.testing.assert_close(together[0][1], weights)
    eps = torch.finfo(torch.float32).eps
    parts = mask.chunk(2)
    means = [x[:, part].mean(1) for (x, _), part in zip(together, parts, strict=True)]
    assert (means[1] > means[0] + 0.2).all()
    for (x, _), part in zip(apart, parts, strict=True):  # zero to the rounding of each entry
        assert (x[:, part].double().mean(1).abs() <= eps * x.abs().max()).all()
    assert not torch.equal(apart[0][1], apart[1][1])  # and ranks weight by their own


def policy() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def policy_loss(net: nn.Module, k: slice, normalizer: Tensor | None) -> Tensor:
    """The PPO loss of some sequences of a batch."""
    x = normal(6, 8, 4, generator=torch.Generator().manual_seed(1))
    advantages, mask = batch()
    combined = po.pama_advantages(po.whiten(advantages, mask), mask).advantages
    logp = nn.functional.logsigmoid(net(x[k])).squeeze(-1)
    part = combined[k], mask[k]
    return po.ppo_loss(logp, logp.detach(), *part, normalizer=normalizer).loss


def gradient_by_ddp(rank: int, scale: int, normalized: bool) -> Tensor:
    """Two sequences on one rank and four on the other, which have 3 and 18 tokens."""
    net = DistributedDataParallel(policy())
    count = batch()[1].sum() if normalized else None
    loss = policy_loss(net, (slice(0, 2), slice(2, 6))[rank], count)
    (scale * loss).backward()
    return torch.cat([x.grad.flatten() for x in net.parameters()])


def test_a_loss_over_all_ranks_is_scaled_by_their_number_under_ddp(ranks: Ranks) -> None:
    net = policy()
    policy_loss(net, slice(0, 6), None).backward()
    whole = torch.cat([x.grad.flatten() for x in net.parameters()])
    for got in ranks(gradient_by_ddp, 2, True):
        torch.testing.assert_close(got, whole)
    for mistaken in ranks(gradient_by_ddp, 1, True):  # DDP's mean over ranks once more
        torch.testing.assert_close(mistaken, whole / 2)
    for mistaken in ranks(gradient_by_ddp, 1, False):  # each rank by its own count
        assert (mistaken - whole).norm() > 0.05 * whole.norm()
