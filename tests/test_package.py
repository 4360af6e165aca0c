"""What a stranger meets first: README, docstrings, the command line, errors of a build."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_calls import WITHOUT_KERNELS, calls, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import pama_ops as po
from pama_ops import _dispatch, _library
from pama_ops.__main__ import main

ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in po.__all__ if name.islower()]


def test_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logp"].grad.shape == (8, 32)


def extras() -> dict[str, list[str]]:
    tomllib = pytest.importorskip("tomllib", reason="wants Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return settings["project"]["optional-dependencies"]


def test_importing_the_package_imports_no_extra():
    script = (
        "import sys, pama_ops, pama_ops.integrations\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "pama_ops" in imported
    wanted = {re.match(r"[\w-]+", entry)[0] for entries in extras().values() for entry in entries}
    modules = {name.replace("-", "_") for name in wanted} | {"gymnasium", "sklearn"}
    assert {"trl", "verl", "torchjd", "transformers", "accelerate", "lightning"} < modules
    assert not imported & modules


def test_extras_are_those_that_the_texts_name():
    texts = [*(ROOT / "docs").glob("*.md"), *(ROOT / "pama_ops").rglob("*.py")]
    texts += [ROOT / "README.md", *(ROOT / "examples").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    named = {name for text in texts for name in re.findall(r"pama_ops\[(\w+)\]", text.read_text())}
    assert {"trl", "verl", "torchjd", "transformers", "accelerate", "lightning"} <= named
    assert named <= set(extras())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_hold_what_a_user_needs(name):
    doc = getattr(po, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Complexity", "Source", ">>>"):
        assert section in doc, f"{name} lacks {section}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_examples_run(name):
    names = {"torch": torch, "po": po, **{n: getattr(po, n) for n in FUNCTIONS}}
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(recurse=False).find(getattr(po, name), name, globs=names):
        runner.run(test)
    assert runner.summarize().failed == 0


def test_info_says_what_is_compiled(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", out, re.MULTILINE)
    assert re.search(r"CPU kernels +built by", out)


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["infos"])
    assert "invalid choice: 'infos'" in capsys.readouterr().err


def test_without_kernels_the_package_works_and_says_so_once():
    script = (
        "import sys; sys.modules['pama_ops._C'] = None\n"
        "import torch, pama_ops as po\n"
        "print(po.gae(torch.ones(1, 1, 2), torch.zeros(1, 1, 2)).advantages.tolist())\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("[[[1.95")
    said = "CPU tensors run the slow" if _library.has_cuda else "every op runs its slow"
    assert run.stderr.count(f"{said} plain-PyTorch definition") == 1
    strict = {**os.environ, "PAMA_STRICT": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=strict, check=False
    )
    assert run.returncode != 0
    assert "ImportError: " in run.stderr


WHY_NOT = bool(_library.extension and _library.extension.cuda)
needs_nvcc = pytest.mark.skipif(
    WHY_NOT, reason="needs nvcc at build time: NO CUDA KERNEL WAS COMPILED, let alone loaded"
)
# Also one that was built apart from `_C`.
needs_cuda_library = pytest.mark.skipif(
    WHY_NOT and not _library.has_cuda, reason="needs pama_ops/_C_cuda.so: NO CUDA KERNEL WAS LOADED"
)


@needs_cuda_library
def test_the_cuda_library_loads_and_registers_its_kernels():
    assert _library.has_cuda, _library.why_no_cuda
    missing = [
        name
        for name in _dispatch.SCHEMAS
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pama_ops::{name}", "CUDA")
    ]
    assert set(missing) == WITHOUT_KERNELS


@needs_nvcc
def test_the_cuda_library_holds_every_architecture_of_the_build():
    """Each as machine code, the last of the default ones also as PTX for what is yet to come."""
    wanted = _library.extension.cuda_architectures.split()
    code, ptx = architectures_of(_library.PACKAGE / "_C_cuda.so")
    assert code == {int(re.sub(r"\D", "", entry)) for entry in wanted}
    assert ptx == {int(re.sub(r"\D", "", entry)) for entry in wanted if entry.endswith("+PTX")}


@needs_cuda_library
def test_the_cuda_library_serves_a_python_that_has_no_other_kernels(tmp_path):
    """It is built for no Python: where `_C` was built for another, CUDA tensors have kernels."""
    package = tmp_path / "pama_ops"
    package.mkdir()
    for file in _library.PACKAGE.iterdir():
        if file.suffix != ".so" or file.name == "_C_cuda.so":
            (package / file.name).symlink_to(file)
    (package / "_C.cpython-39-x86_64-linux-gnu.so").write_text("of another Python")
    script = (
        "import torch, pama_ops as po\n"
        "from pama_ops import _dispatch, _library\n"
        f"assert _library.PACKAGE.samefile({str(package)!r})\n"
        "assert _library.extension is None and _library.has_cuda\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(sorted(x for x in _dispatch.SCHEMAS if not has(f'pama_ops::{x}', 'CUDA')))\n"
        "print(po.gae(torch.ones(1, 1, 2), torch.zeros(1, 1, 2)).advantages.tolist())\n"
        "from pama_ops.__main__ import main\n"
        "main(['info'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    missing, advantages, *info = run.stdout.splitlines()
    assert missing == str(sorted(WITHOUT_KERNELS))
    assert advantages.startswith("[[[1.95")
    assert run.stderr.count("CPU tensors run the slow plain-PyTorch definitions") == 1
    assert re.search(r"^CUDA kernels +loaded$", "\n".join(info), re.MULTILINE)
    assert any(line.startswith("No compiled CPU kernels: ") for line in info)


@needs_cuda_library
def test_the_cuda_library_asks_for_no_python_and_no_recent_libc():
    """It can be brought to another Python, and to a libc as old as 2.34."""
    if shutil.which("objdump") is None:
        pytest.skip("wants objdump, of binutils")
    table = subprocess.run(
        ["objdump", "-T", _library.PACKAGE / "_C_cuda.so"], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    symbols = [line.split()[-1] for line in table.splitlines() if "*UND*" in line]
    assert "aoti_torch_get_current_cuda_stream" in symbols
    assert not [name for name in symbols if re.match(r"_?Py[A-Z_]", name)]
    versions = {tuple(map(int, x.split("."))) for x in re.findall(r"GLIBC_([\d.]+)", table)}
    assert max(versions) <= (2, 34)


def architectures_of(library: Path) -> tuple[set[int], set[int]]:
    """What machine code and what PTX a library holds, by the headers of its fat binaries.

    A fat binary: magic number, version, size of this header, size of the entries; each entry: kind,
    version, size of its header, size of its payload, and at byte 28 the architecture.
    """
    image = library.read_bytes()
    code: set[int] = set()
    ptx: set[int] = set()
    for fat in re.finditer(re.escape(struct.pack("<IHH", 0xBA55ED50, 1, 16)), image):
        (size,) = struct.unpack_from("<Q", image, fat.start() + 8)
        at, end = fat.start() + 16, fat.start() + 16 + size
        while at < end:
            kind, _, header, payload = struct.unpack_from("<HHIQ", image, at)
            (architecture,) = struct.unpack_from("<I", image, at + 28)
            {1: ptx, 2: code}[kind].add(architecture)
            at += header + payload
    return code, ptx


@pytest.mark.parametrize("name", sorted(_dispatch.SCHEMAS.keys() - WITHOUT_KERNELS))
def test_every_op_passes_opcheck(name):
    """With each of the options that tests/op_calls.py gives it; tests of an op add theirs."""
    mine = [arguments for other, arguments in calls() if other == name]
    assert mine
    for arguments in mine:
        torch.library.opcheck(getattr(torch.ops.pama_ops, name).default, arguments)


@needs_cuda_library
def test_fake_cuda_tensors_pass_through_every_op():
    """Shapes, strides and dtypes on a GPU that is not there are those of the CPU's results."""
    real = calls()
    with FakeTensorMode() as mode:
        for name, arguments in real:
            op = getattr(torch.ops.pama_ops, name).default
            here = tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            there = tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device="cuda"), here)
            for on_cpu, on_gpu in zip(run(op, here), run(op, there), strict=True):
                assert on_gpu.device.type == "cuda", name
                assert on_gpu.dtype == on_cpu.dtype, name
                assert on_gpu.shape == on_cpu.shape, name
                assert on_gpu.stride() == on_cpu.stride(), name


def configure(
    tmp_path: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja",
               f"-DPython3_EXECUTABLE={sys.executable}", *options]  # fmt: skip
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, **environment},
    )


def fake_nvcc(tmp_path: Path) -> Path:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: unsupported host compiler' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc


def test_an_unfit_nvcc_is_an_error_only_when_cuda_is_insisted_on(tmp_path):
    nvcc = fake_nvcc(tmp_path)
    run = configure(tmp_path, f"-DNVCC={nvcc}", "-DPAMA_CUDA=1")
    assert run.returncode != 0
    message = f"not built: {nvcc} cannot compile C++20"
    assert message in " ".join(run.stderr.split())
    assert "unsupported host compiler" in run.stderr
    run = configure(tmp_path, f"-DNVCC={nvcc}", "-DPAMA_CUDA=auto")
    assert run.returncode == 0
    assert message in run.stdout


def test_cuda_can_be_forbidden(tmp_path):
    run = configure(tmp_path, "-DPAMA_CUDA=0")
    assert run.returncode == 0
    assert "CUDA kernels not built: PAMA_CUDA=0" in run.stdout


def test_unknown_architectures_are_left_out(tmp_path):
    run = configure(tmp_path, "-DTORCH_CUDA_ARCH_LIST=1.0", "-DPAMA_CUDA=1")
    assert run.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST='1.0'" in run.stderr or "no nvcc was found" in run.stderr


def test_a_missing_compiler_is_named_in_one_line():
    environment = {**os.environ, "CXX": "no-such-compiler"}
    run = subprocess.run(
        ["sh", str(ROOT / "scripts/check_tools.sh"), sys.executable],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert run.stderr == ("pama_ops: a C++ compiler is missing: install g++ (or set CXX)\n")


def test_make_builds_again_after_any_source_has_changed():
    """What a change does not make newer than the stamp is tested as it was before."""
    database = subprocess.run(
        ["make", "-pn", "help"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout
    watched = re.search(r"^SOURCES := (.*)$", database, re.MULTILINE)
    assert watched is not None
    sources = {str(x.relative_to(ROOT)) for x in (ROOT / "csrc").rglob("*.*") if x.is_file()}
    assert sources <= set(watched[1].split())
