"""Two losses with the Transformers Trainer: a `training_step` that calls `pareto_backward`.

Everything else of the Trainer (schedule, clipping, logging, checkpoints) stays as it is.

pip install 'pama_ops[transformers]' scikit-learn; python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from plain_pytorch import Network, digits, losses_of
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import pama_ops as po


class TwoLossTrainer(Trainer):
    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: object = None
    ) -> Tensor:
        model.train()
        losses = model(**self._prepare_inputs(inputs))
        parts = [loss / self.args.gradient_accumulation_steps for loss in losses]
        po.pareto_backward(parts, model.parameters())
        return torch.stack(parts).sum().detach()  # what the Trainer logs


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    x, label = zip(*rows, strict=True)
    return {"x": torch.stack(x), "label": torch.stack(label)}


def main(epochs: int = 5) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    model = Network()
    before = losses_of(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        TwoLossTrainer(model, arguments, collate, digits()).train()
    return before, losses_of(model)


if __name__ == "__main__":
    print("losses before {}, after {}".format(*main()))
