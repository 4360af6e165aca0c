"""What a policy writes after prompts that it has never seen, and how that is judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from torch import Tensor

import pama_ops as po

from .language_model import Policy, decode, sample
from .rewards import Reward, vader

# Texts per prompt: the spread within a prompt is most of the noise of a mean reward.
REPEATS = 4
SEED = 20_000


@torch.no_grad()
def evaluate(
    policy: Policy,
    reference: Policy,
    prompts: Tensor,
    tokenizer: Tokenizer,
    rewards: Mapping[str, Reward],
    max_new_tokens: int,
) -> dict[str, object]:
    """Mean rewards, length, VADER's opinion, KL to the reference and the texts themselves."""
    generator = torch.Generator(prompts.device).manual_seed(SEED)
    drawn = sample(policy, prompts.repeat(REPEATS, 1), max_new_tokens, generator)
    texts = decode(tokenizer, drawn)
    logp, ref_logp = (
        model.log_probs(model.hidden(drawn.prompts, drawn.responses), drawn.responses, drawn.mask)
        for model in (policy, reference)
    )
    kl = po.kl_divergence(logp, ref_logp, drawn.mask, estimator="k1").sum(dim=1)
    scores = {name: reward(texts) for name, reward in rewards.items()}
    return {
        "rewards": {name: float(score.mean()) for name, score in scores.items()},
        "rewards_by_prompt": {
            name: score.reshape(REPEATS, -1).mean(axis=0).round(4).tolist()
            for name, score in scores.items()
        },
        "tokens": float(texts.lengths.mean()),
        "vader": float(vader(texts).mean()),
        "kl": kl.mean().item(),
        "distinct": len(set(texts.whole)) / len(texts.whole),
        "texts": [list(pair) for pair in zip(texts.prompts, texts.responses, strict=True)][
            : len(prompts)
        ],
    }
