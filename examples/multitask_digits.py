"""Three losses on handwritten digits: Pareto weights against PCGrad and summing the losses.

    python examples/multitask_digits.py [--steps 600] [--out runs/multitask_digits.png]

A small network shares its trunk between the digit (10 classes), its parity, and the mass of its
strokes in each quadrant (regression, in units that make its gradients the largest). Plain summing
lets the largest gradient lead; `pareto_backward` chooses the weights at each step. At 600 steps
(benchmarks/results/multitask_digits.png) min_norm and PCGrad are ahead of the sum on digit and
parity. PCGrad does as well on stroke mass. min_norm, which favours small gradients, keeps that
weight near 0.1: its loss comes down later and swings, as its head still trains at the full step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pama_ops as po

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TASKS = ["digit", "parity", "stroke mass"]


def data() -> tuple[Tensor, list[Tensor]]:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32) / 16
    label = torch.tensor(digits.target)
    mass = x.unflatten(1, (2, 4)).unflatten(3, (2, 4)).sum((2, 4)).flatten(1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    targets = [label, (label % 2).float(), mass]
    return x.flatten(1)[order], [t[order] for t in targets]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(32, 10), nn.Linear(32, 1), nn.Linear(32, 4)])

    def losses(self, x: Tensor, targets: list[Tensor]) -> list[Tensor]:
        z = self.trunk(x)
        digit, parity, mass = (head(z) for head in self.heads)
        return [
            nn.functional.cross_entropy(digit, targets[0]),
            nn.functional.binary_cross_entropy_with_logits(parity[:, 0], targets[1]),
            nn.functional.mse_loss(mass, targets[2]),
        ]


def as_sum(gram: Tensor) -> Tensor:
    """min_norm with weights that add up to n, as those of plain summing do: the same step size."""
    return len(gram) * po.min_norm(gram)


def ones(gram: Tensor) -> Tensor:
    """Plain summing, as a weighting."""
    return gram.new_ones(len(gram))


METHODS = {"sum": ones, "pcgrad": po.pcgrad, "min_norm": as_sum}


def train(method: str, steps: int) -> tuple[Tensor, Tensor]:
    """Held-out losses [evaluations, 3] and weights [steps, 3]."""
    torch.manual_seed(0)
    x, targets = data()
    held = 360
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    history, weights = [], []
    for step in range(steps):
        batch = torch.randint(held, len(x), (128,), generator=generator)
        losses = network.losses(x[batch], [t[batch] for t in targets])
        optimizer.zero_grad()
        w = po.pareto_backward(
            losses,
            network.parameters(),
            weighting=METHODS[method],
            task_parameters=[head.parameters() for head in network.heads],
        )
        weights.append(w)
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            with torch.no_grad():
                held_out = network.losses(x[:held], [t[:held] for t in targets])
            history.append(torch.stack(held_out))
    return torch.stack(history), torch.stack(weights)


def plot(results: dict[str, tuple[Tensor, Tensor]], steps: int, path: Path) -> None:
    """Held-out losses above, one panel a task; weights below, one panel a method."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    for k, task in enumerate(TASKS):
        for method, (history, _) in results.items():
            axes[0, k].plot(torch.linspace(0, steps, len(history)), history[:, k], label=method)
        axes[0, k].set(title=f"{task}: held-out loss", xlabel="step", yscale="log")
        axes[0, k].legend()
    for axis, (method, (_, weights)) in zip(axes[1], results.items(), strict=True):
        width = min(25, len(weights))
        smooth = weights[: len(weights) // width * width].unflatten(0, (-1, width)).mean(1)
        for k, task in enumerate(TASKS):
            axis.plot(torch.arange(len(smooth)) * width, smooth[:, k], label=task)
        axis.set(title=f"weights of {method}", xlabel="step")
        axis.sharey(axes[1, 0])
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/multitask_digits.png"))
    options = parser.parse_args()
    results = {method: train(method, options.steps) for method in METHODS}
    for method, (history, weights) in results.items():
        numbers = "  ".join(
            f"{t} {v:.3f}" for t, v in zip(TASKS, history[-1].tolist(), strict=True)
        )
        mean = ", ".join(f"{w:.2f}" for w in weights.mean(0).tolist())
        print(f"{method:<9} {numbers}  (mean weights {mean})")
    plot(results, options.steps, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
