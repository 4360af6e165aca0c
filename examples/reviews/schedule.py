"""Runs the methods side by side in processes of one thread each, and shows how they get on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .data import load_corpus
from .evaluate import evaluate
from .language_model import load_policy
from .methods import find_method, label
from .ppo import PPOSettings, train
from .prepare import Assets
from .rewards import load_classifier, make_rewards


@dataclass(frozen=True)
class Task:
    """One run: a method and a seed on one set of objectives."""

    pair: str
    objectives: tuple[str, ...]
    method: str
    seed: int
    settings: PPOSettings
    device: str

    @property
    def file_name(self) -> str:
        return f"{self.pair}-{self.method}-{self.seed}.json"

    @property
    def title(self) -> str:
        return f"{label(self.method, len(self.objectives))}, {self.pair}, seed {self.seed}"


def identity(task: Task, assets: Assets) -> dict[str, Any]:
    """What a finished run must agree in with a task to be taken for its result."""
    folders = {name: path.name for name, path in asdict(assets).items()}
    described = {**asdict(task), "assets": folders}
    return json.loads(json.dumps(described))  # as it will be read back: tuples become lists


def judge_start(
    objectives: Sequence[str], settings: PPOSettings, assets: Assets, device: str
) -> dict[str, Any]:
    """The evaluation of the fine-tuned model, before any reinforcement learning."""
    policy = load_policy(assets.model, len(objectives), settings.temperature, torch.device(device))
    corpus = load_corpus(assets.corpus)
    rewards = make_rewards(objectives, load_classifier(assets.classifier)[0])
    prompts = corpus.held_out_prompts.to(device)
    return evaluate(policy, policy, prompts, corpus.tokenizer, rewards, settings.max_new_tokens)


_channel: Any = None  # queue of (file name, iteration, mean rewards), set in each worker
_stop: Any = None  # event


def _start_worker(channel: Any, stop: Any) -> None:
    global _channel, _stop
    _channel, _stop = channel, stop
    # The parent alone answers Ctrl-C; the workers finish their iteration and hand over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


def _run(task: Task, assets: Assets) -> dict[str, Any] | None:
    if _stop.is_set():  # the pool hands out one task more than it has processes
        return None
    device = torch.device(task.device)
    corpus = load_corpus(assets.corpus)
    rewards = make_rewards(task.objectives, load_classifier(assets.classifier)[0])
    policy, reference = (
        load_policy(assets.model, len(rewards), task.settings.temperature, device) for _ in range(2)
    )
    curve = []
    for record in train(
        policy,
        reference,
        corpus.prompts.to(device),
        corpus.tokenizer,
        list(rewards.values()),
        find_method(task.method, len(rewards)),
        task.settings,
        task.seed,
    ):
        curve.append(record)
        _channel.put((task.file_name, record["iteration"], record["rewards"]))
        if _stop.is_set():
            break
    return {
        "identity": identity(task, assets),
        "finished": len(curve) == task.settings.iterations,
        "after": evaluate(
            policy,
            reference,
            corpus.held_out_prompts.to(device),
            corpus.tokenizer,
            rewards,
            task.settings.max_new_tokens,
        ),
        "curve": curve,
    }


def write_json(path: Path, content: object) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    os.replace(draft, path)


def finished_run(folder: Path, task: Task, assets: Assets) -> dict[str, Any] | None:
    """The result of this task from an earlier call with the same output folder, if there is one."""
    path = folder / task.file_name
    if not path.is_file():
        return None
    run = json.loads(path.read_text())
    return run if run["identity"] == identity(task, assets) else None


class _Display:
    def __init__(self, console: Console, total: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        # Counted in iterations, so that the time left is right from the start.
        self.overall = self.progress.add_task("all runs", total=total, note="")
        self.rows: dict[str, TaskID] = {}
        self.running: dict[str, list[float]] = {}

    def show(self, task: Task, iteration: int, rewards: list[float]) -> None:
        name = task.file_name
        if name not in self.rows:
            total = task.settings.iterations
            self.rows[name] = self.progress.add_task(task.title, total=total, note="")
        # An exponential mean: one batch of 64 texts is noisy.
        before = self.running.get(name, rewards)
        self.running[name] = [0.9 * b + 0.1 * r for b, r in zip(before, rewards, strict=True)]
        pairs = zip(task.objectives, self.running[name], strict=True)
        note = "  ".join(f"{objective} {value:+.2f}" for objective, value in pairs)
        self.progress.update(self.rows[name], completed=iteration, note=note)
        self.progress.advance(self.overall)

    def close(self, task: Task) -> None:
        row = self.rows.pop(task.file_name, None)
        if row is not None:
            note = self.progress.tasks[self.progress.task_ids.index(row)].fields["note"]
            self.progress.remove_task(row)
            self.progress.console.print(f"  {task.title}: {note}", highlight=False)


class Outcome(NamedTuple):
    """The runs in the order of their tasks, and why some may be missing or cut short."""

    runs: list[dict[str, Any]]
    interrupted: bool
    error: Exception | None


def run_all(
    tasks: Sequence[Task], assets: Assets, folder: Path, processes: int, console: Console
) -> Outcome:
    """Run the tasks in order; each finished one is written to ``folder`` at once.

    After Ctrl-C, or an error in one run, those under way end with their iteration, are evaluated,
    and the rest is left out. A second Ctrl-C raises KeyboardInterrupt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = {task: run for task in tasks if (run := finished_run(folder, task, assets))}
    waiting = [task for task in tasks if task not in runs]
    if runs:
        console.print(f"{len(runs)} of {len(tasks)} runs found in {folder}, not run again.")
    context = multiprocessing.get_context("spawn")
    channel, stop = context.Queue(), context.Event()
    by_name = {task.file_name: task for task in tasks}
    display = _Display(console, sum(task.settings.iterations for task in waiting))
    error: Exception | None = None

    workers = ProcessPoolExecutor(
        min(processes, max(1, len(waiting))), context, _start_worker, (channel, stop)
    )
    with display.progress, workers, _ctrl_c_sets(stop) as interrupted:
        pending = _submit_shielded(workers, waiting, assets)
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while not channel.empty():
                name, iteration, rewards = channel.get()
                display.show(by_name[name], iteration, rewards)
            for future in done:
                task = pending.pop(future)
                if future.cancelled():
                    continue
                if failure := future.exception():
                    error = error or _as_exception(failure)
                    stop.set()
                elif run := future.result():
                    runs[task] = run
                    if run["finished"]:
                        write_json(folder / task.file_name, run)
                    display.close(task)
            if stop.is_set():
                for future in pending:
                    future.cancel()
    return Outcome([runs[task] for task in tasks if task in runs], interrupted.is_set(), error)


def _as_exception(failure: BaseException) -> Exception:
    return failure if isinstance(failure, Exception) else RuntimeError(repr(failure))


@contextmanager
def _ctrl_c_sets(stop: Any) -> Iterator[threading.Event]:
    """Make the first Ctrl-C set ``stop`` and the event given; the second ends the processes."""
    interrupted = threading.Event()

    def answer(*_: object) -> None:
        if interrupted.is_set():
            for child in multiprocessing.active_children():
                child.terminate()
            raise KeyboardInterrupt
        interrupted.set()
        stop.set()

    before = signal.signal(signal.SIGINT, answer)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _submit_shielded(
    workers: ProcessPoolExecutor, tasks: Sequence[Task], assets: Assets
) -> dict[Future[dict[str, Any] | None], Task]:
    """Submit with Ctrl-C ignored, which the processes started here inherit.

    They need that from their first moment, before ``_start_worker`` can run: importing torch takes
    seconds.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return {workers.submit(_run, task, assets): task for task in tasks}
    finally:
        signal.signal(signal.SIGINT, before)
