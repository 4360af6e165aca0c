"""What it costs to choose the weights of n objectives, per step, as the model grows.

    python benchmarks/gpu/headline.py [--results PATH] [--device cpu] [--models "GPT-2 125M"]

(a) torch.cat, J @ J.T, Frank-Wolfe on the host (Sener & Koltun's loop), (b) TorchJD's MGDA,
(c) `gram` and `min_norm`, (d) `pama_advantages` on B x T tokens. For (a) to (c) the gradients lie
there already: the n backwards that made them, which only (d) does without, are not in the figures.
`weights ms` is the choice alone, `ms` the choice and the combination ((b) and (d) do both in one).
Beside the JSON it leaves one page, with the table and, on paper, models that no machine here holds.
"""

from __future__ import annotations

from typing import Any

import torch
from measure import Bench, Call, memory  # before the others, which are found where it looks

# isort: split
from gradient_peers import Gradients, jacobian, on_host
from model_shapes import MODELS, Shapes, size
from torch import Tensor

import pama_ops as po

TOKENS = (256, 1024)  # B, T
DRY_TOKENS, DRY_MODEL = (4, 16), [(33, 8), (8,), (4096,)]
SHARE = 0.9  # of the memory: whether (a) and (b) fit at all is part of their cost
# On paper: parameters and the GPUs that share them, bfloat16 gradients.
PAPER = {"70B": (70e9, 64), "1T": (1e12, 1024)}


def torchjd(grads: Gradients) -> Call:
    from torchjd.aggregation import MGDA

    aggregator = MGDA()
    return lambda: aggregator(jacobian(grads))


def gradient_door(grads: Gradients, out: list[Tensor]) -> tuple[Call, Call]:
    def weights() -> Tensor:
        return po.min_norm(po.gram(grads))

    return weights, lambda: po.combine(grads, weights(), out=out)


def token_door(bench: Bench, n: int) -> Call:
    tokens = DRY_TOKENS if bench.arguments.dry else TOKENS
    advantages = torch.randn(n, *tokens, device=bench.device)
    mask = torch.rand(tokens, device=bench.device) < 0.9
    log_ratio = 0.1 * torch.randn(tokens, device=bench.device)
    return lambda: po.pama_advantages(advantages, mask, log_ratio)


def cost(bench: Bench, step: Call, weights: Call | None = None) -> dict[str, Any]:
    whole = bench.time(step)  # first: a machine hands out memory slowly, and it is the headline
    alone = {} if weights is None else {"weights ms": bench.time(weights)["ms"]}
    return {
        **alone, **whole,
        "extra bytes": bench.extra_bytes(step), "host syncs": bench.host_syncs(step),
    }  # fmt: skip


def peer(bench: Bench, row: dict[str, Any], step: Call, weights: Call | None = None) -> None:
    """Adds the cost of a method that is not ours, or what torch says that it cannot do.

    J @ J.T of 6.7e9 columns is more than torch's matrix product takes.
    """
    try:
        found = cost(bench, step, weights)
    except RuntimeError as error:  # of torch: memory, or a size
        if bench.on_gpu:
            torch.cuda.synchronize()  # raises again where CUDA itself has failed
            torch.cuda.empty_cache()
        found = {"skipped": f"torch: {str(error).splitlines()[0][:160]}"}
    bench.add({**row, **found})


def measure(bench: Bench, model: str, shapes: Shapes, n: int, dtype: torch.dtype) -> None:
    bytes_of_one = size(shapes) * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    row = {"model": model, "d": size(shapes), "n": n, "dtype": name}

    def skip(method: str, why: str) -> None:
        bench.add({**row, "method": method, "skipped": why})

    bench.add({**row, "method": "(d) token door", **cost(bench, token_door(bench, n))})
    if (n + 1) * bytes_of_one > memory(SHARE):
        skip(
            "(a) (b) (c)", f"the gradients and their sum take {(n + 1) * bytes_of_one / 1e9:.0f} GB"
        )
        return
    grads = bench.draw(n, shapes, dtype)
    out = [torch.empty_like(x) for x in grads[0]]
    weights, step = gradient_door(grads, out)
    result = cost(bench, step, weights)
    result["read GB/s"] = n * bytes_of_one / result["weights ms"] / 1e6
    bench.add({**row, "method": "(c) gradient door", **result})
    del out
    if (2 * n + 1) * bytes_of_one > memory(SHARE):
        need = f"cat takes {(2 * n + 1) * bytes_of_one / 1e9:.0f} GB with the gradients"
        skip("(a) cat, J @ J.T, Frank-Wolfe on the host", need)
        skip("(b) TorchJD MGDA", need)
        return
    weights, step = on_host(grads)
    peer(bench, {**row, "method": "(a) cat, J @ J.T, Frank-Wolfe on the host"}, step, weights)
    try:
        aggregate = torchjd(grads)
    except ImportError:
        skip("(b) TorchJD MGDA", "needs torchjd")
        return
    peer(bench, {**row, "method": "(b) TorchJD MGDA"}, aggregate)


def on_paper(rows: list[dict[str, Any]], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Larger models by arithmetic: a shard's bytes over the rate measured on the largest model.

    Left out, as nothing here measures it: the all-reduce of n² float64 (c), of N to N² (d).
    """
    found = []
    for n in sorted({r["n"] for r in rows}):
        doors = [r for r in rows if r["n"] == n and "ms" in r]
        gradient = [r for r in doors if r["method"].startswith("(c)")]
        token = [r for r in doors if r["method"].startswith("(d)")]
        if not gradient or not token:
            continue
        base = max(gradient, key=lambda r: r["d"])
        for name, (d, shards) in PAPER.items():
            shard = n * d * dtype.itemsize / shards
            found.append({
                "model": name, "n": n, "shards": shards, "bytes of a shard": shard,
                "read GB/s": base["read GB/s"], "rate of": base["model"],
                "(c) weights ms": shard / base["read GB/s"] / 1e6, "(d) ms": token[-1]["ms"],
            })  # fmt: skip
    return found


def table(heads: str, rows: list[list[object]]) -> str:
    cells = [[f"{x:.3g}" if isinstance(x, float) and abs(x) < 1000
              else f"{x:.0f}" if isinstance(x, float) else "–" if x is None else str(x)
              for x in row] for row in rows]  # fmt: skip
    lines = [heads.split(), ["---"] * len(heads.split()), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("_", " ")


def page(where: dict[str, Any], rows: list[dict[str, Any]], paper: list[dict[str, Any]]) -> str:
    """What was measured, and apart from it what was not, in Markdown."""
    measured = [
        [r["model"], r["n"], r["method"], r["skipped"], *6 * [None]] if "skipped" in r else
        [r["model"], r["n"], r["method"], r.get("weights ms"), r["ms"], r["low"], r["high"],
         None if r["extra bytes"] is None else r["extra bytes"] / 1e6, r["host syncs"], r["rounds"]]
        for r in rows
    ]  # fmt: skip
    arithmetic = [
        [r["model"], r["n"], r["shards"], r["bytes of a shard"] / 1e9, r["read GB/s"],
         r["rate of"], r["(c) weights ms"], r["(d) ms"]]
        for r in paper
    ]  # fmt: skip
    on = ", ".join(where["gpus"]) or f"{where['processor']}, {where['threads']} threads; no GPU"
    return f"""# The cost of choosing the weights, per step

Measured on {on}; torch {where["torch"]}, commit {where["commit"]}; a copy moves
{where["copy GB/s"]:.1f} GB/s, read and written. The gradients, {rows[0]["dtype"]}, are there
already; (d) has {TOKENS[0]} x {TOKENS[1]} tokens, whatever the model. Medians and quartiles, in ms.
`benchmarks/gpu/headline.py` says what each method does. Extra memory and host synchronisations
count on a GPU only.

{table("model n method weights_ms ms low high extra_MB host_syncs rounds", measured)}

## On paper, not measured

Models sharded over as many devices as the column says, each like the one above: bytes of a shard
of the n gradients over the rate at which `gram` read those of the largest model above; (d) does not
depend on the model. The all-reduce of n x n numbers is left out.

{table("model n shards GB_a_shard GB/s rate_of (c)_weights_ms (d)_ms", arithmetic)}
"""


def plot(bench: Bench) -> None:
    try:
        from matplotlib import pyplot, ticker
    except ImportError:
        print("no plot: needs matplotlib")
        return
    n = max((r["n"] for r in bench.rows if "ms" in r), default=0)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    rows = [r for r in bench.rows if r["n"] == n and "ms" in r]
    for method in sorted({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        axes.plot([r["d"] for r in mine], [r["ms"] for r in mine], "o-", label=method)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="ms a step",
             title=f"choosing and applying the weights of {n} objectives")  # fmt: skip
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(fontsize="small")
    figure.savefig(bench.arguments.results.with_suffix(".png"), dpi=120)


def keep(bench: Bench, dtype: torch.dtype) -> str:
    """Writes what there is: the rows, the page and the plot."""
    paper = on_paper(bench.rows, dtype)
    text = page(bench.where, bench.rows, paper)
    if bench.arguments.results:
        bench.write(on_paper=paper)
        bench.arguments.results.with_suffix(".md").write_text(text)
        plot(bench)
    return text


def main() -> None:
    bench = Bench(__doc__)
    bench.copy_rate()
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    models = {"tiny": DRY_MODEL} if bench.arguments.dry else MODELS
    text = ""
    for model in bench.arguments.models or models:
        for n in bench.arguments.objectives or (2, 4):
            measure(bench, model, models[model], n, dtype)
        text = keep(bench, dtype)  # a run that is cut short has a page too
    print(text)


if __name__ == "__main__":
    main()
