"""The short examples for trainers: each runs, in its library, and lowers both losses.

So do the snippets of docs/trainers.md; those of TRL and verl in the tests of these.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from strategies import normal
from torch import nn

import pama_ops as po

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
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


def snippet(mark: str) -> str:
    """The one block of Python in docs/trainers.md that holds the mark."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if mark in block]
    return block


class TwoLosses(nn.Linear):
    """Losses that pull apart: their mean's minimum is where the weight is y's mean."""

    def __init__(self) -> None:
        super().__init__(3, 1, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        z = super().forward(x)
        return [(z - y).square().mean(), (z - y - 1).square().mean()]


@pytest.fixture
def names() -> dict[str, object]:
    """What the snippets take as given."""
    torch.manual_seed(0)
    model = TwoLosses()
    x, y = normal(8, 3), normal(8, 1)
    return {
        "torch": torch,
        "pareto_backward": po.pareto_backward,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "x": x,
        "y": y,
        "loader": [(x, y)],
    }


def expected(model: TwoLosses, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient that `pareto_backward` gives, by itself."""
    copy = TwoLosses()
    copy.load_state_dict(model.state_dict())
    po.pareto_backward(copy(x, y), copy.parameters())
    return copy.weight.grad


def test_plain_snippet_steps_along_the_common_direction(names: dict[str, object]) -> None:
    model = names["model"]
    before, gradient = model.weight.detach().clone(), expected(model, names["x"], names["y"])
    exec(snippet("for x, y in loader:"), names)
    torch.testing.assert_close(model.weight, before - 0.1 * gradient)


@pytest.mark.filterwarnings("default")
def test_accelerate_snippet_steps_once_a_group_of_micro_batches(names: dict[str, object]) -> None:
    accelerate = pytest.importorskip("accelerate", reason="wants accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    names["accelerator"] = accelerator
    names["model"], names["optimizer"] = accelerator.prepare(names["model"], names["optimizer"])
    model = names["model"]
    before, gradient = model.weight.detach().clone(), expected(model, names["x"], names["y"])
    exec(snippet("accelerator.accumulate"), names)
    assert torch.equal(model.weight, before)
    exec(snippet("accelerator.accumulate"), names)
    torch.testing.assert_close(model.weight, before - 0.1 * gradient)


@pytest.mark.filterwarnings("default")
def test_lightning_snippet_is_a_training_step(names: dict[str, object]) -> None:
    lightning = pytest.importorskip("lightning", reason="wants lightning")
    exec(snippet("self.network"), names)

    class Module(lightning.LightningModule):
        training_step = names["training_step"]

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.network = names["model"]

        def configure_optimizers(self) -> object:
            return names["optimizer"]

    model = names["model"]
    before, gradient = model.weight.detach().clone(), expected(model, names["x"], names["y"])
    quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **dict.fromkeys(quiet, False))
    rows = torch.utils.data.TensorDataset(names["x"], names["y"])
    trainer.fit(Module(), torch.utils.data.DataLoader(rows, len(rows)))
    torch.testing.assert_close(model.weight, before - 0.1 * gradient)


@pytest.mark.filterwarnings("default")
def test_transformers_snippet_is_a_trainer(names: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="wants transformers")
    names["Trainer"] = transformers.Trainer
    exec(snippet("(Trainer)"), names)
    model = names["model"]
    before, gradient = model.weight.detach().clone(), expected(model, names["x"], names["y"])
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=len(names["x"]),
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    names["TwoLossTrainer"](
        model,
        arguments,
        train_dataset=list(zip(names["x"], names["y"], strict=True)),
        optimizers=(names["optimizer"], None),
        data_collator=lambda rows: dict(
            zip("xy", map(torch.stack, zip(*rows, strict=True)), strict=True)
        ),
    ).train()
    torch.testing.assert_close(model.weight, before - 0.1 * gradient)


def test_ppo_snippet_makes_a_loss(names: dict[str, object]) -> None:
    shape = (2, 4, 5)
    logp = (-torch.rand(shape[1:])).requires_grad_()
    values = torch.zeros(shape, requires_grad=True)
    functions = {name: getattr(po, name) for name in ("gae", "whiten", "pama_advantages")}
    losses = {name: getattr(po, name) for name in ("ppo_loss", "value_loss")}
    given = {
        "rewards": normal(shape),
        "values": values,
        "mask": torch.ones(shape[1:], dtype=torch.bool),
        "logp": logp,
        "old_logp": logp.detach(),
        "group": None,
        **functions,
        **losses,
    }
    exec(snippet("pama_advantages(whiten"), given)
    given["loss"].backward()
    assert logp.grad.abs().sum() > 0
    assert (values.grad.abs().sum((1, 2)) > 0).all()
