"""The plug-in in verl itself (`make test-verl`: verl's pins need an environment of their own)."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

verl = pytest.importorskip("verl", reason="wants verl in an environment of its own: make test-verl")

from omegaconf import OmegaConf  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402

import pama_ops as po  # noqa: E402

KEYS = ["accuracy", "format"]


def batch() -> DataProto:
    rng = np.random.default_rng(0)
    mask = torch.ones(8, 5, dtype=torch.long)
    mask[::2, 3:] = 0
    return DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.zeros(8, 5),
            "response_mask": mask,
            "prompts": torch.zeros(8, 2),
            "attention_mask": torch.cat([torch.ones(8, 2, dtype=torch.long), mask], dim=1),
        },
        non_tensors={
            # The order after balancing over ranks: prompts' responses no longer stand together.
            "uid": np.array(list("abacbcab"), dtype=object),
            "accuracy": np.array([*rng.normal(size=7), None], dtype=object),
            "format": rng.normal(size=8),
        },
    )


def settings(**more: object) -> object:
    return OmegaConf.create({"gdpo_reward_keys": KEYS, **more})


def test_import_of_verl_loads_the_plugin() -> None:
    assert core_algos.get_adv_estimator_fn("pama").__module__ == "pama_ops.integrations.verl"
    assert core_algos.get_policy_loss_fn("pama_noon").__module__ == "pama_ops.integrations.verl"


@pytest.mark.parametrize("reduction", po.advantages.REDUCTIONS)
def test_trainer_hands_over_scores_and_gets_pama(reduction: str) -> None:
    data = batch()
    config = settings(pama={"reduction": reduction}, gdpo_reward_weights=[1, 3])
    out = compute_advantage(data, "gdpo", config=config).batch["advantages"]
    advantages = torch.zeros(2, 8)
    for n, key in enumerate(KEYS):
        scores = np.asarray(data.non_tensor_batch[key], dtype=np.float64)
        for prompt in "abc":
            rows = np.flatnonzero((data.non_tensor_batch["uid"] == prompt) & ~np.isnan(scores))
            r = torch.tensor(scores[rows])
            advantages[n, rows] = ((r - r.mean()) / (r.std() + 1e-4)).float()
    step = po.pama_advantages(advantages.unsqueeze(-1), reduction=reduction, preference=[1, 3])
    expected = step.advantages * data.batch["response_mask"]
    # A few float32 roundings of numbers of the size of 1, in either order.
    torch.testing.assert_close(out, expected, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_gdpo_without_pama_is_verls_own() -> None:
    out = compute_advantage(batch_without_none(), "gdpo", config=settings()).batch["advantages"]
    data = batch_without_none()
    own = core_algos.compute_gdpo_outcome_advantage(
        data.batch["token_level_rewards"],
        data.batch["response_mask"],
        data.non_tensor_batch["uid"],
        config=settings(),
        non_tensor_batch=data.non_tensor_batch,
        batch=data.batch,
    )
    assert torch.equal(out, own[0])


def batch_without_none() -> DataProto:
    data = batch()
    data.non_tensor_batch["accuracy"][-1] = 0.5
    return data


def test_missing_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"scores of \['accuracy', 'format'\]"):
        compute_advantage(batch(), "pama", config=settings())
    with pytest.raises(ValueError, match="gdpo_reward_keys must list"):
        compute_advantage(batch(), "gdpo", config=OmegaConf.create({"pama": {"noon": True}}))


def actor(**counts: object) -> object:
    return types.SimpleNamespace(
        clip_ratio=0.2,
        clip_ratio_low=None,
        clip_ratio_high=0.3,
        global_batch_info=counts,
        get=lambda _key, default: default,
    )


@pytest.mark.parametrize(
    "mode",
    [
        "token-mean",
        "token-sum",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
        "seq-mean-token-mean",
    ],
)
def test_loss_is_vanilla_of_positive_advantages_in_every_mode(mode: str) -> None:
    torch.manual_seed(0)
    old, advantages = -torch.rand(8, 5), torch.randn(8, 5)
    mask = batch().batch["response_mask"]
    importance = torch.rand(8, 5)
    for counts in ({}, {"dp_size": 4, "batch_num_tokens": 90, "global_batch_size": 24}):
        logp = (old + 0.3 * torch.randn(8, 5)).requires_grad_()
        ours, metrics = core_algos.get_policy_loss_fn("pama_noon")(
            old, logp, advantages, mask, mode, actor(**counts), importance
        )
        theirs, their_metrics = core_algos.get_policy_loss_fn("vanilla")(
            old, logp, advantages.clamp(min=0), mask, mode, actor(**counts), importance
        )
        torch.testing.assert_close(ours, theirs)
        gradient, their_gradient = (torch.autograd.grad(x, logp)[0] for x in (ours, theirs))
        torch.testing.assert_close(gradient, their_gradient)
        assert metrics["actor/pg_clipfrac"] == pytest.approx(their_metrics["actor/pg_clipfrac"])


def test_micro_batches_of_unequal_length_add_up_to_the_whole_batch() -> None:
    torch.manual_seed(0)
    old, advantages = -torch.rand(8, 5), torch.randn(8, 5)
    logp, mask = old + 0.1, batch().batch["response_mask"]
    mask[:3, 1:] = 0
    loss = core_algos.get_policy_loss_fn("pama_noon")
    whole = loss(old, logp, advantages, mask, config=actor())[0]
    counts = {"dp_size": 1, "batch_num_tokens": mask.sum()}
    parts = [
        loss(old[k], logp[k], advantages[k], mask[k], config=actor(**counts))[0]
        for k in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(sum(parts), whole)
    apart = [
        loss(old[k], logp[k], advantages[k], mask[k], config=actor())[0]
        for k in (slice(0, 3), slice(3, 8))
    ]
    assert abs(sum(apart) / 2 - whole) > 0.01 * abs(whole)  # each by its own count: wrong


def test_wrong_settings_of_the_loss_are_named() -> None:
    x = torch.zeros(1, 1)
    loss = core_algos.get_policy_loss_fn("pama_noon")
    with pytest.raises(ValueError, match="loss_agg_mode must be one of"):
        loss(x, x, x, x, "mean", actor())
    with pytest.raises(ValueError, match="batch_num_tokens when dp_size is 2"):
        loss(x, x, x, x, config=actor(dp_size=2))
