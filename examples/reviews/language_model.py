"""A small GPT-2: its supervised fine-tuning, and the policy with one value head per objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from .cache import cached
from .data import EOS_ID, Corpus
from .rewards import Texts


@dataclass(frozen=True)
class FineTuning:
    """The size of the model and the schedule it is taught by."""

    steps: int = 1600
    batch: int = 64
    lr: float = 4e-3
    warmup: float = 0.05
    layers: int = 4
    width: int = 128
    heads: int = 4
    seed: int = 0


def batches(sentences: list[np.ndarray], settings: FineTuning) -> Iterator[Tensor]:
    """Endless shuffled batches [batch, T + 1], padded with -100, each ended by the end token.

    Every 50 batches are sorted by length before they are cut, which halves the padding.
    """
    rng = np.random.default_rng(settings.seed)
    size = settings.batch
    while True:
        order = rng.permutation(len(sentences))
        for start in range(0, len(order) - size + 1, 50 * size):
            pool = sorted(order[start : start + 50 * size], key=lambda k: len(sentences[k]))
            cuts = np.arange(0, len(pool) - size + 1, size)
            for cut in rng.permutation(cuts):
                rows = [
                    torch.from_numpy(np.append(sentences[k], EOS_ID).astype(np.int64))
                    for k in pool[cut : cut + size]
                ]
                yield pad_sequence(rows, batch_first=True, padding_value=-100)


def fine_tune(
    corpus: Corpus,
    settings: FineTuning,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> GPT2LMHeadModel:
    """Teach a new GPT-2 the sentences; ``on_step(step, loss)`` is called after every step."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=corpus.tokenizer.get_vocab_size(),
        n_positions=64,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
    )
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=settings.warmup
    )
    data = batches(corpus.sentences, settings)
    for step in range(1, settings.steps + 1):
        tokens = next(data).to(device)
        logits = model(tokens[:, :-1].clamp(min=0)).logits
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    return model.eval()


def model_folder(
    corpus: Corpus,
    corpus_folder: Path,
    settings: FineTuning,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> Path:
    def build(folder: Path) -> None:
        fine_tune(corpus, settings, device, on_step).save_pretrained(folder)

    return cached("model", {**asdict(settings), "corpus": corpus_folder.name}, build)


class Policy(nn.Module):
    """The language model and N linear value heads on its last hidden state."""

    def __init__(self, model: GPT2LMHeadModel, objectives: int, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.value_heads = nn.Linear(model.config.n_embd, objectives)
        nn.init.zeros_(self.value_heads.weight)
        nn.init.zeros_(self.value_heads.bias)

    def hidden(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """The last hidden state [B,T,d] from which each token of the response was chosen."""
        tokens = torch.cat([prompts, responses], dim=1)[:, :-1]
        return self.model.transformer(tokens).last_hidden_state[:, prompts.shape[1] - 1 :]

    def log_probs(self, hidden: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of each token of the response, [B,T], at the sampling temperature."""
        # The vocabulary costs more than the layers here, so padding does not go through it.
        logits = self.model.lm_head(hidden[mask]) / self.temperature
        log_probs = -cross_entropy(logits, responses[mask], reduction="none")
        return torch.zeros_like(responses, dtype=logits.dtype).masked_scatter(mask, log_probs)

    def values(self, hidden: Tensor) -> Tensor:
        """One estimate per objective and token, [N,B,T]."""
        return self.value_heads(hidden).permute(2, 0, 1)


def load_policy(folder: Path, objectives: int, temperature: float, device: torch.device) -> Policy:
    model = GPT2LMHeadModel.from_pretrained(folder)
    return Policy(model, objectives, temperature).to(device).eval()


class Sample(NamedTuple):
    """Prompts and what the policy drew after them."""

    prompts: Tensor  # [B,P]
    responses: Tensor  # [B,T], filled up with the end token
    mask: Tensor  # [B,T], True up to the first end token, which is included


@torch.no_grad()
def sample(
    policy: Policy, prompts: Tensor, max_new_tokens: int, generator: torch.Generator
) -> Sample:
    past = DynamicCache(config=policy.model.config)
    tokens = prompts
    alive = torch.ones(len(prompts), 1, dtype=torch.bool, device=prompts.device)
    responses, mask = [], []
    for _ in range(max_new_tokens):
        logits = policy.model(tokens, past_key_values=past, logits_to_keep=1).logits[:, -1]
        cdf = torch.softmax(logits / policy.temperature, dim=-1).cumsum(dim=-1)
        # One uniform number a row. torch.multinomial draws one per entry of the vocabulary, which
        # took half the time of sampling.
        level = torch.rand(len(prompts), 1, device=prompts.device, generator=generator)
        tokens = torch.searchsorted(cdf, level * cdf[:, -1:], right=True)
        tokens = tokens.clamp(max=cdf.shape[1] - 1).masked_fill(~alive, EOS_ID)
        responses.append(tokens)
        mask.append(alive)
        alive = alive & (tokens != EOS_ID)
        if not alive.any():
            break
    return Sample(prompts, torch.cat(responses, dim=1), torch.cat(mask, dim=1))


def decode(tokenizer: Tokenizer, drawn: Sample) -> Texts:
    prompts = tokenizer.decode_batch(drawn.prompts.tolist())
    responses = tokenizer.decode_batch(drawn.responses.tolist())  # leaves out the end tokens
    lengths = drawn.mask.sum(dim=1).cpu().numpy()
    return Texts([prompt.strip() for prompt in prompts], responses, lengths)
