"""TRL's GRPO trainer with PAMA's advantages in place of those of a sum of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from pama_ops import _checks as check
from pama_ops.advantages import REDUCTIONS, PAMAStep, group_normalize, pama_advantages
from pama_ops.gradients import gram


class PAMAGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` whose reward functions are objectives, weighed by `pama_advantages`.

    Each reward is normalised within the completions of its prompt (`group_normalize`), the N of
    them are combined, and TRL's own loss takes the result. A completion counts once, however long
    it is, and all ranks' completions count alike: TRL has gathered their rewards. A reward of None
    or NaN does not apply: it is left out of its group's moments and its advantage is 0.

    The weights are those of the policy that sampled, and serve all updates on that sample.
    `advantages_of_objectives` may be overridden to give each token its own advantage.

    Args:
        args, kwargs: those of `trl.GRPOTrainer`.
        reduction, noon: see `pama_advantages`.
        preference: N nonnegative numbers; None takes `args.reward_weights`, if given.

    Logs, each averaged like TRL's metrics:
        pama/weight/NAME: mean weight. pama/mean/NAME: mean of I(A), 0 at a stationary point.
        pama/active/NAME: share of batches where I(A) is not 0 everywhere.
        pama/cosine/NAME/NAME: cosine of two objectives' I(A).

    Raises:
        ValueError: `reduction`, `preference`, or settings of TRL that PAMA would pass over
            (`scale_rewards` other than "group", `multi_objective_aggregation`).

    Source: He & Maghsudi, arXiv 2508.07768; Shao et al., arXiv 2402.03300.
    """

    def __init__(
        self,
        *args: Any,
        reduction: str = "sequence",
        preference: Tensor | Sequence[float] | None = None,
        noon: bool = True,
        **kwargs: Any,
    ) -> None:
        check.choice("reduction", reduction, REDUCTIONS)
        super().__init__(*args, **kwargs)
        if self.scale_rewards != "group":
            raise ValueError(
                f"args.scale_rewards must be 'group', PAMA's scale, got {self.scale_rewards!r}"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "args.multi_objective_aggregation must be left at its default, as PAMA replaces "
                f"it, got {self.multi_objective_aggregation!r}"
            )
        if preference is None:
            preference = self.args.reward_weights
        if isinstance(preference, Tensor):
            preference = preference.tolist()
        check.preference(preference, len(self.reward_funcs), self.reward_weights)
        self.reduction, self.preference, self.noon = reduction, preference, noon
        self._rewards = torch.empty(0)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        advantages = self.advantages_of_objectives(self._rewards.T, output)
        by_token = advantages.dim() == 3
        step, seen = self._step_of(advantages, output)
        if by_token:
            output["advantages"] = step.advantages
            logged = self.accelerator.gather(step.advantages.sum(1) / seen.sum(1).clamp(min=1))
        else:
            logged = step.advantages[:, 0]
            size = len(output["advantages"])
            output["advantages"] = logged[self.accelerator.process_index * size :][:size]
        entries = self._logs["advantages"]  # bounded: TRL's own of this batch stand at its end
        for _ in range(min(len(logged), len(entries))):
            entries.pop()
        entries.extend(logged.tolist())
        self._log_step(step, advantages if by_token else advantages.unsqueeze(-1), seen)
        return output

    def advantages_of_objectives(self, rewards: Tensor, output: dict[str, Any]) -> Tensor:
        """Advantages of each objective.

        Args:
            rewards: [N, B] of all ranks' completions, NaN where a reward does not apply.
            output: what TRL hands to its loss, of this rank's completions: `completion_ids`,
                `completion_mask` [B / ranks, T] and so on.

        Returns:
            [N, B] of all ranks' completions, or [N, B / ranks, T] of this rank's tokens.
        """
        group = self.num_generations if self.model.training else self.num_generations_eval
        return group_normalize(rewards, group)

    def _step_of(self, advantages: Tensor, output: dict[str, Any]) -> tuple[PAMAStep, Tensor]:
        """PAMA's step, and the mask [B, T] of what it read."""
        if advantages.dim() == 3:
            mask = output["completion_mask"]
            if "tool_mask" in output:
                mask = mask * output["tool_mask"]
            ranks = torch.distributed.group.WORLD if self.accelerator.num_processes > 1 else None
        else:  # every rank holds all completions already
            advantages = advantages.unsqueeze(-1)
            mask, ranks = torch.ones_like(advantages[0], dtype=torch.bool), None
        step = pama_advantages(
            advantages,
            mask,
            reduction=self.reduction,
            preference=self.preference,
            noon=self.noon,
            group=ranks,
        )
        return step, mask

    def _log_step(self, step: PAMAStep, advantages: Tensor, mask: Tensor) -> None:
        """Into TRL's metrics; by token, the means and cosines of this rank's tokens."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        kept = (advantages.clamp(min=0) if self.noon else advantages) * mask
        weights = step.weights
        if weights.dim() == 3:
            weights = (weights * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        weights = weights.mean(-1) if weights.dim() == 2 else weights
        means = kept.flatten(1).sum(1) / mask.sum().clamp(min=1)
        products = gram(list(kept))
        norms = products.diagonal().sqrt()
        cosines = products / (norms[:, None] * norms)  # NaN, which TRL leaves out, if inactive
        for i, name in enumerate(self.reward_func_names):
            metrics[f"pama/weight/{name}"].append(weights[i].item())
            metrics[f"pama/mean/{name}"].append(means[i].item())
            metrics[f"pama/active/{name}"].append(step.active[i].item())
            for j, other in enumerate(self.reward_func_names[:i]):
                metrics[f"pama/cosine/{other}/{name}"].append(cosines[i, j].item())
