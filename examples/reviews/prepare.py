"""What every run starts from: the device, the corpus, the classifier, the fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import Progress, TextColumn

from .data import CorpusSettings, corpus_folder, load_corpus
from .language_model import FineTuning, model_folder
from .rewards import ClassifierSettings, classifier_folder, load_classifier


@dataclass(frozen=True)
class Assets:
    """Where in the cache they are."""

    corpus: Path
    classifier: Path
    model: Path


def find_device(name: str | None) -> str:
    """The device of this name, or the best there is."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # CPU builds of torch assert
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside: what the runs' own processes do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(steps: int, device: str, threads: int, console: Console) -> Assets:
    """Make what is missing; what an earlier run made is found in the cache."""
    transformers.logging.disable_progress_bar()
    with console.status("Collecting the sentences"):
        corpus = corpus_folder(CorpusSettings())
    with console.status("Training the sentiment classifier"):
        classifier = classifier_folder(ClassifierSettings())
    console.print(
        f"Sentiment classifier: accuracy {load_classifier(classifier)[1]:.3f} on held-out reviews."
    )
    torch.set_num_threads(threads)
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress:
        row = progress.add_task("fine-tuning the language model", total=steps, note="")

        def show(step: int, loss: float) -> None:
            progress.update(row, completed=step, note=f"loss {loss:.2f}")

        settings = FineTuning(steps=steps)
        model = model_folder(load_corpus(corpus), corpus, settings, torch.device(device), show)
        progress.update(row, completed=steps)
    return Assets(corpus, classifier, model)
