"""Multi-objective PPO, the loop that token space is for.

What differs between methods is how N advantages become one loss. That is a function of a
`Minibatch`; the three below are all there are, and PAMA's needs nothing but the advantages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

import pama_ops as po

from .language_model import Policy, decode, sample
from .rewards import Reward


@dataclass(frozen=True)
class PPOSettings:
    """One set for every method and objective."""

    iterations: int = 150
    batch: int = 64
    max_new_tokens: int = 28
    temperature: float = 0.8
    epochs: int = 2
    minibatches: int = 2
    kl_penalty: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_coef: float = 0.1
    lr: float = 2e-4
    value_lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    grad_norm: float = 1.0


class Stopwatch:
    """Seconds spent inside ``with`` blocks, those of the GPU included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        self.seconds += self._now() - self._start


class Minibatch(NamedTuple):
    """What a method may look at to make one loss of N advantages."""

    advantages: Tensor  # [N,B,T]
    mask: Tensor  # [B,T]
    old_logp: Tensor  # [B,T]
    logp: Tensor  # [B,T]
    hidden: Tensor  # [B,T,d], the last hidden state that logp was computed from
    clip: float
    choosing: Stopwatch  # runs while a method makes up its mind


Method = Callable[[Minibatch], tuple[Tensor, Tensor]]  # gives the loss and the weights


def fixed_weights(step: Minibatch, *, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """MORLHF: one PPO loss on the advantages added with weights chosen beforehand."""
    with step.choosing:
        chosen = step.advantages.new_tensor(weights)
        advantages = torch.tensordot(chosen, step.advantages, dims=1)
    out = po.ppo_loss(step.logp, step.old_logp, advantages, step.mask, clip=step.clip)
    return out.loss, chosen


def mgda_ub(step: Minibatch) -> tuple[Tensor, Tensor]:
    """MGDA-UB: the min-norm point of the N losses' gradients at the last hidden state."""
    losses = [
        po.ppo_loss(step.logp, step.old_logp, advantages, step.mask, clip=step.clip).loss
        for advantages in step.advantages
    ]
    with step.choosing:
        gradients = torch.stack(
            [torch.autograd.grad(loss, step.hidden, retain_graph=True)[0] for loss in losses]
        ).flatten(1)
        weights = po.min_norm(gradients @ gradients.T)
    return weights @ torch.stack(losses), weights


def pama(
    step: Minibatch,
    *,
    reduction: str = "token",
    noon: bool = True,
    preference: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """PAMA: one PPO loss on the combined advantage, whose weights cost no gradient."""
    with step.choosing:
        combined = po.pama_advantages(
            step.advantages,
            step.mask,
            step.logp.detach() - step.old_logp,
            clip=step.clip,
            reduction=reduction,
            noon=noon,
            preference=None if preference is None else step.advantages.new_tensor(preference),
        )
    out = po.ppo_loss(step.logp, step.old_logp, combined.advantages, step.mask, clip=step.clip)
    return out.loss, combined.weights


def mean_weights(weights: Tensor, mask: Tensor) -> Tensor:
    """[N], whether the weights came as [N], per sequence [N,B] or per token [N,B,T]."""
    if weights.dim() == 1:
        return weights
    per_token = weights if weights.dim() == 3 else weights.unsqueeze(-1)
    return (per_token * mask).sum(dim=(1, 2)) / mask.sum()


def train(
    policy: Policy,
    reference: Policy,
    prompts: Tensor,
    tokenizer: Tokenizer,
    rewards: Sequence[Reward],
    method: Method,
    settings: PPOSettings,
    seed: int,
) -> Iterator[dict[str, object]]:
    """Train ``policy`` in place; yields what happened in each iteration.

    Args:
        policy: with as many value heads as there are rewards.
        reference: the model that the KL penalty holds the policy to.
        prompts: [K,P] token ids to draw from.
    """
    device = prompts.device
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(
        [
            {"params": policy.model.parameters(), "lr": settings.lr},
            {"params": policy.value_heads.parameters(), "lr": settings.value_lr},
        ],
        betas=settings.betas,
    )
    for iteration in range(settings.iterations):
        whole, choosing = Stopwatch(device), Stopwatch(device)
        chosen: list[Tensor] = []
        with whole:
            rows = torch.randint(
                len(prompts), (settings.batch,), device=device, generator=generator
            )
            drawn = sample(policy, prompts[rows], settings.max_new_tokens, generator)
            question, answer, mask = drawn
            texts = decode(tokenizer, drawn)
            scores = torch.stack([torch.as_tensor(reward(texts)) for reward in rewards])

            with torch.no_grad():
                hidden = policy.hidden(question, answer)
                old_values = policy.values(hidden)
                old_logp = policy.log_probs(hidden, answer, mask)
                ref_logp = reference.log_probs(reference.hidden(question, answer), answer, mask)

            kl = po.kl_divergence(old_logp, ref_logp, mask, estimator="k1")
            token_rewards = (-settings.kl_penalty * kl).repeat(len(rewards), 1, 1)
            last = mask.sum(dim=1) - 1
            token_rewards[:, torch.arange(len(last), device=device), last] += scores.to(kl)

            advantages, returns = po.gae(
                token_rewards, old_values, mask, gamma=settings.gamma, lam=settings.lam
            )
            advantages = po.whiten(advantages, mask)

            for _ in range(settings.epochs):
                order = torch.randperm(settings.batch, device=device, generator=generator)
                for b in order.chunk(settings.minibatches):
                    hidden = policy.hidden(question[b], answer[b])
                    logp = policy.log_probs(hidden, answer[b], mask[b])
                    step = Minibatch(
                        advantages=advantages[:, b],
                        mask=mask[b],
                        old_logp=old_logp[b],
                        logp=logp,
                        hidden=hidden,
                        clip=settings.clip,
                        choosing=choosing,
                    )
                    loss, weights = method(step)
                    value_loss = po.value_loss(
                        policy.values(hidden),
                        returns[:, b],
                        mask[b],
                        old_values=old_values[:, b],
                        clip=settings.clip,
                    )
                    optimizer.zero_grad()
                    (loss + settings.value_coef * value_loss.sum()).backward()
                    torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.grad_norm)
                    optimizer.step()
                    chosen.append(mean_weights(weights, mask[b]))

        yield {
            "iteration": iteration + 1,
            "rewards": scores.mean(dim=1).tolist(),
            "tokens": float(texts.lengths.mean()),
            "kl": kl.sum(dim=1).mean().item(),
            "weights": torch.stack(chosen).mean(dim=0).tolist(),
            "seconds": whole.seconds,
            "choosing_seconds": choosing.seconds,
        }
