"""Where figures come from: machine, versions and commit, kept beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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


def versions() -> dict[str, object]:
    """Of Python, torch, nvcc, and of the package where this process has imported it.

    scripts/gpu_check.sh asks on a machine where there is no package yet.
    """
    import torch

    nvcc = output_of("nvcc", "--version") or ""
    found: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "nvcc": next((line for line in nvcc.splitlines() if "release" in line), None),
    }
    if "pama_ops" in sys.modules:
        import pama_ops

        found["pama_ops"] = pama_ops.__version__
        found["compiler"] = getattr(pama_ops._library.extension, "compiler", "none")
    return found


def where() -> dict[str, object]:
    """All of it on one level, with the cards' driver, and the architecture to compile for."""
    query = output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv")
    return {
        **machine(),
        "nvidia-smi": query.splitlines()[1:] if query else None,
        **versions(),
        "commit": commit(),
        "architecture": architecture(),
    }


def architecture() -> str | None:
    """The card's, with Hopper's own instructions where it has them."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")
