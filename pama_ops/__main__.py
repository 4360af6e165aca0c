"""`python -m pama_ops info`: versions, devices, what is compiled and why not."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

import pama_ops
from pama_ops import _library as library


def info() -> None:
    """Print what a bug report needs, and what to do about kernels that are missing."""
    built = library.extension
    rows = [
        ("pama_ops", pama_ops.__version__),
        ("torch", torch.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU kernels", f"built by {built.compiler}" if built else f"none: {library.why_no_cpu}"),
        ("CUDA kernels", "loaded" if library.has_cuda else f"none: {library.why_no_cuda}"),
    ]
    if built:
        rows.append(("built with", f"torch {built.torch_built_with}"))
    if built and library.has_cuda:
        rows.append(("architectures", built.cuda_architectures))
    rows.append(("threads", str(torch.get_num_threads())))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            rows.append(
                (f"cuda:{i}", f"{properties.name}, sm_{properties.major}{properties.minor}")
            )
    else:
        rows.append(("GPU", "none that this torch can use"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    if built is None:
        print("\nTo build the kernels: install a C++ compiler, then reinstall pama_ops.")
    elif not library.has_cuda and torch.cuda.is_available():
        print("\nTo build the CUDA kernels: install the CUDA toolkit (nvcc) and reinstall with")
        print("PAMA_CUDA=1, which turns whatever hinders it into an error.")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m pama_ops", description=pama_ops.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, what is compiled and why not")
    parser.parse_args(arguments)
    info()
    return 0


if __name__ == "__main__":
    sys.exit(main())
