"""The control example: PPO with vector rewards on a MO-Gymnasium environment."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

for package in ("mo_gymnasium", "matplotlib", "rich"):
    pytest.importorskip(package, reason=f"wants {package}: pip install 'pama_ops[control]'")

pytestmark = pytest.mark.filterwarnings("default")  # those of MO-Gymnasium


def test_quick_run_writes_returns_of_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    control = importlib.import_module("control_mo_ppo")
    assert control.main(["--quick", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "returns.json").read_text())
    assert [run["method"] for run in results["runs"]] == list(control.METHODS)
    for run in results["runs"]:
        assert len(run["returns"]) == len(run["weights"]) == 3
        treasure, time = zip(*run["returns"], strict=True)
        assert all(0 <= x <= 23.7 for x in treasure)
        assert all(-control.STEPS <= x <= -1 for x in time)
        # A mean over tokens counts those where no objective is active, whose weights are 0.
        # Two numbers, each rounded to 4 digits.
        assert all(0 <= sum(w) <= 1 + 1e-4 for w in run["weights"])
    assert (tmp_path / "returns.png").stat().st_size > 0


def test_documented_returns_are_those_of_the_recorded_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    control = importlib.import_module("control_mo_ppo")
    root = EXAMPLES.parent
    results = json.loads((root / "benchmarks/results/control_mo_ppo.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [s for s in range(5) for _ in range(4)]
    shown = (root / "docs/trainers.md").read_text().replace("−", "-")
    rows = re.findall(r"^\| (?:PAMA|weights).*", shown, re.MULTILINE)
    documented = [re.findall(r"\S+ ± \S+", row) for row in rows]
    recorded = [re.findall(r"\S+ ± \S+", line) for line in control.summary(results["runs"])]
    assert sorted(documented) == sorted(recorded)
