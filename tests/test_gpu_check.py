"""The scripts of `make gpu`, as far as they go without a card: with the CPU in its place."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from op_calls import WITHOUT_KERNELS

from pama_ops import _dispatch, reference

ROOT = Path(__file__).parent.parent
SHAPES = [(33, 8), (8,), (4096,)]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs main() of a script of benchmarks/gpu on little, and returns its rows."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu"))
    monkeypatch.setattr(sys, "path", sys.path)  # measure.py adds to it
    model_shapes = importlib.import_module("model_shapes")
    monkeypatch.setattr(model_shapes, "MODELS", {"tiny": SHAPES})

    def run(name: str, *arguments: str, **constants: object) -> tuple[dict, Path]:
        module = importlib.import_module(name)
        constants.setdefault("MODELS", model_shapes.MODELS)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value, raising=False)
        results = tmp_path / f"{name}.json"
        options = ["--device", "cpu", "--seconds", "0", "--results", str(results)]
        monkeypatch.setattr(sys, "argv", [name, *options, *arguments])
        module.main()
        return json.loads(results.read_text()), results

    return run


def test_the_headline_has_every_method_a_page_and_what_is_on_paper(script):
    pytest.importorskip("torchjd", reason="wants torchjd")
    found, path = script("headline", TOKENS=(4, 16))
    assert found["where"]["processor"]
    assert found["where"]["copy GB/s"] > 0
    methods = {row["method"][:3] for row in found["rows"] if row["ms"] > 0}
    assert methods == {"(a)", "(b)", "(c)", "(d)"}
    assert {row["model"] for row in found["on_paper"]} == {"70B", "1T"}
    page = path.with_suffix(".md").read_text()
    assert page.index("| (d) token door |") < page.index("not measured") < page.index("| 1T |")


def test_gradients_are_shares_of_the_copy_rate(script):
    found, _ = script("gradients", "--models", "5000", "tiny", "--objectives", "2", "16")
    assert {row["op"] for row in found["rows"]} == {"gram", "combine", "step"}
    assert {row["d"] for row in found["rows"]} == {5000, 33 * 8 + 8 + 4096}
    assert all(row["share of copy"] > 0 for row in found["rows"])


def test_the_token_door_is_timed_beside_what_is_used_today(script):
    found, _ = script("tokens", N=2, B=3, T=16)
    timed = {row["what"] for row in found["rows"] if row.get("ms", 0) > 0}
    assert {"gae", "gae, a loop over tokens", "definition in plain PyTorch, token"} <= timed


def test_every_solver_is_timed(script):
    found, _ = script("solvers", "--objectives", "3")
    reference = importlib.import_module("pama_ops.reference")
    assert {row["weighting"] for row in found["rows"]} == set(reference.WEIGHTINGS)


def test_the_first_look_has_what_the_budgets_name(script):
    found, _ = script("gradients", "--quick", FIRST=("5000", "tiny"))
    assert {(row["n"], row["dtype"]) for row in found["rows"]} == {
        (n, dtype) for n in (2, 4, 8, 16, 32) for dtype in ("float32", "bfloat16")
    }
    # Every n and dtype of one length before the next: a run that is cut short has the first.
    assert [row["d"] for row in found["rows"]] == 30 * [5000] + 30 * [33 * 8 + 8 + 4096]
    found, _ = script("solvers", "--quick")
    assert [(row["weighting"], row["n"]) for row in found["rows"]] == [
        ("min_norm", 8),
        ("min_norm", 32),
    ]
    found, _ = script("tokens", "--quick", N=2, B=3, T=16)
    timed = {row["what"] for row in found["rows"]}
    reductions = {
        f"pama_advantages, {x}" for x in importlib.import_module("pama_ops").advantages.REDUCTIONS
    }
    assert timed == {
        "gae", "whiten", *reductions, "ppo_loss, forward and backward",
        "gae, whiten, pama_advantages",
    }  # fmt: skip


def test_what_a_peer_cannot_do_is_a_row_and_ends_nothing(script, monkeypatch):
    """J @ J.T of more columns than torch's matrix product takes, say."""
    headline = importlib.import_module("headline")

    def refuse(grads):
        def call():
            raise RuntimeError("gemm only supports k with the bounds [-2147483648, 2147483647]\nat")

        return call, call

    monkeypatch.setattr(headline, "on_host", refuse)
    found, path = script("headline", "--objectives", "2", TOKENS=(4, 16))
    (row,) = [row for row in found["rows"] if row["method"].startswith("(a)")]
    assert row["skipped"] == "torch: gemm only supports k with the bounds [-2147483648, 2147483647]"
    assert {row["method"][:3] for row in found["rows"]} == {"(a)", "(b)", "(c)", "(d)"}
    assert "gemm only supports" in path.with_suffix(".md").read_text()


REPORT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_cuda" name="test_good"/>
<testcase classname="tests.test_cuda" name="test_bad"><failure message="no"/></testcase>
<testcase classname="tests.test_cuda" name="test_far"><skipped message="needs two GPUs"/></testcase>
</testsuite></testsuites>"""


def test_the_record_of_a_run_is_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    report = importlib.import_module("gpu_report")
    (tmp_path / "tests.xml").write_text(REPORT)
    found = report.tests([str(tmp_path / "tests.xml"), str(tmp_path / "other.xml")])
    steps = {
        "ops_gram": {"status": "0", "seconds": 9.5},
        "ops_gae": {"status": "-6", "seconds": 3.0},
        "memcheck": {"status": "out of time", "seconds": 100.0},
    }
    report.table({"where": {"torch": "2.11"}, "steps": steps, "tests": {"test_cuda": found}})
    out = capsys.readouterr().out
    assert re.search(r"^torch +2.11$", out, re.MULTILINE)
    assert re.search(r"^ops_gram +ok +9.5 s$", out, re.MULTILINE)
    assert re.search(r"^ops_gae +FAILED \(-6\) +3.0 s$", out, re.MULTILINE)
    assert re.search(r"^memcheck +out of time +100.0 s$", out, re.MULTILINE)
    assert "'tests': 3, 'failures': 1, 'errors': 0, 'skipped': 1" in out
    assert "FAILED tests.test_cuda::test_bad" in out
    assert "skipped 1: needs two GPUs" in out
    assert "pytest wrote no other.xml" in out


def test_the_report_does_not_wait_for_torch():
    """It runs while a GPU waits, as does the script that calls it."""
    script = "import sys, gpu_check; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         cwd=ROOT / "scripts")  # fmt: skip
    assert run.stdout == "False\n"


# --- the stages, with other programs in the place of those that take minutes ----------------------

PROGRAM = r"""#!/bin/sh
# In the place of python: a step whose words hold $FAILS fails, one whose words hold $HANGS hangs.
case "$*" in *gpu_check.py*) exec "$REAL" "$@" ;; esac
echo "$@"
case "$*" in
*where*) echo '{"torch": "2.11", "architecture": "9.0a"}' ;;
*junitxml*) : ;;
esac
[ -z "$HANGS" ] || case "$*" in *$HANGS*) echo begun; trap '' INT; sleep 60 & wait; sleep 60 ;; esac
[ -z "$FAILS" ] || case "$*" in *$FAILS*) exit 7 ;; esac
exit 0
"""


class Check(NamedTuple):
    """scripts/gpu_check.sh in folders of its own, with PROGRAM as its Python."""

    folder: Path

    def command(self, *stages: str) -> list[str]:
        return ["sh", str(ROOT / "scripts/gpu_check.sh"), *stages]

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            **os.environ, "PYTHON": str(self.folder / "bin/python"), "REAL": sys.executable,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "GPU_CHECK_BUILD": str(self.folder / "build"), "OUT": str(self.folder / "out"),
            "GPU_CHECK_PREBUILT": str(self.folder / "prebuilt"), "GPU_CHECK_SECONDS": "20",
            "FAILS": "", "HANGS": "", **variables,
        }  # fmt: skip

    def run(self, *stages: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*stages), capture_output=True, text=True, check=False, timeout=120,
            env=self.environment(**variables),
        )  # fmt: skip

    def found(self) -> dict:
        """The record, out of the archive, which is all that comes back."""
        assert [x.name for x in (self.folder / "out").iterdir()] == ["gpu_results.tar.gz"]
        with tarfile.open(self.folder / "out/gpu_results.tar.gz") as tar:
            return json.load(tar.extractfile("results/gpu_check.json"))


@pytest.fixture
def check(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    gpu_check = importlib.import_module("gpu_check")
    for name in "bin", "prebuilt", "out":
        (tmp_path / name).mkdir()
    programs = {
        "python": PROGRAM,
        "cmake": "#!/bin/sh\nmkdir -p making && : >making/_C.cpython-312-x86_64-linux-gnu.so\n",
        "compute-sanitizer": '#!/bin/sh\necho "$@"\n',
        "ncu": '#!/bin/sh\necho "$@"\n',
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    brought = {"_C_cuda.so": "", "sources": gpu_check.sources(), "architecture": "9.0a"}
    for name, text in brought.items():
        (tmp_path / "prebuilt" / name).write_text(text)
    return Check(tmp_path)


def test_every_stage_leaves_its_steps_in_one_archive(check):
    (check.folder / "prebuilt/candidates").mkdir()
    (check.folder / "prebuilt/candidates/wide.so").touch()
    run = check.run("first", "test", "tools", "headline")
    assert run.returncode == 0, run.stdout + run.stderr
    steps = check.found()["steps"]
    gpu_ops = importlib.import_module("gpu_ops")
    expected = ["where", "info", *(f"ops_{group}" for group in gpu_ops.GROUPS), "gradients_first",
                "solvers_first", "tokens_first", "build_C", "test_cuda", "marked_cuda", "memcheck",
                "racecheck", "ncu", "ncu_details", "ncu_source", "initcheck", "synccheck",
                "headline", "ops_gram_wide", "ops_combine_wide", "gradients_wide",
                ]  # fmt: skip
    assert sorted(steps) == sorted(expected)
    assert {step["status"] for step in steps.values()} == {"0"}
    package = check.folder / "build/site/pama_ops"
    assert (package / "_C_cuda.so").resolve() == (check.folder / "prebuilt/_C_cuda.so").resolve()
    assert (package / "gradients.py").resolve() == ROOT / "pama_ops/gradients.py"
    assert [x.name for x in package.glob("_C.*.so")] == ["_C.cpython-312-x86_64-linux-gnu.so"]
    assert "where" not in run.stdout.partition("==== test ====")[2].partition("== results")[0]
    candidate = check.folder / "build/candidates/wide/pama_ops/_C_cuda.so"
    assert candidate.resolve() == check.folder / "prebuilt/candidates/wide.so"
    log = (check.folder / "build/results/memcheck.log").read_text()
    assert "--tool memcheck --kernel-name kns=pama" in log


@pytest.mark.parametrize("step", ["gpu_ops.py gram", "gradients.py", "provenance"])
def test_a_step_that_fails_hides_no_other(check, step):
    run = check.run("first", FAILS=step)
    assert run.returncode == 1
    failed = {name for name, x in check.found()["steps"].items() if x["status"] != "0"}
    names = {"gpu_ops.py gram": {"ops_gram"}, "gradients.py": {"gradients_first"}}
    if step in names:
        assert failed == names[step]
        assert "FAILED (7)" in run.stdout
    else:  # it does not even learn what card there is: then it builds for it, and goes on
        assert {"where"} <= failed
        assert check.found()["steps"]["tokens_first"]["status"] == "0"


def test_steps_that_hang_end_together_and_hide_no_other(check):
    run = check.run("first", HANGS="gpu_ops.py g", GPU_CHECK_SECONDS="9")
    assert run.returncode == 1
    steps = check.found()["steps"]
    for name in "ops_gram", "ops_gae", "ops_group":
        assert steps[name]["status"] == "out of time"
    assert steps["ops_weights"]["status"] == "0"  # which ran beside them
    assert steps["gradients_first"]["status"] == "left out: no time"
    assert max(step["seconds"] for step in steps.values()) < 9 + 6


def test_a_run_that_is_killed_leaves_what_it_found_and_no_process(check):
    run = subprocess.Popen(check.command("first"), env=check.environment(HANGS="gradients.py"),
                           stdout=subprocess.DEVNULL)  # fmt: skip
    log, archive = check.folder / "build/results/gradients_first.log", check.folder / "out"
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and "begun" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun = time.time()
        while not any(x.stat().st_mtime > begun for x in archive.glob("*.tar.gz")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    assert check.found()["steps"]["ops_gram"]["status"] == "0"
    mine = str(check.folder / "bin/python")
    deadline = time.monotonic() + 10
    while mine in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "a step outlived the script"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("sources", "of another tree", "is of other sources"),
        ("architecture", "8.0", "is for 8.0, this is 9.0a"),
        ("_C_cuda.so", None, "no library was built beforehand"),
    ],
)
def test_a_library_that_does_not_fit_is_built_there(check, file, text, why):
    path = check.folder / "prebuilt" / file
    path.unlink() if text is None else path.write_text(text)
    run = check.run("first")
    assert why in run.stdout
    assert check.found()["steps"]["buildkernels"]["status"] == "0"


def test_what_an_earlier_tree_showed_is_laid_aside(check):
    assert check.run("headline", PAMA_COMMIT="a").returncode == 0
    where = check.folder / "build/results/gpu_check.json"
    record = json.loads(where.read_text())
    record["where"]["tree"][1] = "other sources"
    where.write_text(json.dumps(record))
    assert check.run("headline").returncode == 0
    assert (check.folder / "build/results/earlier_0/headline.log").exists()
    assert set(check.found()["steps"]) == {"where", "headline"}


TESTS = """
import torch

def test_before():
    pass

def test_that_breaks_cuda(monkeypatch):
    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, refuse
    raise RuntimeError("an illegal memory access was encountered")

def test_after():
    assert not torch.cuda.is_initialized()
"""


def test_an_error_that_stays_with_cuda_ends_one_process(tmp_path, monkeypatch):
    """The tests that are left run in another one, and outcomes are kept as they come."""
    pytest.importorskip("xdist", reason="wants pytest-xdist")
    (tmp_path / "test_it.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "gpu_pytest", "-n", "1", "-q", "test_it.py",
         "-p", "no:cacheprovider", "--junitxml=report.xml"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "GPU_CHECK_LINES": "out.lines"},
    )  # fmt: skip
    assert re.search(r"2 passed", run.stdout), run.stdout
    assert "worker 'gw0' crashed while running 'test_it.py::test_that_breaks_cuda'" in run.stdout
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    found = importlib.import_module("gpu_report").tests([str(tmp_path / "out.xml")])
    assert found["pytest wrote no"] == ["out.xml"]
    assert "test_it.py::test_that_breaks_cuda" in found["failed"]
    lines = (tmp_path / "out.lines").read_text().splitlines()
    assert [x.split()[2] for x in lines if x.startswith("passed")] == [
        "test_it.py::test_before", "test_it.py::test_after"]  # fmt: skip


def test_an_unknown_stage_is_refused():
    command = ["sh", str(ROOT / "scripts/gpu_check.sh"), "bild"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "unknown stage bild; stages: first test tools headline rest demo, and pre" in run.stderr


def test_the_groups_hold_every_op(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    gpu_ops = importlib.import_module("gpu_ops")
    called = _dispatch.SCHEMAS.keys() - WITHOUT_KERNELS
    assert {gpu_ops.group_of(name) for name in called} == set(gpu_ops.GROUPS)
    weightings = {name for name in called if gpu_ops.group_of(name) == "weights"}
    assert weightings == {*reference.WEIGHTINGS, "duality_gap", "pama_weights"}


def test_the_profiled_kernels_are_there(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    profiled = re.compile(importlib.import_module("gpu_profile").KERNELS)
    sources = "".join(x.read_text() for x in (ROOT / "csrc/cuda").iterdir())
    found = {x[1] for x in map(profiled.fullmatch, re.findall(r"\w+_kernel(?=\()", sources)) if x}
    assert found == {"gram", "gae", "pama", "whiten"}


# --- the library that is built beforehand ---------------------------------------------------------


def test_the_stream_is_looked_up_where_the_loader_did_not_bind_it(tmp_path):
    """In a process that holds libtorch_cuda.so in a scope of its own, and in one that has none."""
    (tmp_path / "torch.cpp").write_text(
        "#include <cstdint>\n"
        'extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t d, void**) {\n'
        "  return d + 7;\n}\n"
    )
    (tmp_path / "main.cpp").write_text(
        '#include "cuda/current_stream.h"\n#include <cstdio>\n'
        "int main(int argc, char** argv) {\n"
        "  if (argc > 1 && !dlopen(argv[1], RTLD_LAZY | RTLD_LOCAL)) return 2;\n"
        "  auto f = pama::current_stream_function();\n"
        '  std::printf("%d", f ? f(1, nullptr) : -1);\n}\n'
    )
    library = tmp_path / "libtorch_cuda.so"
    compiler = os.environ.get("CXX", "c++").split()
    for words in (
        ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "torch.cpp", "-o", library.name],
        ["-std=c++20", f"-I{ROOT / 'csrc'}", "main.cpp", "-o", "main", "-ldl"],
    ):
        subprocess.run([*compiler, *words], check=True, cwd=tmp_path)

    def says(*arguments: str) -> str:
        command = [str(tmp_path / "main"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert says() == "-1"
    assert says(str(library)) == "8"
