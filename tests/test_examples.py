"""The short examples for trainers: each runs, in its library, and lowers both losses."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LIBRARIES = {
    "plain_pytorch": "sklearn",
    "accelerate_loop": "accelerate",
    "lightning_module": "lightning",
    "transformers_trainer": "transformers",
}


@pytest.mark.filterwarnings("default")  # those of the libraries
@pytest.mark.parametrize("name", LIBRARIES)
def test_example_lowers_both_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARIES[name], reason=f"wants {LIBRARIES[name]}")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    before, after = importlib.import_module(name).main(epochs=2)
    assert all(new < 0.5 * old for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", LIBRARIES)
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
