"""verl's plug-in: the advantage estimator `pama` and the policy loss `pama_noon`.

`import verl` loads this module through the entry point group `verl.plugins`:

    algorithm.adv_estimator=pama +algorithm.gdpo_reward_keys=[accuracy,format]
    actor_rollout_ref.actor.policy_loss.loss_mode=pama_noon

verl's trainer leaves the scores of single rewards in its TransferQueue, so its `_compute_advantage`
is wrapped to fetch them. The legacy trainer (`trainer.use_v1=False`) hands them to the estimator
"gdpo" alone; so that one is PAMA wherever the settings hold `algorithm.pama`, and verl's own
elsewhere:

    algorithm.adv_estimator=gdpo +algorithm.pama.reduction=sequence
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos

from pama_ops import _checks as check
from pama_ops.advantages import GroupAdvantages, group_normalize, pama_advantages
from pama_ops.losses import ppo_loss

AGGREGATES = {
    "token-mean": "token-mean",
    "token-sum": "token-sum",
    "seq-mean-token-sum": "sequence-mean-token-sum",
    "seq-mean-token-sum-norm": "sequence-mean-token-sum",
    "seq-mean-token-mean": "sequence-mean-token-mean",
}


class _Scores(NamedTuple):
    """Scores by key, each [B]; a session's outputs (rows) share the score of its last one."""

    by_key: Mapping[str, Any]
    session: np.ndarray[Any, Any]  # [B], from 0
    last: np.ndarray[Any, Any]  # row of each session's last output
    metrics: dict[str, Any]  # where to log


_fetched: ContextVar[_Scores | None] = ContextVar("_fetched", default=None)


@core_algos.register_adv_est("pama")  # type: ignore[untyped-decorator]
def pama(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray[Any, Any],
    config: Any = None,
    non_tensor_batch: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """PAMA's advantages of the rewards in `algorithm.gdpo_reward_keys`, normalised by prompt.

    A session (a response, or the several outputs of an agent) counts once, however long it is; a
    score of None or NaN does not apply. A key that does not apply to a session, or has one score in
    all of its prompt's, leaves that session's weights to the others; which share of the sessions it
    says something of is logged as `pama/informative/KEY` (not by the legacy trainer, whose
    estimators have no metrics). The batch is the whole one, as verl's driver holds it.
    `algorithm.gdpo_reward_weights` is the preference.

    Args:
        token_level_rewards: [B, T], of which only the device is read.
        response_mask: [B, T].
        index: [B], equal for the responses to one prompt, in any order; groups may differ in size.
        config: `algorithm` of verl's settings; `pama` in it holds `reduction` and `noon`.
        non_tensor_batch: for each key the scores [B], if they were not fetched.

    Returns:
        Advantages and returns, the same [B, T], 0 at masked positions.

    Raises:
        ValueError: scores or keys are missing.
    """
    keys = config.get("gdpo_reward_keys") if config is not None else None
    if not keys:
        raise ValueError(f"algorithm.gdpo_reward_keys must list the rewards' keys, got {keys}")
    rows = np.arange(len(index))
    scores = _fetched.get() or _Scores(non_tensor_batch or {}, rows, rows, {})
    missing = [key for key in keys if key not in scores.by_key]
    if missing:
        raise ValueError(
            f"the scores of {missing} must be in what compute_score returns, got "
            f"{sorted(scores.by_key)}; the legacy trainer hands them to the estimator 'gdpo' only: "
            "set algorithm.adv_estimator=gdpo and +algorithm.pama.reduction=sequence"
        )
    values = [np.asarray(scores.by_key[key], dtype=np.float64)[scores.last] for key in keys]
    rewards = torch.as_tensor(np.stack(values), device=token_level_rewards.device)
    session = torch.as_tensor(scores.session, device=token_level_rewards.device)
    tokens = response_mask.new_zeros(len(scores.last)).index_add(0, session, response_mask.sum(-1))
    options = config.get("pama") or {}
    normalized = _by_prompt(rewards, index[scores.last])
    generated = tokens > 0  # which a row that verl pads the batch with is not
    shares = (normalized.informative & generated).sum(1) / generated.sum().clamp(min=1)
    for key, share in zip(keys, shares.tolist(), strict=True):
        scores.metrics[f"pama/informative/{key}"] = share
    preference = normalized.informative.to(torch.float64)
    if (worth := config.get("gdpo_reward_weights")) is not None:
        worth = check.preference_numbers("algorithm.gdpo_reward_weights", worth, len(keys))
        preference = preference * preference.new_tensor(worth).unsqueeze(1)
    step = pama_advantages(
        normalized.advantages.unsqueeze(-1).to(torch.float32),
        generated.unsqueeze(-1),
        reduction=options.get("reduction", "sequence"),
        noon=options.get("noon", True),
        preference=preference,
    )
    advantages = step.advantages[session] * response_mask
    return advantages, advantages


def _by_prompt(rewards: Tensor, index: np.ndarray[Any, Any]) -> GroupAdvantages:
    """`group_normalize` of [N, B] in any order: groups side by side, filled up with NaN."""
    _, group, sizes = np.unique(index.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    place = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    columns = torch.as_tensor(group[order] * sizes.max() + place, device=rewards.device)
    rows = torch.as_tensor(order, device=rewards.device)
    spread = rewards.new_full((len(rewards), len(sizes) * int(sizes.max())), torch.nan)
    spread[:, columns] = rewards[:, rows]
    advantages, informative = group_normalize(spread, int(sizes.max()), return_informative=True)
    back = torch.empty_like(rows)
    back[rows] = columns
    return GroupAdvantages(advantages[:, back], informative[:, back])


@core_algos.register_policy_loss("pama_noon")  # type: ignore[untyped-decorator]
def pama_noon(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped loss of the positive advantages (Noon), over the global batch as verl counts it.

    Same arguments and returns as verl's "vanilla". verl averages gradients over `dp_size` ranks,
    and micro-batches add up: the divisor is the global count over `dp_size`, never this
    micro-batch's own.

    Raises:
        ValueError: an unknown `loss_agg_mode`, or several ranks and no global count.
    """
    check.choice("loss_agg_mode", loss_agg_mode, [*AGGREGATES])
    counts = config.global_batch_info
    ranks = counts.get("dp_size") or 1
    name = "batch_num_tokens" if loss_agg_mode == "token-mean" else "global_batch_size"
    total = 1 if loss_agg_mode == "token-sum" else counts.get(name)
    if total is None and ranks > 1:
        raise ValueError(
            f"global_batch_info must hold {name} when dp_size is {ranks}, got {counts}"
        )
    kept = advantages.clamp(min=0)
    if rollout_is_weights is not None:  # not negative, so they may as well scale the advantage
        kept = kept * rollout_is_weights
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    out = ppo_loss(
        log_prob,
        old_log_prob,
        kept,
        response_mask,
        clip=(low, high),
        aggregate=AGGREGATES[loss_agg_mode],
        normalizer=None if total is None else total / ranks,
    )
    loss = out.loss
    if loss_agg_mode == "seq-mean-token-sum-norm":
        loss = loss / (counts.get("loss_scale_factor") or response_mask.shape[-1])
    return loss, {
        "actor/pg_clipfrac": out.clip_fraction.item(),
        "actor/ppo_kl": out.approx_kl.item(),
    }


_gdpo = core_algos.get_adv_estimator_fn("gdpo")


def _gdpo_or_pama(*args: Any, config: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
    chosen = pama if config is not None and config.get("pama") else _gdpo
    result: tuple[Tensor, Tensor] = chosen(*args, config=config, **kwargs)
    return result


core_algos.ADV_ESTIMATOR_REGISTRY["gdpo"] = _gdpo_or_pama


def _fetching_scores(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`PPOTrainer._compute_advantage`, with the scores at hand."""

    @functools.wraps(compute)
    def compute_advantage(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        config = self.config.algorithm
        if config.adv_estimator != "pama" and not config.get("pama"):
            return compute(self, batch, metrics)
        before = _fetched.set(_fetch(batch, config.get("gdpo_reward_keys") or [], metrics))
        try:
            return compute(self, batch, metrics)
        finally:
            _fetched.reset(before)

    return compute_advantage


def _fetch(batch: Any, keys: list[str], metrics: dict[str, Any]) -> _Scores:
    """Columns of a reward model's output, else entries of what `compute_score` returned."""
    data = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", *keys]
    )
    by_key = {key: list(data[key]) for key in keys if key in data}
    if "extra_fields" in data:
        returned = [fields.get("reward_extra_info", {}) for fields in data["extra_fields"]]
        for key in set().union(*returned) - set(by_key):
            by_key[key] = [entries.get(key) for entries in returned]
    names, outputs = zip(*(key.rsplit("_", 1) for key in batch.keys), strict=True)
    _, session, sizes = np.unique(names, return_inverse=True, return_counts=True)
    order = np.lexsort((np.array(outputs, dtype=int), session))
    return _Scores(by_key, session, order[np.cumsum(sizes) - 1], metrics)


if importlib.util.find_spec("transfer_queue"):  # which that trainer cannot do without
    import transfer_queue
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    PPOTrainer._compute_advantage = _fetching_scores(PPOTrainer._compute_advantage)
