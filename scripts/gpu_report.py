"""Keeps the record of a run of scripts/gpu_check.sh in $OUT/gpu_check.json, and prints it."""

import json
import os
import platform
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from provenance import ROOT, commit, machine, output_of

RECORD = Path(os.environ.get("OUT", ROOT / "build" / "gpu" / "results")) / "gpu_check.json"
SHOWN = 20  # failures in the table


def where() -> dict[str, object]:
    """Machine, cards, driver, versions and commit."""
    query = output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv")
    nvcc = output_of("nvcc", "--version") or ""
    return {
        **machine(),
        "nvidia-smi": query.splitlines()[1:] if query else None,
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "nvcc": next((line for line in nvcc.splitlines() if "release" in line), None),
        "python": platform.python_version(),
        "commit": commit(),
    }


def architecture() -> str:
    """The card's, with Hopper's own instructions where it has them."""
    if not torch.cuda.is_available():
        sys.exit(
            "gpu_check: torch sees no GPU; set TORCH_CUDA_ARCH_LIST to build for one all the same"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")


def tests(path: str) -> dict[str, object]:
    """Counts, and the names of what failed and why things were skipped, from pytest's report."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed, skipped = [], {}
    if not Path(path).exists():
        return {"error": "pytest wrote no report"}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(f"{case.get('classname')}::{case.get('name')}")
            skip = case.find("skipped")
            if skip is not None:
                reason = skip.get("message", "")
                skipped[reason] = skipped.get(reason, 0) + 1
    return {**counts, "failed": failed, "reasons of skips": skipped}


def table(record: dict) -> None:
    """The run on one page."""
    print("\n== results ==")
    for name, value in record["where"].items():
        print(f"{name:<12}{value}")
    for name, stage in record["stages"].items():
        print(f"{name:<12}{'ok' if stage['status'] == 0 else 'FAILED':<8}{stage['seconds']} s")
    if "tests" in record:
        counts = {k: v for k, v in record["tests"].items() if not isinstance(v, (list, dict))}
        print(f"{'tests':<12}{counts}")
        failed = record["tests"].get("failed", [])
        for name in failed[:SHOWN]:
            print(f"{'':<12}FAILED {name}")
        if len(failed) > SHOWN:
            print(f"{'':<12}FAILED {len(failed) - SHOWN} more")
        for reason, count in record["tests"].get("reasons of skips", {}).items():
            print(f"{'':<12}skipped {count}: {reason}")
    for kind, result in record.get("sanitizer", {}).items():
        print(f"{kind:<12}{'ok' if result == '0' else result}")
    print(f"written to {RECORD.parent}")


def main(command: str, *arguments: str) -> None:
    """Run one command of the script: begin, architecture, stage, tests, sanitizer or table."""
    if command == "architecture":
        print(architecture())
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if command == "begin":
        here = where()
        if record.get("where") != here:  # what was found elsewhere, or of another commit
            record = {"where": here, "stages": {}}
    elif command == "stage":
        name, status, seconds = arguments
        record["stages"][name] = {"status": int(status), "seconds": int(seconds)}
    elif command == "tests":
        record["tests"] = tests(*arguments)
    elif command == "sanitizer":
        kind, result = arguments
        record.setdefault("sanitizer", {})[kind] = result
    elif command == "table":
        table(record)
        return
    else:
        sys.exit(f"gpu_report: unknown command {command}")
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
