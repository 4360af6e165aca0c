"""What each CUDA kernel takes of a multiprocessor, from the reports that the build keeps.

`python tests/kernel_resources.py` compares the last build with kernel_resources.json; with
`--golden` it makes that build the standard for its nvcc.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "cmake"
GOLDEN = Path(__file__).with_suffix(".json")

Figures = dict[str, int]
Resources = dict[str, dict[str, Figures]]  # architecture -> kernel -> figures

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'\n.*\n"
    r" +(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)


def parse(report: str) -> Resources:
    """The figures in what `nvcc --resource-usage` says, under mangled names."""
    resources: Resources = {}
    for match in KERNEL.finditer(report):
        figures = {
            "registers": int(match["registers"]),
            "shared": int(match["shared"] or 0),
            "stack": int(match["stack"]),
            "spills": int(match["stores"]) + int(match["loads"]),
        }
        resources.setdefault(match["architecture"], {})[match["name"]] = figures
    return resources


def readable(names: list[str]) -> list[str]:
    """Names without namespace, return type and arguments; mangled where there is no c++filt."""
    try:
        run = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        return names
    # An enumerator among the template's arguments is written as a cast, "(pama::Layout)2".
    parts = r"^void |\(anonymous namespace\)::|\(pama::\w+\)(?=\d)|pama::|\(pama::.*$|\([^()]*\)$"
    return [re.sub(parts, "", name) for name in run.stdout.splitlines()]


def built() -> Resources:
    """The figures of every kernel that was built from a source which is still there."""
    resources: Resources = {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        report = BUILD / "CMakeFiles/_C_cuda.dir/csrc/cuda" / f"{source.name}.o.report"
        for architecture, kernels in parse(report.read_text()).items():
            names = readable(list(kernels))
            if len(set(names)) < len(kernels):
                raise ValueError(f"two kernels of {source.name} have one name: {sorted(names)}")
            resources.setdefault(architecture, {}).update(zip(names, kernels.values(), strict=True))
    return resources


def nvcc_version() -> str:
    return (BUILD / "nvcc_version").read_text().strip()


def golden() -> dict[str, Resources]:
    """nvcc's version -> the figures of a build that was found good."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def spilled(resources: Resources) -> list[str]:
    """The kernels that use local memory."""
    return [
        f"{kernel} for {architecture}: {figures['stack']} bytes of stack,"
        f" {figures['spills']} bytes of spills"
        for architecture, kernels in resources.items()
        for kernel, figures in kernels.items()
        if figures["stack"] or figures["spills"]
    ]


def changes(now: Resources, before: Resources) -> list[str]:
    """What takes more or less than it did, what is new and what is gone, one line each."""
    lines = []
    for architecture in sorted(now.keys() | before.keys()):
        new, old = now.get(architecture, {}), before.get(architecture, {})
        for kernel in sorted(new.keys() | old.keys()):
            if kernel not in old or kernel not in new:
                state = "new" if kernel in new else "gone"
                lines.append(f"{kernel} for {architecture}: {state}")
                continue
            lines += [
                f"{kernel} for {architecture}: {figure} {old[kernel][figure]} -> {value}"
                for figure, value in new[kernel].items()
                if value != old[kernel][figure]
            ]
    return lines


def main() -> None:
    now, standard = built(), golden()
    print("\n".join(spilled(now) + changes(now, standard.get(nvcc_version(), {}))))
    if sys.argv[1:] == ["--golden"]:
        standard[nvcc_version()] = now
        lines = json.dumps(standard, indent=1, sort_keys=True)
        # A line for each kernel.
        GOLDEN.write_text(re.sub(r'\n +("\w+": \d+,?)|(?<=\d)\n +}', _on_one_line, lines) + "\n")


def _on_one_line(match: re.Match[str]) -> str:
    return f" {match[1]}" if match[1] else "}"


if __name__ == "__main__":
    main()
