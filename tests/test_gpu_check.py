"""The scripts of `make gpu`, as far as they go without a card: with the CPU in its place."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHAPES = [(33, 8), (8,), (4096,)]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs main() of a script of benchmarks/gpu on little, and returns its rows."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu"))
    monkeypatch.setattr(sys, "path", sys.path)  # measure.py adds to it
    models = importlib.import_module("models")
    monkeypatch.setattr(models, "MODELS", {"tiny": SHAPES})

    def run(name: str, *arguments: str, **constants: object) -> tuple[dict, Path]:
        module = importlib.import_module(name)
        constants.setdefault("MODELS", models.MODELS)
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


REPORT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_cuda" name="test_good"/>
<testcase classname="tests.test_cuda" name="test_bad"><failure message="no"/></testcase>
<testcase classname="tests.test_cuda" name="test_far"><skipped message="needs two GPUs"/></testcase>
</testsuite></testsuites>"""


def test_the_record_of_a_run_is_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    report = importlib.import_module("gpu_report")
    monkeypatch.setattr(report, "RECORD", tmp_path / "gpu_check.json")
    (tmp_path / "tests.xml").write_text(REPORT)
    report.main("begin")
    report.main("stage", "build", "0", "100")
    report.main("tests", str(tmp_path / "tests.xml"))
    report.main("stage", "test", "1", "50")
    report.main("sanitizer", "memcheck", "0")
    report.main("begin")  # another stage of the same commit keeps what there is
    report.main("table")
    out = capsys.readouterr().out
    assert "build       ok      100 s" in out
    assert "test        FAILED  50 s" in out
    assert "FAILED tests.test_cuda::test_bad" in out
    assert "skipped 1: needs two GPUs" in out
    assert "memcheck    ok" in out
    monkeypatch.setattr(report, "commit", lambda: "another")
    report.main("begin")
    assert json.loads(report.RECORD.read_text())["stages"] == {}


def test_an_unknown_stage_is_refused():
    command = ["sh", str(ROOT / "scripts/gpu_check.sh"), "bild"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "unknown stage bild; stages: build test sanitize bench" in run.stderr
