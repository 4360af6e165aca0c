"""Where figures come from: the machine and the commit, kept beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output_of(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def machine() -> dict[str, object]:
    """Processor, what torch uses of it, and the GPUs."""
    import torch  # seconds, which commit() need not take

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "gpus": [f"{c.name}, sm_{c.major}{c.minor}, {c.total_memory >> 20} MiB" for c in cards],
        "system": platform.platform(),
    }


def commit() -> str | None:
    """The commit the tree is at; with a plus where files differ from it, unless $PAMA_COMMIT says.

    A tree that was copied to another machine may be newer than the repository that came with it.
    """
    git = ("git", "-C", str(ROOT))
    head = output_of(*git, "rev-parse", "HEAD")
    if head and not output_of(*git, "status", "--porcelain", "-uno"):
        return head
    return os.environ.get("PAMA_COMMIT") or (head and head + "+")
