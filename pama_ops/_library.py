"""Loads the compiled kernels and says, once and loudly, when there are none."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).parent


def _load_cpu() -> tuple[ModuleType | None, str]:
    """The pybind11 module whose import registers the CPU kernels, or why there is none."""
    if importlib.util.find_spec("pama_ops._C") is None:
        return None, "pama_ops._C was not built"
    try:
        from pama_ops import _C
    except (
        ImportError
    ) as error:  # e.g. a torch older than the stable ABI the kernels were built for
        return None, f"pama_ops._C does not load: {error}"
    return _C, ""


def _load_cuda(built: ModuleType) -> tuple[bool, str]:
    if built.cuda:
        return False, f"the CUDA kernels were {built.cuda}"
    library = PACKAGE / "_C_cuda.so"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return False, f"pama_ops/_C_cuda.so does not load: {error.__cause__ or error}"
    return True, ""


def load() -> None:
    """Register the compiled kernels over the plain-PyTorch defaults."""
    global extension, why_no_cpu, has_cuda, why_no_cuda
    extension, why_no_cpu = _load_cpu()
    if extension is None:
        message = (
            f"{why_no_cpu}: every op runs its slow plain-PyTorch definition instead. "
            "Install a C++ compiler and reinstall pama_ops; PAMA_STRICT=1 makes this an error."
        )
        if os.environ.get("PAMA_STRICT") == "1":
            raise ImportError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        has_cuda, why_no_cuda = False, "the CUDA kernels come with pama_ops._C"
        return
    has_cuda, why_no_cuda = _load_cuda(extension)
    if not has_cuda and torch.cuda.is_available():
        message = (
            f"{why_no_cuda}: CUDA tensors run the slow plain-PyTorch definitions. "
            "See python -m pama_ops info."
        )
        if os.environ.get("PAMA_STRICT") == "1":
            raise ImportError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


extension: ModuleType | None = None
why_no_cpu = why_no_cuda = "not loaded yet"
has_cuda = False
