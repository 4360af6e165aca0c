"""TRL's GRPO trainer with PAMA's advantages in place of those of a sum of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pama_ops import _checks as check
from pama_ops.advantages import REDUCTIONS, PAMAStep, group_normalize, pama_advantages
from pama_ops.gradients import gram

try:
    from trl import GRPOTrainer
except ImportError as error:
    raise ImportError("pama_ops.integrations.trl needs TRL: pip install 'pama_ops[trl]'") from error


class PAMAGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` whose reward functions are objectives, weighed by `pama_advantages`.

    Each reward is normalised within the completions of its prompt (`group_normalize`), the N of
    them are combined, and TRL's own loss takes the result. A completion counts once, however long
    it is, and all ranks' completions count alike: TRL has gathered their rewards. A reward of None
    or NaN does not apply: it is left out of its group's moments and its advantage is 0. Where it
    does not apply, or all rewards of its group are equal, it says nothing and leaves the weights to
    the others.

    The weights are those of the policy that sampled, and serve all updates on that sample.
    `advantages_of_objectives` may be overridden to give each token its own advantage.

    Args:
        args, kwargs: those of `trl.GRPOTrainer`.
        reduction, noon: see `pama_advantages`.
        preference: N nonnegative numbers; None takes `args.reward_weights`, if given.

    Logs, of all ranks, each averaged like TRL's metrics:
        pama/weight/NAME: mean weight. pama/mean/NAME: mean of I(A), 0 at a stationary point.
        pama/active/NAME: share of batches where I(A) is not 0 everywhere.
        pama/informative/NAME: share of completions of which the reward says something.
        pama/cosine/NAME/NAME: cosine of two objectives' I(A).
    Rewards of one name are told apart: NAME, NAME_2 and so on, in TRL's own metrics as well.

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
        noon = check.flag("noon", noon)
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
        name = "preference"
        if preference is None:
            name, preference = "args.reward_weights", self.args.reward_weights
        if isinstance(preference, Tensor):
            preference = preference.tolist()
        self.preference: list[float] | None = None
        if preference is not None:
            n = len(self.reward_funcs)
            self.preference = check.preference_numbers(name, preference, n)
        self.reduction, self.noon = reduction, noon
        self.reward_func_names: list[str] = _distinct(self.reward_func_names)
        self._rewards = torch.empty(0)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards = self._rewards.T
        advantages = self.advantages_of_objectives(rewards, output)
        group = self._completions_of_a_prompt()
        informative = group_normalize(rewards, group, return_informative=True).informative
        by_token = advantages.dim() == 3
        if by_token:
            mask = output["completion_mask"]
            if "tool_mask" in output:
                mask = mask * output["tool_mask"]
            ranks = torch.distributed.group.WORLD if self.accelerator.num_processes > 1 else None
            informative = self.of_this_rank(informative)
        else:  # every rank holds all completions already
            advantages = advantages.unsqueeze(-1)
            mask, ranks = torch.ones_like(advantages[0]), None
        # Other advantages than those by the group may say something of a flat one.
        informative = informative | ((advantages != 0) & mask.bool()).any(-1)
        preference = informative.to(torch.float64)
        if self.preference is not None:
            preference = preference * preference.new_tensor(self.preference).unsqueeze(1)
        step = pama_advantages(
            advantages,
            mask,
            reduction=self.reduction,
            preference=preference,
            noon=self.noon,
            group=ranks,
        )
        if by_token:
            output["advantages"] = step.advantages
            logged = self.accelerator.gather(step.advantages.sum(1) / mask.sum(1).clamp(min=1))
        else:
            logged = step.advantages[:, 0]
            output["advantages"] = self.of_this_rank(logged)
        entries = self._logs["advantages"]  # bounded: TRL's own of this batch stand at its end
        for _ in range(min(len(logged), len(entries))):
            entries.pop()
        entries.extend(logged.tolist())
        self._log_step(step, advantages, informative, mask, ranks)
        return output

    def of_this_rank(self, x: Tensor) -> Tensor:
        """The columns of this rank's completions, of x [..., B] of all ranks'."""
        size = x.shape[-1] // self.accelerator.num_processes
        return x.narrow(-1, size * self.accelerator.process_index, size)

    def advantages_of_objectives(self, rewards: Tensor, output: dict[str, Any]) -> Tensor:
        """Advantages of each objective. One that is 0 in all of a completion, whose reward says
        nothing of it, leaves the weights to the others there.

        Args:
            rewards: [N, B] of all ranks' completions, NaN where a reward does not apply.
            output: what TRL hands to its loss, of this rank's completions: `completion_ids`,
                `completion_mask` [B / ranks, T] and so on.

        Returns:
            [N, B] of all ranks' completions, or [N, B / ranks, T] of this rank's tokens: what is
            for all ranks' completions is cut by `of_this_rank`.
        """
        return group_normalize(rewards, self._completions_of_a_prompt())

    def _completions_of_a_prompt(self) -> int:
        size: int = self.num_generations if self.model.training else self.num_generations_eval
        return size

    def _log_step(
        self,
        step: PAMAStep,
        advantages: Tensor,
        informative: Tensor,
        mask: Tensor,
        ranks: ProcessGroup | None,
    ) -> None:
        """Into TRL's metrics, over what was read on all ranks."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        kept = advantages.clamp(min=0) if self.noon else advantages
        kept = kept.where(mask.bool(), 0)
        n, *read = step.weights.shape  # [N], [N, B] or [N, B, T]
        weights = step.weights.reshape(n, *read, *[1] * (2 - len(read))) * mask
        sums = torch.stack([weights, kept]).sum((2, 3), dtype=torch.float64)
        known = torch.stack([informative, torch.ones_like(informative)]).sum(2)
        totals = torch.cat([sums, mask.sum().expand(1, n), known])
        if ranks is not None:
            torch.distributed.all_reduce(totals, group=ranks)
        weight, mean = totals[:2] / totals[2].clamp(min=1)
        share = totals[3] / totals[4].clamp(min=1)
        products = gram(list(kept), group=ranks)
        norms = products.diagonal().sqrt()
        cosines = products / (norms[:, None] * norms)  # NaN, which TRL leaves out, if inactive
        for i, name in enumerate(self.reward_func_names):
            metrics[f"pama/weight/{name}"].append(weight[i].item())
            metrics[f"pama/mean/{name}"].append(mean[i].item())
            metrics[f"pama/active/{name}"].append(step.active[i].item())
            metrics[f"pama/informative/{name}"].append(share[i].item())
            for j, other in enumerate(self.reward_func_names[:i]):
                metrics[f"pama/cosine/{other}/{name}"].append(cosines[i, j].item())


def _distinct(names: list[str]) -> list[str]:
    """`names` with _2, _3, ... after those that stand before: TRL would log them as one."""
    taken, result = set(names), list[str]()
    for name in names:
        unique, k = name, 1
        while unique in result or (k > 1 and unique in taken):
            k += 1
            unique = f"{name}_{k}"
        result.append(unique)
    return result
