"""Builds the extension by asking CMake, which holds the whole build (see CMakeLists.txt).

The environment may say what torch's own extensions and CMake read (CXX, CXXFLAGS, CUDA_HOME,
TORCH_CUDA_ARCH_LIST, MAX_JOBS, ...), and

  PAMA_KERNELS=auto|0|1  build the kernels if there is a C++ compiler | never | or fail
  PAMA_CUDA, PAMA_TESTING, PAMA_WERROR: see CMakeLists.txt

A compiler that is there and fails ends the install: only where there is none does the package
install without kernels, under a version that says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# That of a new virtual environment is older, and pip looks at no requirement without isolation.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"pama_ops: setuptools 77 or later is needed, found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or leave out --no-build-isolation"
    )

ROOT = Path(__file__).resolve().parent
IN_PLACE = ROOT / "build" / "cmake"  # what an editable install builds, and rebuilds in seconds
STAMP = "made_with.json"
REASON = "_no_kernels.txt"  # in the package, where pama_ops/_library.py reads it


def setting(name: str, *allowed: str) -> str:
    """A variable of the environment; empty is unset, which is the first of its values."""
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise SystemExit(f"pama_ops: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


# --- the tools -----------------------------------------------------------------------------------


def search_path() -> str:
    """The PATH, after the CMake and the ninja that this Python can import, before its own scripts.

    pip installs both for an isolated build, and they need not be on the PATH of a virtual
    environment that was not activated.
    """
    folders = []
    for module, constant in ("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR"):
        if importlib.util.find_spec(module):
            folders.append(getattr(__import__(module), constant, ""))
    folders += [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    return os.pathsep.join(folder for folder in folders if folder)


class Compiler(NamedTuple):
    """CXX, e.g. "ccache g++ -pthread", taken apart."""

    launcher: list[str]
    program: str
    flags: list[str]


def find_compiler(path: str) -> Compiler | None:
    """What CXX names, or else the system's; None where there is none."""
    asked = os.environ.get("CXX", "").strip()
    if not asked:
        found = (shutil.which(name, path=path) for name in ("c++", "g++", "clang++"))
        program = next(filter(None, found), None)
        return Compiler([], program, []) if program else None
    try:
        words = [asked] if shutil.which(asked, path=path) else shlex.split(asked)
    except ValueError as error:
        raise SystemExit(f"pama_ops: CXX={asked!r} cannot be taken apart: {error}") from None
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    programs = [shutil.which(word, path=path) for word in words[:first_flag]]
    if not programs or None in programs:
        missing = words[programs.index(None)] if programs else "program"
        raise SystemExit(
            f"pama_ops: CXX={asked!r}, but there is no {missing}: name a C++ compiler, or unset CXX"
        )
    return Compiler(
        [str(program) for program in programs[:-1]], str(programs[-1]), words[first_flag:]
    )


def what_is_missing(path: str) -> list[str]:
    """What pip would have installed for an isolated build."""
    missing = [name for name in ("torch", "pybind11") if importlib.util.find_spec(name) is None]
    for tool, names in ("cmake", ["cmake"]), ("ninja", ["ninja", "ninja-build", "samu"]):
        if not any(shutil.which(name, path=path) for name in names):
            missing.append(tool)
    return missing


def why_no_kernels(path: str) -> str:
    """Why this build is to have no kernels; empty if it is to have them."""
    setting("PAMA_CUDA", "auto", "0", "1")  # refused here, if it is to be refused
    if setting("PAMA_KERNELS", "auto", "0", "1") == "0":
        reason = "PAMA_KERNELS=0"
    elif sys.platform != "linux":
        reason = f"kernels are built on Linux, and this is {sys.platform}"
    elif find_compiler(path) is None:
        reason = "no C++ compiler was found (c++, g++, clang++)"
    else:
        missing = what_is_missing(path)
        if missing:
            raise SystemExit(
                f"pama_ops: {', '.join(missing)} missing: pip install {' '.join(missing)}, "
                "or leave out --no-build-isolation, or install without kernels by PAMA_KERNELS=0"
            )
        return ""
    insists = [f"{name}=1" for name in ("PAMA_KERNELS", "PAMA_CUDA", "PAMA_STRICT")
               if os.environ.get(name) == "1"]  # fmt: skip
    if insists:
        raise SystemExit(f"pama_ops: {insists[0]}, but no kernels can be built: {reason}")
    return reason


# --- the build directory -------------------------------------------------------------------------


def says(program: str | None) -> str:
    """Which program it is, for it may be replaced where it stands."""
    if program is None or not Path(program).exists():
        return "none"
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return f"{program}: {run.stdout}"


def contents(module: str) -> str:
    """Where a module is, and its version."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "none"
    files = [Path(spec.origin).with_name(name) for name in ("version.py", "_version.py")]
    return "\n".join([spec.origin, *(file.read_text() for file in files if file.exists())])


def fingerprint(compiler: Compiler, path: str) -> str:
    """What a build directory is made with and cannot change: for another, CMake starts afresh."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    programs = [*(shutil.which(name, path=path) for name in ("cmake", "ninja", "nvcc")),
                *(f"{home}/bin/nvcc" for home in homes if home), compiler.program]  # fmt: skip
    # PAMA_TESTING and PAMA_WERROR are passed each time, and CMake follows them.
    read = re.compile(
        r"(CXX|CPP|LD|CUDA)FLAGS|CUDA_HOME|CUDA_PATH|CUDACXX|CUDAHOSTCXX|PYTORCH_NVCC|NVCC_\w+"
        r"|CMAKE_\w+|TORCH_CUDA_ARCH_LIST|PAMA_CUDA|C(PLUS_INCLUDE_)?PATH|LIBRARY_PATH|COMPILER_PATH"
    )
    made_with = {
        "source": str(ROOT),
        "python": f"{sys.executable} {sys.version}",
        "modules": [contents("torch"), contents("pybind11")],
        "programs": [says(program) for program in programs],
        "compiler": compiler,
        "environment": {n: text for n, text in os.environ.items() if read.fullmatch(n) and text},
    }
    return json.dumps(made_with, indent=1, sort_keys=True)


@contextmanager
def build_directory(made_with: str, editable: bool) -> Iterator[tuple[Path, bool]]:
    """Where CMake builds, and whether that is the directory of the editable install.

    A wheel takes that one's objects if they were made with the same, and leaves it alone otherwise:
    its own directory is temporary, as is much of what pip's isolated builds are made with.
    """

    def fits() -> bool:
        return (IN_PLACE / STAMP).exists() and (IN_PLACE / STAMP).read_text() == made_with

    if not editable and not (fits() and os.access(IN_PLACE, os.W_OK)):
        with tempfile.TemporaryDirectory(prefix="pama_ops-cmake-") as folder:
            yield Path(folder), False
        return
    import fcntl  # not on Windows, which builds nothing

    IN_PLACE.parent.mkdir(exist_ok=True)
    with (IN_PLACE.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two installs at once take turns
        if not fits():
            shutil.rmtree(IN_PLACE, ignore_errors=True)
            IN_PLACE.mkdir()
        yield IN_PLACE, True


def options_of_tests() -> list[str]:
    """PAMA_TESTING, and PAMA_WERROR, which by default is the same."""
    testing = setting("PAMA_TESTING", "OFF", "ON", "0", "1")
    warnings = setting("PAMA_WERROR", testing, "OFF", "ON", "0", "1")
    return [f"-DPAMA_TESTING={testing}", f"-DPAMA_WERROR={warnings}"]


class CMake(NamedTuple):
    """A build directory, and what is run in it."""

    folder: Path
    output: Path
    compiler: Compiler
    path: str

    def configure(self, options: list[str]) -> None:
        """Make the build files, of new sources too."""
        launcher = ";".join(self.compiler.launcher)
        self._run(
            *("-S", str(ROOT), "-B", str(self.folder), "-G", "Ninja"),
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPAMA_OUTPUT={self.output}",
            f"-DPAMA_CUDA={setting('PAMA_CUDA', 'auto', '0', '1')}",
            f"-DTORCH_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
            *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []),
            *options,
        )

    def build(self, target: str) -> None:
        """Compile what has changed."""
        jobs = os.environ.get("MAX_JOBS", "")
        if not jobs.isdigit() or int(jobs) == 0:
            jobs = str(len(os.sched_getaffinity(0)))
        self._run("--build", str(self.folder), "--target", target, "-j", jobs)

    def _run(self, *arguments: str) -> None:
        flags = [shlex.join(self.compiler.flags), os.environ.get("CXXFLAGS", "")]
        environment = {
            **os.environ,
            "PATH": self.path,
            "CXX": self.compiler.program,
            "CXXFLAGS": " ".join(filter(None, flags)),
        }
        if subprocess.run(["cmake", *arguments], env=environment, check=False).returncode != 0:
            raise SystemExit(
                f"pama_ops: cmake {' '.join(arguments[:2])} failed; see above. PAMA_CUDA=0 "
                "installs without the CUDA kernels, PAMA_KERNELS=0 without any (and is slow)."
            )


class CMakeBuild(build_ext):
    """One extension, `pama_ops._C`; CMake puts `_C_cuda.so` beside it where nvcc is found."""

    def build_extension(self, ext: Extension) -> None:
        """Build the kernels, or leave a note in the package that says why there are none."""
        name = Path(self.get_ext_filename(ext.name)).name
        in_source = ROOT / "pama_ops"
        package = in_source if self.editable_mode else Path(self.build_lib, "pama_ops").resolve()
        package.mkdir(parents=True, exist_ok=True)
        path = search_path()
        reason = why_no_kernels(path)
        # What an earlier build left in an editable package.
        (package / REASON).unlink(missing_ok=True)
        if reason:
            (package / name).unlink(missing_ok=True)
            (package / "_C_cuda.so").unlink(missing_ok=True)
            (package / REASON).write_text(f"{reason}\n", encoding="utf-8")
            print(f"pama_ops: {reason}: kernels are not built, and ops will run in plain PyTorch")
            return
        compiler = find_compiler(path)
        assert compiler is not None
        made_with = fingerprint(compiler, path)
        with build_directory(made_with, self.editable_mode) as (build, shared):
            output = in_source if shared else package
            cmake = CMake(build, output, compiler, path)
            # A wheel built from the objects of the editable install leaves the tests' there.
            cmake.configure(options_of_tests() if self.editable_mode or not shared else [])
            (build / STAMP).write_text(made_with)
            cmake.build("all" if self.editable_mode else "kernels")
            why_no_cuda = (build / "cuda_status").read_text(encoding="utf-8").strip()
            if output != package:
                shutil.copy2(output / name, package)
                if not why_no_cuda:
                    shutil.copy2(output / "_C_cuda.so", package)
        (package / name).touch()  # newer than its sources, though it may not have been linked again
        if why_no_cuda:
            (package / "_C_cuda.so").unlink(missing_ok=True)
            # pip hides what a build prints, and shows the name of the wheel.
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None and not wheel.build_number:
                wheel.build_number = "0cpu"


# --- the package ---------------------------------------------------------------------------------

(version,) = re.findall(
    r'^__version__ = "(.+)"$', (ROOT / "pama_ops/__init__.py").read_text(), re.M
)
commands = set(sys.argv)
if commands & {"dist_info", "bdist_wheel", "editable_wheel"} and why_no_kernels(search_path()):
    version += "+nokernels"  # in pip's last line, and in pip list

options = {}
if commands & {"egg_info", "bdist_wheel"}:
    # What setuptools writes on the way to a wheel: not in the source folder, which may be
    # read-only, hold what an earlier build left, or be that of another build at this moment.
    scratch = tempfile.TemporaryDirectory(prefix="pama_ops-")
    options = {
        "build": {"build_base": f"{scratch.name}/build"},
        "bdist_wheel": {"bdist_dir": f"{scratch.name}/wheel"},
        "egg_info": {"egg_base": scratch.name},
    }

# Optional, since the package works without: setuptools must not look for a file that is elsewhere.
extension = Extension("pama_ops._C", sources=[], optional=True)
setup(
    version=version,
    ext_modules=[extension],
    cmdclass={"build_ext": CMakeBuild},
    options=options,
)
