"""PPO with vector rewards on Deep Sea Treasure: PAMA against fixed weights.

    python examples/control_mo_ppo.py [--quick] [--seeds 5] [--iterations 150] [--out runs/control]

A submarine dives for treasure, worth more the deeper it lies, and pays for time: two rewards that
pull apart. A batch of episodes is a batch of sequences, [objectives, episodes, steps], so the token
functions serve as they are: `gae` with a value head for each objective, `whiten`, weights,
`ppo_loss`, `value_loss`. Every method differs in one line, the one that makes one advantage of two.
Writes returns of all seeds as JSON and their mean and spread as a plot.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import mo_gymnasium
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

import pama_ops as po

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OBJECTIVES = ["treasure", "time"]
STEPS, EPISODES = 50, 32
CLIP, GAMMA, LAMBDA = 0.2, 0.99, 0.95

Combine = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fixed(advantages: Tensor, mask: Tensor, *, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    w = torch.tensor(weights)
    return torch.einsum("n,nbt->bt", w, advantages), w


def pama(advantages: Tensor, mask: Tensor, *, reduction: str) -> tuple[Tensor, Tensor]:
    step = po.pama_advantages(advantages, mask, clip=CLIP, reduction=reduction)
    weights = step.weights[:, mask].mean(1) if step.weights.dim() == 3 else step.weights
    return step.advantages, weights.float()


METHODS: dict[str, Combine] = {
    "PAMA, batch": partial(pama, reduction="batch"),
    "PAMA, token": partial(pama, reduction="token"),
    "fixed 0.5": partial(fixed, weights=(0.5, 0.5)),
    "fixed 0.9": partial(fixed, weights=(0.9, 0.1)),
}


class Episodes(NamedTuple):
    observations: Tensor  # [B, T, features]
    actions: Tensor  # [B, T]
    rewards: Tensor  # [N, B, T]
    mask: Tensor  # [B, T]


class Agent(nn.Module):
    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 64), nn.Tanh())
        self.policy = nn.Linear(64, actions)
        self.value = nn.Linear(64, len(OBJECTIVES))

    def forward(self, x: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        z = self.body(x)
        return torch.distributions.Categorical(logits=self.policy(z)), self.value(z).movedim(-1, 0)


class Sea:
    """A batch of environments, each run from its start to its end."""

    def __init__(self, seed: int) -> None:
        self.envs = [
            mo_gymnasium.make("deep-sea-treasure-v0", max_episode_steps=STEPS)
            for _ in range(EPISODES)
        ]
        for k, env in enumerate(self.envs):
            env.reset(seed=EPISODES * seed + k)
        self.size = int(self.envs[0].observation_space.high.max()) + 1
        self.actions = int(self.envs[0].action_space.n)

    def features(self, places: np.ndarray) -> Tensor:
        return nn.functional.one_hot(torch.as_tensor(places).long(), self.size).flatten(1).float()

    @torch.no_grad()
    def run(self, agent: Agent) -> Episodes:
        seen = torch.zeros(EPISODES, STEPS, 2 * self.size)
        actions = torch.zeros(EPISODES, STEPS, dtype=torch.long)
        rewards = torch.zeros(len(OBJECTIVES), EPISODES, STEPS)
        mask = torch.zeros(EPISODES, STEPS, dtype=torch.bool)
        places = np.stack([env.reset()[0] for env in self.envs])
        running = list(range(EPISODES))
        for t in range(STEPS):
            seen[:, t] = self.features(places)
            actions[:, t] = agent(seen[:, t])[0].sample()
            mask[running, t] = True
            for b in list(running):
                places[b], reward, ended, stopped, _ = self.envs[b].step(int(actions[b, t]))
                rewards[:, b, t] = torch.as_tensor(reward)
                if ended or stopped:
                    running.remove(b)
            if not running:
                break
        return Episodes(seen, actions, rewards, mask)


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, batch: Episodes, combine: Combine
) -> Tensor:
    """Four epochs of PPO on one batch. Returns the weights [N]."""
    observations, actions, rewards, mask = batch
    with torch.no_grad():
        policy, values = agent(observations)
        old_logp = policy.log_prob(actions)
        advantages, returns = po.gae(rewards, values, mask, gamma=GAMMA, lam=LAMBDA)
        advantage, weights = combine(po.whiten(advantages, mask), mask)
        scale = returns[:, mask].std(1).clamp(min=1)  # the value heads' losses in like units
    for _ in range(4):
        policy, values = agent(observations)
        losses = po.value_loss(values, returns, mask) / scale**2
        loss = po.ppo_loss(policy.log_prob(actions), old_logp, advantage, mask, clip=CLIP).loss
        loss = loss + 0.5 * losses.sum() - 0.01 * policy.entropy()[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
    return weights


def train(method: str, seed: int, iterations: int, tick: Callable[[], None]) -> dict[str, object]:
    torch.manual_seed(seed)
    sea = Sea(seed)
    agent = Agent(2 * sea.size, sea.actions)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    returns, weights = [], []
    for _ in range(iterations):
        batch = sea.run(agent)
        returns.append([round(x, 3) for x in batch.rewards.sum(-1).mean(1).tolist()])
        w = update(agent, optimizer, batch, METHODS[method])
        weights.append([round(x, 4) for x in w.tolist()])
        tick()
    return {"method": method, "seed": seed, "returns": returns, "weights": weights}


def plot(runs: list[dict[str, object]], path: Path) -> None:
    """Mean over seeds, and one standard deviation to each side."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method]
        curves = np.array([run["returns"] for run in mine])
        mean, spread = curves.mean(0), curves.std(0)
        for k, name in enumerate(OBJECTIVES):
            axes[k].plot(mean[:, k], label=method)
            low, high = mean[:, k] - spread[:, k], mean[:, k] + spread[:, k]
            axes[k].fill_between(np.arange(len(mean)), low, high, alpha=0.2)
            axes[k].set(title=f"return: {name}", xlabel="iteration")
        axes[2].plot(np.array([run["weights"] for run in mine]).mean(0)[:, 0], label=method)
    axes[2].set(title=f"weight of {OBJECTIVES[0]}", xlabel="iteration", ylim=(0, 1))
    axes[0].legend()
    figure.suptitle(f"Deep Sea Treasure, {1 + max(run['seed'] for run in runs)} seed(s), mean ± σ")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(runs: list[dict[str, object]]) -> list[str]:
    """Mean return over the last tenth of the iterations, and its deviation over the seeds."""
    lines = []
    for method in METHODS:
        curves = np.array([run["returns"] for run in runs if run["method"] == method])
        last = curves[:, -max(1, curves.shape[1] // 10) :].mean(1)
        shown = [
            f"{name} {m:7.2f} ± {s:.2f}"
            for name, m, s in zip(OBJECTIVES, last.mean(0), last.std(0), strict=True)
        ]
        lines.append(f"{method:<12} " + "   ".join(shown))
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three iterations")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/control"))
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.iterations < 1:
        parser.error("--seeds and --iterations must be at least 1")
    if options.quick:
        options.seeds, options.iterations = 1, 3
    runs = []
    with Progress() as progress:
        total = len(METHODS) * options.seeds * options.iterations
        task = progress.add_task("training", total=total)
        for seed in range(options.seeds):
            for method in METHODS:
                progress.update(task, description=f"{method}, seed {seed}")
                runs.append(
                    train(method, seed, options.iterations, partial(progress.advance, task))
                )
    options.out.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    settings = {"seeds": options.seeds, "iterations": options.iterations, "episodes": EPISODES}
    results = {"versions": versions, "settings": settings, "objectives": OBJECTIVES, "runs": runs}
    (options.out / "returns.json").write_text(json.dumps(results))
    plot(runs, options.out / "returns.png")
    print("\n".join(summary(runs)))
    print(f"wrote {options.out}/returns.json and {options.out}/returns.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
