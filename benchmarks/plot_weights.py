"""A plot of what bench_weights.py measured, beside its JSON.

python benchmarks/plot_weights.py RESULTS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot, ticker

COLUMNS = 4
COLORS = {"ours": "C0", "torchjd": "C1", "cvxpy": "C2", "quadprog": "C3"}


def plot(path: Path) -> None:
    """Time against n, a panel for each op, its peers and its budgets beside it."""
    medians: dict[str, dict[str, dict[int, float]]] = {}  # by op, by who, by n: microseconds
    for row in json.loads(path.read_text())["rows"]:
        op, _, n = row["case"].partition(", n = ")
        if row["suite"] != "weights" or not n:
            continue
        found = medians.setdefault(op, {})
        found.setdefault(row["call"], {})[int(n)] = 1e6 * row["median"]
        if row["bound"].endswith(" us") and row["budget"]:
            found.setdefault("budget", {})[int(n)] = 1e6 * row["bound_median"]
    figure, axes = pyplot.subplots(
        -(-len(medians) // COLUMNS), COLUMNS, figsize=(14, 11), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    sizes = sorted({n for found in medians.values() for n in found["ours"]})
    for axis, (op, found) in zip(axes.flat, medians.items(), strict=False):
        for who, color in COLORS.items():
            of = found.get(who, {})
            label = "pama_ops" if who == "ours" else who
            if of:
                axis.loglog(of.keys(), of.values(), "o-", color=color, label=label, ms=4)
        budgets = found.get("budget", {})
        axis.plot(budgets.keys(), budgets.values(), "k_", label="budget", ms=10)
        axis.set_title(op, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(medians) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("µs a call")
    handles = {h.get_label(): h for a in axes.flat for h in a.get_legend_handles_labels()[0]}
    figure.legend(handles=handles.values(), loc="lower right", ncols=len(handles))
    figure.suptitle("Weights from an n × n Gram matrix on one CPU thread, called from Python")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    plot(Path(sys.argv[1]))
