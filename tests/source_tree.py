"""A source folder to install from whose kernels take no time to compile, and pip to install it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
# What an sdist must hold: what is installed, what builds it, and what says whose it is.
NEEDED = [
    "CHANGELOG.md", "CITATION.cff", "CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md",
    "pyproject.toml", "setup.py", "cmake", "csrc", "pama_ops", "scripts/build_paths.py",
]  # fmt: skip

MODULE = """
#include <Python.h>
#include "build_info.h"
#ifndef FLAG
#define FLAG "unset"
#endif
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "compiler", __VERSION__);
  PyModule_AddStringConstant(module, "torch_built_with", PAMA_TORCH_VERSION);
  PyModule_AddStringConstant(module, "cuda", PAMA_CUDA_STATUS);
  PyModule_AddStringConstant(module, "cuda_architectures", PAMA_CUDA_ARCHITECTURES);
  PyModule_AddStringConstant(module, "cuda_left_out", PAMA_CUDA_LEFT_OUT);
  PyModule_AddStringConstant(module, "flag", FLAG);
  return module;
}
"""


def tracked() -> list[str]:
    """The files of the repository that an sdist must hold."""
    run = subprocess.run(
        ["git", "ls-files", *NEEDED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def copy(folder: Path) -> Path:
    """The files of `tracked`, as in a fresh clone."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def small(folder: Path) -> Path:
    """The same package and build, of a module that holds no kernels."""
    copy(folder)
    for kernels in "cpu", "cuda":
        for file in (folder / "csrc" / kernels).iterdir():
            file.unlink()
    (folder / "csrc/module.cpp").write_text(MODULE)
    (folder / "csrc/cuda/nothing.cu").write_text("__global__ void nothing() {}\n")
    return folder


class Environment:
    """A virtual environment that sees the packages of this one, but not this pama_ops."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "packages.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")

    def pip(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Pip of this environment's Python, with no CUDA unless it is asked for."""
        unset = {"CXX", "CXXFLAGS", "PAMA_TESTING", "PAMA_WERROR", "PAMA_STRICT", "MAX_JOBS"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**inherited, "PAMA_CUDA": "0", **environment},
        )

    def install(
        self, source: Path, *options: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Pip's installation without isolation."""
        fixed = ["--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
        return self.pip("install", *fixed, *options, str(source), **environment)

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """This environment's Python."""
        return subprocess.run(
            [str(self.python), *arguments], cwd=cwd, capture_output=True, text=True, check=False
        )
