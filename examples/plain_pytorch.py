"""Two losses in a plain PyTorch loop: `pareto_backward` where `loss.backward()` stood.

pip install scikit-learn; python examples/plain_pytorch.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pama_ops as po


def digits() -> torch.utils.data.TensorDataset:
    data = load_digits()
    return torch.utils.data.TensorDataset(
        torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    )


class Network(nn.Module):
    """Which digit it is, and whether it is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.digit, self.odd = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor, label: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        odd = (label % 2).to(z.dtype)
        return [
            nn.functional.cross_entropy(self.digit(z), label),
            nn.functional.binary_cross_entropy_with_logits(self.odd(z)[:, 0], odd),
        ]


def losses_of(model: nn.Module) -> list[float]:
    with torch.no_grad():
        return [loss.item() for loss in model(*digits().tensors)]


def main(epochs: int = 5) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = losses_of(model)
    for _ in range(epochs):
        for x, label in torch.utils.data.DataLoader(digits(), 64, shuffle=True):
            optimizer.zero_grad()
            own = [model.digit.parameters(), model.odd.parameters()]
            po.pareto_backward(model(x, label), model.parameters(), task_parameters=own)
            optimizer.step()
    return before, losses_of(model)


if __name__ == "__main__":
    print("losses before {}, after {}".format(*main()))
