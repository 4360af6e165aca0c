"""Loads the compiled kernels and says, once and loudly, when there are none."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).parent


def _load_cpu() -> tuple[ModuleType | None, str]:
    """The pybind11 module whose import registers the CPU kernels, or why there is none."""
    # Only in this package: the finder of an editable install would supply another one's.
    if PathFinder.find_spec("pama_ops._C", [str(PACKAGE)]) is None:
        return None, _why_not_built()
    try:
        from pama_ops import _C
    except ImportError as error:  # e.g. of a torch older than the stable ABI of the kernels
        return None, f"pama_ops._C does not load: {error}"
    return _C, ""


def _why_not_built() -> str:
    note = PACKAGE / "_no_kernels.txt"  # setup.py's
    if note.exists():
        return f"{PACKAGE} was built without kernels: {note.read_text(encoding='utf-8').strip()}"
    if (PACKAGE.parent / "CMakeLists.txt").exists():
        others = sorted(x.name for x in PACKAGE.glob("_C.*") if x.suffix != ".pyi")
        if others and not _has_kernels(PACKAGE):
            return f"{PACKAGE / others[0]} was built for another Python"
        return f"pama_ops was imported from its source folder, {PACKAGE}, which was not built"
    return f"{PACKAGE} has no kernels"


def _has_kernels(package: Path) -> bool:
    return any((package / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def shadowed() -> Path | None:
    """An install with kernels that this Python would import if PACKAGE did not come first."""
    here = PACKAGE.parent.resolve()
    others = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != here]
    specs = [PathFinder.find_spec("pama_ops", others)]
    for finder in sys.meta_path:  # those of editable installs
        if getattr(finder, "__module__", "").startswith("__editable___pama_ops_"):
            specs.append(finder.find_spec("pama_ops", None))
    found = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    return next((x for x in found if x.resolve() != PACKAGE.resolve() and _has_kernels(x)), None)


def how_to_have_kernels() -> str:
    """What to do where `extension` is None."""
    there = shadowed()
    if there is not None:
        return (
            f"An install that has kernels is in {there}, but {PACKAGE.parent} comes before it on "
            "sys.path: run Python from another folder, or build this one with `pip install -e .`."
        )
    if (PACKAGE.parent / "CMakeLists.txt").exists():
        return f"Have a C++ compiler, and build it with `pip install -e .` in {PACKAGE.parent}."
    return (
        "Have a C++ compiler and reinstall pama_ops with this Python and this torch, with pip's "
        "options --force-reinstall --no-deps --no-cache-dir."
    )


def older_than_its_sources() -> bool:
    """Whether an editable install was not built again after its sources changed."""
    sources = PACKAGE.parent / "csrc"
    if extension is None or not sources.is_dir():
        return False
    built = Path(extension.__file__ or "").stat().st_mtime
    return any(source.stat().st_mtime > built for source in sources.rglob("*.*"))


def _load_cuda(built: ModuleType | None) -> tuple[bool, str]:
    """Whether the CUDA library loads. It needs no `_C`, and may have been built elsewhere."""
    library = PACKAGE / "_C_cuda.so"
    if not library.exists():
        if built is None:
            return False, "the CUDA kernels come with pama_ops._C"
        return False, f"the CUDA kernels were {built.cuda}" if built.cuda else f"no {library}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return False, f"pama_ops/_C_cuda.so does not load: {error.__cause__ or error}"
    return True, ""


def load() -> None:
    """Register the compiled kernels over the plain-PyTorch defaults."""
    global extension, why_no_cpu, has_cuda, why_no_cuda
    extension, why_no_cpu = _load_cpu()
    has_cuda, why_no_cuda = _load_cuda(extension)
    if extension is None:
        slow = "every op runs its slow plain-PyTorch definition instead"
        if has_cuda:
            slow = "CPU tensors run the slow plain-PyTorch definitions"
        message = (
            f"{why_no_cpu}: {slow}. {how_to_have_kernels()} PAMA_STRICT=1 makes this an error."
        )
    elif not has_cuda and torch.cuda.is_available():
        message = (
            f"{why_no_cuda}: CUDA tensors run the slow plain-PyTorch definitions. "
            "See python -m pama_ops info."
        )
    else:
        return
    if os.environ.get("PAMA_STRICT") == "1":
        raise ImportError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)


extension: ModuleType | None = None
why_no_cpu = why_no_cuda = "not loaded yet"
has_cuda = False
