"""The tests as on other processors: one cell for each level, capability and number of threads.

PAMA_CPU_LEVEL caps the generation of x86-64 whose tiles `gram` runs; the clones of other loops are
chosen by the processor alone, so that below level 4 the library is compiled for one level, in a
tree of links to this one. ATEN_CPU_CAPABILITY sets the vectors of torch's own kernels, MKL_CBWR
those of MKL, OMP_NUM_THREADS the threads. What took effect is asked of the library and of torch; a
cell that the processor cannot run is left out.

Ctrl-C ends it; what was run so far is shown and kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from provenance import commit, machine
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "machines"

MKL = {"default": "COMPATIBLE", "avx2": "AVX2", "avx512": "AVX512"}

# What no cell changes, and `make test` runs once.
ONCE = {
    "the demos and the trainers, whose own arithmetic dwarfs ours": [
        "test_align_reviews.py", "test_control.py", "test_deepspeed.py", "test_examples.py",
        "test_trl.py", "test_verl.py",
    ],
    "building, installing and the documentation": [
        "test_command_line.py", "test_install.py", "test_package.py",
    ],
    "the CUDA kernels' order of threads, resources and GPU": [
        "test_cuda.py", "test_emulator.py", "test_gpu_check.py", "test_kernel_resources.py",
    ],
}  # fmt: skip

PROBE = """
import json, torch, pama_ops
print(json.dumps({
    "level": pama_ops._C.clone_level(), "gram's level": pama_ops._C.gram_level(),
    "capability": torch.backends.cpu.get_cpu_capability().lower(),
    "threads": torch.get_num_threads(),
}))
"""


def environment(level: int, capability: str, threads: int) -> dict[str, str]:
    """Of a process that runs as the cell asks."""
    return {
        **os.environ,
        "PAMA_CPU_LEVEL": str(level),
        "ATEN_CPU_CAPABILITY": capability,
        "MKL_CBWR": MKL[capability],
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # processes share the cores
        "PYTHONUNBUFFERED": "1",  # for the progress
    }


def tree_of(level: int) -> Path:
    """The working tree, with the kernels compiled for one level alone below level 4."""
    if level == 4:
        return ROOT
    tree = FOLDER / f"level-{level}"
    package = tree / "pama_ops"
    package.mkdir(parents=True, exist_ok=True)
    links = [(file, tree / file.name) for file in ROOT.iterdir() if file.name != "pama_ops"]
    links += [(file, package / file.name) for file in (ROOT / "pama_ops").iterdir()]
    for file, link in links:
        if file.suffix != ".so" and not link.is_symlink():
            link.symlink_to(file)
    march = {1: "x86-64", 2: "x86-64-v2", 3: "x86-64-v3"}[level]
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (
        ["cmake", "-S", ROOT, "-B", FOLDER / f"cmake-{level}", "-G", "Ninja",
         f"-DPython3_EXECUTABLE={sys.executable}", f"-DPAMA_OUTPUT={package}", "-DPAMA_CUDA=0",
         "-DPAMA_TESTING=OFF", f"-DCMAKE_CXX_FLAGS=-march={march} -DPAMA_ONE_CLONE"],
        ["cmake", "--build", FOLDER / f"cmake-{level}", "--target", "_C"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=tools, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    return tree


def capabilities() -> list[str]:
    """Those that the processor has, by torch's choice where none is asked for: it takes one that is
    asked for at its word, and meets an illegal instruction."""
    run = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env={name: x for name, x in os.environ.items() if name != "ATEN_CPU_CAPABILITY"},
    )  # fmt: skip
    rising = list(MKL)
    return rising[: rising.index(run.stdout.strip().lower()) + 1]


def what_took_effect(asked: tuple[int, str, int]) -> dict[str, Any]:
    """The library's and torch's own word, in a process of the cell."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True, text=True, check=False, cwd=tree_of(asked[0]), env=environment(*asked),
    )  # fmt: skip
    if run.returncode < 0:  # an instruction that it lacks
        return {"level": "none", "gram's level": None}
    if run.returncode:
        raise SystemExit(run.stderr)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def backends(cells: list[dict[str, Any]], cell: dict[str, Any]) -> list[str]:
    """Those that the cell is the first to run so: the defaults know no level, and the CUDA kernels
    as compiled for the host neither level nor threads, only what the tests' own torch does."""
    before = cells[: cells.index(cell)]
    found = ["cpu"]
    key = (cell["capability"], cell["threads"])
    if key not in {(c["capability"], c["threads"]) for c in before}:
        found.append("default")
    if cell["capability"] not in {c["capability"] for c in before}:
        found.append("emulated")
    return found


def name_of(cell: dict[str, Any]) -> str:
    """As in "level 3, avx2, 2 threads"."""
    return f"level {cell['level']}, {cell['capability']}, {cell['threads']} threads"


def run(
    cell: dict[str, Any], options: argparse.Namespace, progress: Progress, task: TaskID
) -> None:
    """Run pytest in the cell; its output is kept whole, its counts in the cell."""
    name = name_of(cell)
    log = FOLDER / (re.sub(r"\W+", "-", name) + ".txt")
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short", "-rf", "-p", "no:cacheprovider",
        "-n", str(options.jobs), "--dist", "worksteal", "--backends", ",".join(cell["backends"]),
        *(f"--ignore=tests/{file}" for files in ONCE.values() for file in files), *options.pytest,
    ]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=tree_of(cell["level"]),
        env=environment(cell["level"], cell["capability"], cell["threads"]),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        with log.open("w", buffering=1) as kept:
            for line in process.stdout:
                kept.write(line)
                if share := re.search(r"\[ *(\d+)%\]$", line):
                    progress.update(task, description=name, completed=int(share[1]))
                if counts := re.findall(r"(\d+) (passed|failed|skipped|error)", line):
                    cell["counts"] = {what: int(count) for count, what in counts}
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        cell["exit"] = process.wait()
        cell["seconds"] = round(time.monotonic() - start)
        cell["log"] = str(log.relative_to(ROOT))


def as_table(cells: list[dict[str, Any]]) -> Table:
    """What ran where, and how it ended."""
    table = Table("level", "capability", "threads", "back ends", "passed", "failed", "s")
    for cell in cells:
        row = [str(cell[key]) for key in ("level", "capability", "threads")]
        counts = cell.get("counts", {})
        bad = counts.get("failed", 0) + counts.get("error", 0)
        if "left out" in cell:
            row += ["left out: " + cell["left out"]]
        elif "exit" in cell:
            ended = str(bad) if cell["exit"] in (0, 1) else f"pytest ended with {cell['exit']}"
            row += [", ".join(cell["backends"]), str(counts.get("passed", 0)), ended,
                    str(cell["seconds"])]  # fmt: skip
        else:
            row += ["not run"]
        table.add_row(*row, style="red" if cell.get("exit") else None)
    return table


def main() -> int:
    """Run every cell that the processor can, and show and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--capabilities", nargs="+", choices=MKL, default=list(MKL))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="pytest's processes")
    parser.add_argument("--json", type=Path, default=FOLDER / "machines.json")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)

    able = capabilities()
    cells: list[dict[str, Any]] = []
    for asked in itertools.product(options.levels, options.capabilities, options.threads):
        cell: dict[str, Any] = dict(zip(("level", "capability", "threads"), asked, strict=True))
        cells.append(cell)
        if cell["capability"] not in able:
            cell["left out"] = f"the processor lacks {cell['capability']}"
            continue
        effective = what_took_effect(asked)
        cell["gram's level"] = effective.pop("gram's level")
        off = [f"{x} {effective[x]} took effect" for x in effective if effective[x] != cell[x]]
        if off:
            cell["left out"] = ", ".join(off)
    runs = [cell for cell in cells if "left out" not in cell]
    for cell in runs:
        cell["backends"] = backends(runs, cell)

    def keep() -> None:
        told = {"machine": machine(), "commit": commit(), "left out of every cell": ONCE}
        options.json.write_text(json.dumps({**told, "cells": cells}, indent=1) + "\n")

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
               TimeElapsedColumn())  # fmt: skip
    interrupted = False
    try:
        with Progress(*columns, console=console) as progress:
            whole = progress.add_task(f"{len(runs)} cells", total=len(runs))
            task = progress.add_task("", total=100)
            for cell in runs:
                progress.reset(task)
                run(cell, options, progress, task)
                progress.advance(whole)
                counts = [f"{count} {what}" for what, count in cell.get("counts", {}).items()]
                ended = ", ".join(counts) or f"no counts: see {cell['log']}"
                console.print(f"{name_of(cell)}: {ended}")
                keep()
    except KeyboardInterrupt:
        interrupted = True
    keep()
    console.print(as_table(cells))
    console.print(f"{options.json} holds it; what no cell runs:")
    for why, files in ONCE.items():
        console.print(f"  {why}: {', '.join(files)}")
    if interrupted:
        return 130
    return int(any(cell.get("exit") for cell in runs))


if __name__ == "__main__":
    sys.exit(main())
