"""`python -m pama_ops info | check | bench`: what is compiled, whether it is right, how fast."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

import pama_ops
from pama_ops import _bench, _self_check
from pama_ops import _library as library


def info() -> bool:
    """Print what a bug report needs, and what to do about kernels that are missing."""
    built = library.extension
    rows = [
        ("pama_ops", f"{pama_ops.__version__} in {library.PACKAGE}"),
        ("torch", torch.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU kernels", f"built by {built.compiler}" if built else f"none: {library.why_no_cpu}"),
        ("CUDA kernels", "loaded" if library.has_cuda else f"none: {library.why_no_cuda}"),
    ]
    if built:
        rows.append(("built with", f"torch {built.torch_built_with}"))
    if built and library.has_cuda:
        rows.append(("architectures", built.cuda_architectures))
        if built.cuda_left_out:
            rows.append(("left out", built.cuda_left_out))
    rows.append(("threads", str(torch.get_num_threads())))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            gpu = f"{properties.name}, sm_{properties.major}{properties.minor}"
            if properties.major < 8:
                gpu += ": too old for the CUDA kernels, which need sm_80 (Ampere)"
            rows.append((f"cuda:{i}", gpu))
    else:
        rows.append(("GPU", "none that this torch can use"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return True


def what_is_missing() -> str:
    """Kernels that are missing, why, and what to do; or nothing."""
    if library.extension is None:
        which = "CPU kernels" if library.has_cuda else "kernels"
        return f"\nNo compiled {which}: {library.why_no_cpu}.\n{library.how_to_have_kernels()}\n"
    text = ""
    if library.older_than_its_sources():
        text = (
            f"\nThe kernels are older than their sources in {library.PACKAGE.parent}.\n"
            "To build them again: `pip install -e .` there.\n"
        )
    if not library.has_cuda:
        text += (
            f"\nNo CUDA kernels: {library.why_no_cuda}.\n"
            "To build them: install the CUDA toolkit (nvcc) that this torch was built with and\n"
            "reinstall with PAMA_CUDA=1, which turns whatever hinders it into an error.\n"
        )
    return text


def check() -> bool:
    """Whether every op keeps to its definition, and no kernels of use here are missing."""
    good = _self_check.check()
    if not torch.cuda.is_available():
        print("CUDA kernels not checked: torch sees no GPU")
    complete = library.extension and (library.has_cuda or not torch.cuda.is_available())
    return good and bool(complete)


def bench() -> bool:
    """Time the main ops."""
    _bench.bench()
    return True


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m pama_ops", description=pama_ops.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, what is compiled and why not")
    commands.add_parser("check", help="every op against its float64 definition, on every device")
    commands.add_parser("bench", help="the main ops against a copy of as many bytes, in a minute")
    command = parser.parse_args(arguments).command
    good = {"info": info, "check": check, "bench": bench}[command]()
    print(what_is_missing(), end="")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
