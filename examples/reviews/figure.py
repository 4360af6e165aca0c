"""The figure of one pair of rewards: curves, reward plane, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .methods import ALL, FRONT, MAIN, label

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = {
    "morlhf": "#000000",
    "mgda-ub": "#E69F00",
    "token": "#0072B2",
    "sequence": "#009E73",
    "token-signed": "#56B4E9",
    "gram": "#CC79A7",
    "batch": "#D55E00",
}
SMOOTHING = 9  # iterations


def _colour(method: str) -> str:
    return COLOURS.get(method) or COLOURS.get(method.partition("-")[0], COLOURS["morlhf"])


def _smooth(series: np.ndarray) -> np.ndarray:
    width = min(SMOOTHING, series.shape[-1])
    kernel = np.ones(width)
    norm = np.convolve(np.ones(series.shape[-1]), kernel, mode="same")
    return np.stack([np.convolve(row, kernel, mode="same") / norm for row in series])


def _curves(runs: Sequence[Mapping[str, Any]], field: str, index: int) -> np.ndarray:
    """[seeds, iterations], cut to the shortest run, since some may have been interrupted."""
    shortest = min(len(run["curve"]) for run in runs)
    return np.array([[r[field][index] for r in run["curve"][:shortest]] for run in runs])


def _draw_curves(
    axes: Axes, groups: Mapping[str, Sequence[Mapping[str, Any]]], field: str, index: int
) -> None:
    for method, runs in groups.items():
        smooth = _smooth(_curves(runs, field, index))
        x = np.arange(1, smooth.shape[1] + 1)
        mean = smooth.mean(axis=0)
        axes.plot(x, mean, color=_colour(method), lw=1.6)
        if len(runs) > 1:
            deviation = smooth.std(axis=0, ddof=1)
            band = (mean - deviation, mean + deviation)
            axes.fill_between(x, *band, color=_colour(method), alpha=0.13, lw=0)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0)


def _draw_plane(
    axes: Axes,
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
    start: Mapping[str, float],
) -> None:
    names = list(start)[:2]
    means = {}
    for method, runs in groups.items():
        points = np.array([[run["after"]["rewards"][n] for n in names] for run in runs])
        means[method] = points.mean(axis=0)
        colour = _colour(method)
        if len(runs) > 1:
            axes.scatter(*points.T, s=11, color=colour, alpha=0.35, lw=0)
        face = colour if method in COLOURS else "white"
        axes.scatter(*means[method], s=48, color=face, edgecolor=colour, zorder=4)
    front = np.array(sorted(tuple(means[m]) for m in FRONT if m in means))
    if len(front) > 1:
        axes.plot(*front.T, color="0.6", lw=1, ls="--", zorder=1)
    axes.margins(0.12)
    # Off the panel, or the methods would stand in one corner.
    begin = ", ".join(f"{start[name]:.2f}" for name in names)
    axes.annotate(
        f"↙ from the fine-tuned model ({begin})",
        (0, 0),
        xycoords="axes fraction",
        xytext=(4, 5),
        textcoords="offset points",
        fontsize=8,
        color="0.35",
    )
    axes.set(xlabel=names[0], ylabel=names[1])


def draw(
    path: Path, runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any], pair: str
) -> None:
    of_pair = [run for run in runs if run["identity"]["pair"] == pair]
    objectives = list(before[pair]["rewards"])
    order = [*ALL, *sorted({run["identity"]["method"] for run in of_pair} - set(ALL))]
    groups = {
        method: [run for run in of_pair if run["identity"]["method"] == method] for method in order
    }
    groups = {method: members for method, members in groups.items() if members}
    # The curves of more methods than this cannot be told apart; the others are in the plane.
    drawn = {m: members for m, members in groups.items() if m in (*MAIN, "token-signed")}
    drawn = drawn or groups

    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with plt.rc_context(style):
        panels = len(objectives) + 2
        rows = -(-panels // 2)
        figure, grid = plt.subplots(rows, 2, figsize=(9, 3.1 * rows + 0.7), layout="constrained")
        axes = list(grid.flat)
        for k, name in enumerate(objectives):
            _draw_curves(axes[k], drawn, "rewards", k)
            start = before[pair]["rewards"][name]
            axes[k].axhline(start, color="0.6", lw=1, ls=":")
            axes[k].annotate(
                "fine-tuned model",
                (1, start),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="0.35",
            )
            axes[k].set_title(f"{name} while training", loc="left")
        plane, weights = axes[len(objectives) : panels]
        _draw_plane(plane, groups, before[pair]["rewards"])
        plane.set_title("held-out prompts after training", loc="left")
        _draw_curves(weights, drawn, "weights", 0)
        weights.set_title(f"mean weight of {objectives[0]}", loc="left")
        for spare in axes[panels:]:
            spare.remove()

        handles = [
            Line2D([], [], color=COLOURS[m], lw=2, label=label(m, len(objectives)))
            for m in groups
            if m in COLOURS
        ]
        if any(m not in COLOURS for m in groups):
            handles.append(
                Line2D(
                    [],
                    [],
                    color="0.6",
                    ls="--",
                    marker="o",
                    markerfacecolor="white",
                    markeredgecolor="black",
                    label="open: other weights",
                )
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=125)
        plt.close(figure)
