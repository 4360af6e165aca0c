#!/usr/bin/env python
"""Align a language model to two conflicting rewards with PAMA and with what it is compared to.

A small GPT-2 learns to write sentences of film reviews, then reinforcement learning pulls it
towards two rewards at once: sentiment, and brevity (or length). Everything happens on this machine,
offline; a GPU is used where there is one. The training loop is examples/reviews/ppo.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from reviews import methods, report, schedule
from reviews.cache import cache_root
from reviews.language_model import FineTuning
from reviews.ppo import PPOSettings
from reviews.prepare import find_device, one_thread, prepare
from reviews.rewards import find_user_function, load_classifier
from rich.console import Console

PAIRS = {"short": "brevity", "long": "length"}
# Length hardly conflicts with sentiment, so nothing but the penalty holds the policy back.
KL_PENALTY = {"brevity": 0.05, "length": 0.1}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"methods: {', '.join(methods.ALL)}\n"
        "morlhf-W and token-W for any W in [0, 1]: the weight, or PAMA's preference, of sentiment\n"
        f"cache: {cache_root()}",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="a minute's taste: 200 fine-tuning steps, 20 iterations, three methods",
    )
    size.add_argument(
        "--full",
        action="store_true",
        help="both pairs, 5 seeds of the main methods and 2 of the others: more than an hour; the "
        "same command again goes on where an interrupted one stopped",
    )
    parser.add_argument(
        "--length",
        choices=PAIRS,
        default="short",
        help="reward short texts, against sentiment (default), or long ones, hardly against it",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="one more objective of your own, as often as you like: function(prompts, responses), "
        "two lists of str, returns one number per text",
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="which to run, see below")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 of each method (1)"
    )
    parser.add_argument("--iterations", type=int, metavar="N", help="PPO iterations per run (150)")
    parser.add_argument(
        "--fine-tuning-steps", type=int, metavar="N", help="steps of fine-tuning before (1600)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results (runs/<time>; with --full runs/full)"
    )
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (a GPU if there is one)")
    args = parser.parse_args(arguments)

    for name in ("seeds", "iterations", "fine_tuning_steps", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        for path in args.reward:
            find_user_function(path)
        for method in args.methods or ():
            methods.find_method(method, 2 + len(args.reward))
        args.device = find_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.out is None:
        name = "full" if args.full else datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        args.out = Path("runs") / name
    return args


def plan(args: argparse.Namespace) -> list[schedule.Task]:
    """The runs in the order of what they are worth, should there be no time for all of them."""

    def tasks(pair: str, names: Sequence[str], seeds: int) -> list[schedule.Task]:
        settings = PPOSettings(kl_penalty=KL_PENALTY[pair])
        if args.quick:
            settings = replace(settings, iterations=20)
        if args.iterations:
            settings = replace(settings, iterations=args.iterations)
        objectives = ("sentiment", pair, *args.reward)
        return [
            schedule.Task(pair, objectives, name, seed, settings, args.device)
            for seed in range(seeds)
            for name in names
        ]

    if args.full:
        main = [task for pair in PAIRS.values() for task in tasks(pair, methods.MAIN, 5)]
        rest = [task for pair in PAIRS.values() for task in tasks(pair, methods.REST, 2)]
        wanted = args.methods or methods.ALL
        return [task for task in (*main, *rest) if task.method in wanted]
    names = args.methods or (methods.QUICK if args.quick else methods.MAIN)
    return tasks(PAIRS[args.length], names, args.seeds)


def write_results(
    args: argparse.Namespace,
    tasks: Sequence[schedule.Task],
    runs: Sequence[dict[str, Any]],
    before: dict[str, Any],
    accuracy: float,
    console: Console,
) -> None:
    from reviews.figure import draw  # matplotlib, which the worker processes need not load

    pairs = list(dict.fromkeys(run["identity"]["pair"] for run in runs))
    settled = report.settled(runs)
    rows = report.summarise(settled, before)
    summary = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        **report.provenance(args.device),
        "settings": {task.pair: asdict(task.settings) for task in tasks},
        "classifier_accuracy": accuracy,
        "before": {
            pair: {k: v for k, v in before[pair].items() if k not in ("texts", "rewards_by_prompt")}
            for pair in pairs
        },
        "rows": rows,
        "front_hypervolume": {
            pair: report.front_hypervolume(settled, before, pair) for pair in pairs
        },
    }
    schedule.write_json(args.out / "summary.json", summary)
    schedule.write_json(args.out / "results.json", {**summary, "before": before, "runs": runs})
    texts = [report.markdown_texts(settled, before, pair, count=40) for pair in pairs]
    (args.out / "texts.md").write_text("\n".join(texts))
    for pair in pairs:
        draw(args.out / f"{pair}.png", settled, before, pair)
        console.print(report.table(rows, before, pair))
        if front := summary["front_hypervolume"][pair]:
            console.print(f"Front of the five fixed weightings: HV {front[0]:.3f}")
    console.print(f"Written to {args.out}/: results.json, summary.json, texts.md, figures.")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    console = Console()
    tasks = plan(args)
    try:
        steps = args.fine_tuning_steps or (200 if args.quick else FineTuning.steps)
        assets = prepare(steps, args.device, args.processes, console)
        with one_thread():
            before = {
                task.pair: schedule.judge_start(task.objectives, task.settings, assets, args.device)
                for task in {task.pair: task for task in tasks}.values()
            }
    except KeyboardInterrupt:
        console.print("Interrupted before the first run: nothing to write.")
        return 130

    args.out.mkdir(parents=True, exist_ok=True)
    try:
        outcome = schedule.run_all(tasks, assets, args.out / "runs", args.processes, console)
    except KeyboardInterrupt:
        console.print(f"Given up. Finished runs are in {args.out / 'runs'}.")
        return 130
    if outcome.runs:
        accuracy = load_classifier(assets.classifier)[1]
        write_results(args, tasks, outcome.runs, before, accuracy, console)
    if outcome.error:
        console.print(f"A run failed: {outcome.error}", style="red")
        return 1
    return 130 if outcome.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
