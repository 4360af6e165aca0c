"""Two losses with Lightning: manual optimisation, `pareto_backward` for `manual_backward`.

pip install 'pama_ops[lightning]' scikit-learn; python examples/lightning_module.py
"""

from __future__ import annotations

import lightning
import torch
from plain_pytorch import Network, digits, losses_of
from torch import Tensor

import pama_ops as po


class TwoLosses(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = Network()

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        weights = po.pareto_backward(self.network(*batch), self.network.parameters())
        optimizer.step()
        self.log_dict({f"weight_{i}": w for i, w in enumerate(weights)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 5) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    module = TwoLosses()
    before = losses_of(module.network)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(digits(), 64, shuffle=True))
    return before, losses_of(module.network)


if __name__ == "__main__":
    print("losses before {}, after {}".format(*main()))
