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


def test_digits_train_by_every_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="wants scikit-learn")
    pytest.importorskip("matplotlib", reason="wants matplotlib")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    digits = importlib.import_module("multitask_digits")
    results = {method: digits.train(method, steps=100) for method in digits.METHODS}
    assert list(results) == ["sum", "pcgrad", "min_norm"]
    for losses, weights in results.values():
        assert bool((losses[-1] < losses[0]).all())
        assert weights.shape == (100, 3)
        assert bool((weights >= 0).all())
    digits.plot(results, 100, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 10_000
