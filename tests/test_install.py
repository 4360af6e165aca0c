"""Installs as strangers do them, of a package whose module compiles in a second."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import setuptools
import source_tree
from source_tree import ROOT, Environment
from test_package import architectures_of

from pama_ops import _library

FLAG = "import pama_ops._C as c; print(c.flag)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return source_tree.small(tmp_path / "a source+folder")


@pytest.fixture
def here(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def without_compiler(tmp_path: Path) -> str:
    """A PATH on which there is nothing."""
    (tmp_path / "nothing").mkdir(exist_ok=True)
    return str(tmp_path / "nothing")


def test_an_sdist_holds_what_builds_the_package(tmp_path):
    source = source_tree.copy(tmp_path / "source")
    # What lies about in a folder that is worked in.
    for stray in "csrc/cpu/gae.o", "csrc/gae.h.orig", "pama_ops/_C_cuda.so", "pama_ops/x.pyc":
        (source / stray).write_text("")
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('dist')"],
        cwd=source, capture_output=True, check=True,
    )  # fmt: skip
    (archive,) = (source / "dist").iterdir()
    assert archive.name == f"pama_ops-{version()}.tar.gz"
    with tarfile.open(archive) as tar:
        held = {member.name.partition("/")[2] for member in tar if member.isfile()}
    made = {name for name in held if re.match(r"PKG-INFO|setup\.cfg|pama_ops\.egg-info/", name)}
    assert held - made == set(source_tree.tracked())


def version() -> str:
    text = (ROOT / "pama_ops" / "__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text)[1]


def test_a_wheel_leaves_no_trace_in_its_source_and_takes_none_from_it(source, here, tmp_path):
    """So that a source folder may be read-only, or be built by two at once."""
    (source / "pama_ops/_C_cuda.so").write_text("of an earlier build")
    (source / "build/lib/pama_ops").mkdir(parents=True)
    (source / "build/lib/pama_ops/gone.py").write_text("")
    before = files(source)
    run = here.install(source)
    assert run.returncode == 0, run.stdout
    assert files(source) == before
    installed = files(here.site / "pama_ops")
    assert not installed & {"_C_cuda.so", "gone.py", "_no_kernels.txt"}
    assert {"py.typed", "_C.pyi", "integrations/trl.py", "reference/pama.py"} <= installed
    assert any(re.match(r"_C\..*\.so", name) for name in installed)
    here.pip("uninstall", "--yes", "pama_ops")
    assert not [name for name in files(here.site) if "pama" in name]


def test_a_build_without_kernels_shows_in_what_pip_prints_and_at_import(source, here, tmp_path):
    run = here.install(source, PATH=without_compiler(tmp_path))
    assert f"Successfully installed pama_ops-{version()}+nokernels" in run.stdout
    run = here.run("-c", "import pama_ops", cwd=tmp_path)
    assert "built without kernels: no C++ compiler was found" in run.stderr
    assert "RuntimeWarning" in run.stderr
    run = here.run("-m", "pama_ops", "info", cwd=tmp_path)
    assert "built without kernels: no C++ compiler was found" in run.stdout
    assert "--no-cache-dir" in run.stdout
    run = here.install(source, PAMA_KERNELS="0")
    assert "+nokernels" in run.stdout
    assert "PAMA_KERNELS=0" in here.run("-c", "import pama_ops", cwd=tmp_path).stderr


def test_a_wheel_without_cuda_says_so_in_its_name(source, here):
    assert f"filename=pama_ops-{version()}-0cpu-cp3" in here.install(source).stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "CXX='no-such-compiler', but there is no no-such-compiler"),
        ({"CXX": "ccache-that-is-not g++"}, "there is no ccache-that-is-not"),
        ({"CXX": "g++ '"}, "cannot be taken apart"),
        ({"CXX": "-O2"}, "there is no program"),
        ({"PAMA_CUDA": "off"}, "PAMA_CUDA must be one of auto, 0, 1, got 'off'"),
        ({"PAMA_KERNELS": "no"}, "PAMA_KERNELS must be one of auto, 0, 1, got 'no'"),
        ({"PAMA_KERNELS": "0", "PAMA_CUDA": "1"}, "PAMA_CUDA=1, but no kernels can be built"),
        ({"PATH": "/nowhere", "PAMA_STRICT": "1"}, "PAMA_STRICT=1, but no kernels can be built"),
        ({"PATH": "/nowhere", "PAMA_KERNELS": "1"}, "no C++ compiler was found"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_an_error_of_one_line(
    source, here, environment, message
):
    run = here.install(source, **environment)
    assert run.returncode != 0
    assert re.search(rf"\[1 lines of output\]\s+pama_ops: .*{re.escape(message)}", run.stdout)


def test_without_isolation_what_the_build_lacks_is_named(source, here, tmp_path):
    """All of it, and a setuptools that is too old for pyproject.toml, as in a new environment."""
    (here.site / "packages.pth").unlink()
    for pattern in "setuptools", "setuptools-*", "_distutils_hack":
        for path in Path(setuptools.__file__).parents[1].glob(pattern):
            (here.site / path.name).symlink_to(path)
    (tmp_path / "g++").symlink_to(shutil.which("g++"))
    run = here.install(source, PATH=str(tmp_path))
    message = "pama_ops: torch, pybind11, cmake, ninja missing: pip install torch pybind11 cmake"
    assert re.search(rf"\[1 lines of output\]\s+{re.escape(message)}", run.stdout)
    script = "import runpy, setuptools as s; s.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    run = here.run("-c", script, cwd=source)
    assert "setuptools 77 or later is needed, found 65.5.0" in run.stderr


def test_a_compiler_that_fails_ends_the_install_and_names_the_way_out(source, here):
    (source / "csrc/module.cpp").write_text("#error no such luck\n")
    run = here.install(source)
    assert run.returncode != 0
    assert "no such luck" in run.stdout
    assert "PAMA_KERNELS=0" in run.stdout


def test_a_warning_stops_only_the_builds_of_the_tests(source, here):
    with (source / "csrc/module.cpp").open("a") as file:
        file.write("static void unused() {}\n")
    assert here.install(source).returncode == 0
    assert here.install(source, PAMA_WERROR="ON").returncode != 0


def test_cxx_may_hold_a_launcher_and_flags(source, here, tmp_path):
    log = tmp_path / "log"
    launcher = program(tmp_path / "launcher", f'echo "$@" >>{log}\nexec "$@"')
    run = here.install(
        source, CXX=f"{launcher} g++ -pthread '-DFLAG=\"a b\"'", CXXFLAGS="-DOTHER", MAX_JOBS="all"
    )
    assert run.returncode == 0, run.stdout
    assert here.run("-c", FLAG, cwd=tmp_path).stdout == "a b\n"
    assert re.search(r"g\+\+ .*-DOTHER.*module\.cpp", log.read_text())


def test_an_editable_build_starts_afresh_where_what_it_is_made_with_changes(source, tmp_path):
    """Flags that come and go, a folder that moves, an environment that is gone."""
    first = Environment(tmp_path / "first")

    def flag(where: Path, environment: Environment, **variables: str) -> str:
        run = environment.install(where, "--editable", **variables)
        assert run.returncode == 0, run.stdout
        return environment.run("-c", FLAG, cwd=tmp_path).stdout.strip()

    compiled = source / "build/cmake/CMakeFiles/_C.dir/csrc/module.cpp.o"
    assert flag(source, first) == "unset"
    at = compiled.stat().st_mtime_ns
    assert flag(source, first) == "unset"
    assert compiled.stat().st_mtime_ns == at
    assert flag(source, first, CXXFLAGS="-DFLAG='\"one\"'") == "one"
    assert flag(source, first, CXX="g++ -DFLAG='\"two\"'") == "two"
    moved = source.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "first")
    assert flag(moved, Environment(tmp_path / "second")) == "unset"


def test_an_editable_install_drops_the_kernels_that_it_is_not_to_have(source, here, tmp_path):
    assert here.install(source, "--editable").returncode == 0
    assert here.run("-c", FLAG, cwd=tmp_path).stdout == "unset\n"
    run = here.install(source, "--editable", PAMA_KERNELS="0")
    assert "+nokernels" in run.stdout
    assert "PAMA_KERNELS=0" in here.run("-c", "import pama_ops", cwd=tmp_path).stderr
    assert here.install(source, "--editable").returncode == 0
    assert here.run("-c", FLAG, cwd=tmp_path).stdout == "unset\n"


def test_info_says_when_the_kernels_are_older_than_their_sources(source, here, tmp_path):
    assert here.install(source, "--editable").returncode == 0
    older = "The kernels are older than their sources"
    assert older not in here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout
    (source / "csrc/core/new.h").write_text("")  # as git pull does
    assert older in here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout
    assert here.install(source, "--editable").returncode == 0
    assert older not in here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout


@pytest.mark.parametrize("options", [(), ("--editable",)], ids=["wheel", "editable"])
def test_a_source_folder_that_hides_an_install_says_so(source, here, tmp_path, options):
    assert here.install(source, *options).returncode == 0
    clone = source_tree.small(tmp_path / "clone")
    run = here.run("-m", "pama_ops", "info", cwd=clone)
    installed = source / "pama_ops" if options else here.site / "pama_ops"
    for text in run.stdout, run.stderr:
        assert f"imported from its source folder, {clone / 'pama_ops'}, which was not built" in text
        assert f"An install that has kernels is in {installed}" in text
        assert "compiler" not in text
    run = here.run("-m", "pama_ops", "info", cwd=tmp_path)
    assert f"{version()} in {installed}" in run.stdout
    assert "built by" in run.stdout


def test_a_source_folder_that_was_not_built_says_how(source, here):
    run = here.run("-m", "pama_ops", "info", cwd=source)
    assert f"build it with `pip install -e .` in {source}" in run.stdout


def architectures(tmp_path: Path, wanted: str) -> list[str]:
    """What cmake/architectures.cmake makes of a list, for an nvcc that knows no 15.0."""
    nvcc = program(tmp_path / "nvcc", 'case "$*" in *compute_150*) exit 1 ;; esac')
    script = tmp_path / "script.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/architectures.cmake")\n'
        f'set(Python3_EXECUTABLE "{sys.executable}")\n'
        f'parse_architectures("{nvcc}" "{wanted}" built cmake left_out)\n'
        'message("${built}|${cmake}|${left_out}")\n'
    )
    path = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
    run = subprocess.run(
        [path, f"-DCMAKE_BINARY_DIR={tmp_path}", "-P", str(script)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    return run.stderr.rstrip("\n").split("|")


@pytest.mark.parametrize(
    ("wanted", "built", "cmake"),
    [
        ("8.0;9.0a;10.0+PTX", "8.0;9.0a;10.0+PTX", "80-real;90a-real;100-real;100-virtual"),
        ("8.0 8.9+PTX", "8.0;8.9+PTX", "80-real;89-real;89-virtual"),
        ("Ampere;Hopper", "8.0;8.6+PTX;9.0+PTX",
         "80-real;86-real;86-virtual;90-real;90-virtual"),
        ("Ampere+Tegra  Ada", "8.7;8.9+PTX", "87-real;89-real;89-virtual"),
        ("Blackwell", "10.0;10.3;12.0;12.1+PTX",
         "100-real;103-real;120-real;121-real;121-virtual"),
        ("8.0;8.0+PTX;8.0", "8.0;8.0+PTX", "80-real;80-virtual"),
    ],
)  # fmt: skip
def test_architectures_are_named_as_for_torch(tmp_path, wanted, built, cmake):
    assert architectures(tmp_path, wanted) == [built, cmake, ""]


def test_architectures_that_cannot_be_built_are_left_out(tmp_path):
    built, cmake, left_out = architectures(tmp_path, "Turing;7.0;8.0;15.0;sm_80;8,0")
    assert (built, cmake) == ("8.0", "80-real")
    old = "(older than 8.0, the oldest that the kernels can use)"
    assert left_out.split(";") == [
        f"7.5+PTX {old}", f"7.0 {old}", f"15.0 (unknown to {tmp_path / 'nvcc'})",
        "sm_80 (no architecture)", "8,0 (no architecture)",
    ]  # fmt: skip
    assert architectures(tmp_path, "Kepler")[0] == ""


@pytest.mark.skipif(
    bool(_library.extension and _library.extension.cuda), reason="needs nvcc at build time"
)
def test_an_install_holds_the_architectures_that_it_names(source, here, tmp_path):
    asked = "Turing;8.0;8.9+PTX"
    assert here.install(source, PAMA_CUDA="1", TORCH_CUDA_ARCH_LIST=asked).returncode != 0
    run = here.install(source, PAMA_CUDA="auto", TORCH_CUDA_ARCH_LIST=asked)
    assert f"filename=pama_ops-{version()}-cp3" in run.stdout
    code, ptx = architectures_of(here.site / "pama_ops/_C_cuda.so")
    assert (code, ptx) == ({80, 89}, {89})
    info = here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout
    assert re.search(r"^architectures +8\.0 8\.9\+PTX$", info, re.MULTILINE)
    assert re.search(r"^left out +7\.5\+PTX \(older than 8\.0", info, re.MULTILINE)
    run = here.install(source, PAMA_CUDA="auto", TORCH_CUDA_ARCH_LIST="7.5")
    assert "0cpu" in run.stdout
    assert "asks for 7.5 (older than" in here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout
