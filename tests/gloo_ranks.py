"""Processes over gloo, started once a session and handed functions of test modules."""

from __future__ import annotations

import datetime
import queue
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

# Of one task in seconds, start included; a rank that waits for the others gives up before.
TIMEOUT = 300


def serve(rank: int, world: int, store: str, tasks: Any, results: Any) -> None:
    """A rank's life: join the group, run what comes, answer with its result or its traceback."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=TIMEOUT - 10),
    )
    while (task := tasks.get()) is not None:
        function, arguments = task
        try:
            results.put((True, function(rank, *arguments)))
        except Exception:
            results.put((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


def start(world: int, store: Path) -> Iterator[Callable[..., list[Any]]]:
    """Calls `function(rank, *arguments)` on every rank and returns their results in order."""
    context = torch.multiprocessing.get_context("spawn")
    tasks = [context.Queue() for _ in range(world)]
    results = [context.Queue() for _ in range(world)]
    processes = [
        context.Process(target=serve, args=(rank, world, str(store), tasks[rank], results[rank]))
        for rank in range(world)
    ]
    for process in processes:
        process.start()

    dead = ""

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        nonlocal dead
        if dead:
            pytest.fail(f"not run, as {dead}")
        for q in tasks:
            q.put((function, arguments))
        answers: list[Any] = []
        deadline = time.monotonic() + TIMEOUT
        while len(answers) < world:
            rank = len(answers)
            try:
                answers.append(results[rank].get(timeout=1))
            except queue.Empty:
                gone = [i for i, process in enumerate(processes) if not process.is_alive()]
                if not gone and time.monotonic() < deadline:
                    continue
                fault = f"ranks {gone} died" if gone else f"rank {rank} did not answer"
                dead = f"{fault} within {TIMEOUT} s of {function.__qualname__}"
                for process in processes:
                    process.kill()
                pytest.fail(dead)
        for rank, (good, answer) in enumerate(answers):
            assert good, f"on rank {rank}:\n{answer}"
        return [answer for _, answer in answers]

    yield run
    for q in tasks:
        q.put(None)
    for process in processes:
        process.join(timeout=30)
        if process.is_alive():
            process.terminate()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    yield from start(2, tmp_path_factory.mktemp("gloo") / "store")


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    yield from start(4, tmp_path_factory.mktemp("gloo") / "store")
