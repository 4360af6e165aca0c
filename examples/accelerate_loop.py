"""Two losses with Accelerate: `pareto_backward` where `accelerator.backward(loss)` stood.

Micro-batches accumulate in `.grad` as ever, each divided by their number.

pip install 'pama_ops[accelerate]' scikit-learn; python examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from plain_pytorch import Network, digits, losses_of

import pama_ops as po


def main(epochs: int = 5) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = Network()
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.utils.data.DataLoader(digits(), 32, shuffle=True),
    )
    before = losses_of(model)
    for _ in range(epochs):
        for x, label in loader:
            with accelerator.accumulate(model):
                losses = model(x, label)
                parts = [loss / accelerator.gradient_accumulation_steps for loss in losses]
                po.pareto_backward(parts, model.parameters())
                optimizer.step()  # these two do nothing until the last micro-batch
                optimizer.zero_grad()
    return before, losses_of(model)


if __name__ == "__main__":
    print("losses before {}, after {}".format(*main()))
