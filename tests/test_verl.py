"""The plug-in in verl itself (`make test-verl`: verl's pins need an environment of their own)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

verl = pytest.importorskip("verl", reason="wants verl in an environment of its own: make test-verl")

import hydra  # noqa: E402
import ray  # noqa: E402
import transfer_queue  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from strategies import normal  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.trainer.ppo.v1 import get_trainer_cls  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

import pama_ops as po  # noqa: E402
from pama_ops.integrations import verl as plugin  # noqa: E402

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
    advantages, informative = torch.zeros(2, 8), torch.zeros(2, 8)
    for n, key in enumerate(KEYS):
        scores = np.asarray(data.non_tensor_batch[key], dtype=np.float64)
        for prompt in "abc":
            rows = np.flatnonzero((data.non_tensor_batch["uid"] == prompt) & ~np.isnan(scores))
            r = torch.tensor(scores[rows])
            advantages[n, rows] = ((r - r.mean()) / (r.std() + 1e-4)).float()
            informative[n, rows] = float(len(set(r.tolist())) > 1)
    assert int(informative.sum()) == 15  # of 16 scores one is None
    preference = informative * torch.tensor([[1.0], [3.0]])
    step = po.pama_advantages(advantages.unsqueeze(-1), reduction=reduction, preference=preference)
    expected = step.advantages * data.batch["response_mask"]
    # A few float32 roundings of numbers of the size of 1, in either order.
    torch.testing.assert_close(out, expected, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("reduction", po.advantages.REDUCTIONS)
def test_keys_that_say_nothing_leave_sessions_to_the_others(reduction: str) -> None:
    """Accuracy applies to prompts a and b; format applies to c and is the same in all of b."""
    data = batch()
    prompts = data.non_tensor_batch["uid"].tolist()
    accuracy = [None if u == "c" else float(k < 4) for k, u in enumerate(prompts)]
    form = [{"a": None, "b": 1.0, "c": float(k)}[u] for k, u in enumerate(prompts)]
    data.non_tensor_batch.update(accuracy=np.array(accuracy), format=np.array(form))
    config = settings(pama={"reduction": reduction, "noon": False})
    out = compute_advantage(data, "gdpo", config=config).batch["advantages"]
    taught = (out != 0).any(1)
    of_c = torch.tensor([u == "c" for u in prompts])
    assert taught[~of_c].all()
    assert taught[of_c].any()  # one of three may be average


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
    with pytest.raises(ValueError, match=r"scores of \['accuracy', 'format'\] must be"):
        compute_advantage(batch(), "pama", config=settings())
    with pytest.raises(ValueError, match="gdpo_reward_keys must list"):
        compute_advantage(batch(), "gdpo", config=OmegaConf.create({"pama": {"noon": True}}))


def command_lines(text: str) -> list[list[str]]:
    """The indented blocks of a text, each a list of settings."""
    blocks = re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    return [block.split() for block in blocks]


def compose(overrides: list[str]) -> object:
    """The whole settings of verl's trainer, as its command line makes them."""
    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with hydra.initialize_config_dir(config_dir=folder, version_base=None):
        return hydra.compose("ppo_trainer", overrides=overrides)


def test_documented_settings_are_taken_by_verl_and_choose_pama() -> None:
    default, legacy = command_lines(plugin.__doc__)
    chapter = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
    (chapter,) = re.findall(r"^## verl\n(.*?)^## ", chapter, re.DOTALL | re.MULTILINE)
    assert command_lines(chapter) == [default, legacy]
    config = compose(default)
    assert config.trainer.use_v1
    assert list(config.algorithm.gdpo_reward_keys) == KEYS
    assert core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator) is plugin.pama
    mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    assert core_algos.get_policy_loss_fn(mode) is plugin.pama_noon
    more = [setting for setting in default if not setting.startswith("algorithm.adv_estimator")]
    config = compose([*more, *legacy, "trainer.use_v1=False"])
    out = compute_advantage(batch(), config.algorithm.adv_estimator, config=config.algorithm).batch[
        "advantages"
    ]
    expected = plugin.pama(
        batch().batch["token_level_rewards"],
        batch().batch["response_mask"],
        batch().non_tensor_batch["uid"],
        config=config.algorithm,
        non_tensor_batch=batch().non_tensor_batch,
    )
    assert torch.equal(out, expected[0])


@pytest.fixture(scope="module", params=["in process", pytest.param("ray", marks=pytest.mark.slow)])
def queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """verl's TransferQueue; `make test-verl ARGS="-m slow"` runs the real one, over Ray."""
    if request.param == "ray":
        ray.init(num_cpus=8, include_dashboard=False, object_store_memory=10**8)
        config = compose(["transfer_queue.backend.SimpleStorage.num_data_storage_units=1"])
        transfer_queue.init(config.transfer_queue)
        yield
        transfer_queue.close()
        ray.shutdown()
        return
    stored: dict[tuple[str, str], dict[str, object]] = {}

    def kv_batch_put(
        keys: list[str], partition_id: str, fields: TensorDict, tags: object = None
    ) -> transfer_queue.KVBatchMeta:
        for k, key in enumerate(keys):
            stored.setdefault((partition_id, key), {}).update(
                {name: values[k] for name, values in fields.items()}
            )
        return transfer_queue.KVBatchMeta(keys, tags or [{} for _ in keys], partition_id)

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        rows = [stored[partition_id, key] for key in keys]
        return list_of_dict_to_tensordict(
            [{name: row[name] for name in select_fields if name in row} for row in rows]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_queue, "kv_batch_put", kv_batch_put)
        patch.setattr(transfer_queue, "kv_batch_get", kv_batch_get)
        yield


# Rows in the order after balancing over ranks: key, accuracy, format, tokens. Session b_0 is of an
# agent with two outputs, of which the last one's scores count; verl pads with a row without tokens.
ROWS = [
    ("a_1_0", 0.5, 3.0, 4),
    ("b_0_1", 2.0, 1.0, 2),
    ("a_0_0", 1.5, -1.0, 5),
    ("pad_0_0", 9.0, 9.0, 0),
    ("b_1_0", -1.0, None, 3),
    ("b_0_0", 7.0, 7.0, 1),
    ("b_2_0", 0.25, 0.5, 2),
]


def put(partition: str, as_columns: bool) -> transfer_queue.KVBatchMeta:
    """Into the queue, the rows as verl's agent loop or its reward model leaves them."""
    keys, rows = [], []
    for key, accuracy, form, tokens in ROWS:
        scores = {"accuracy": accuracy, "format": form}
        length = max(tokens, 1)
        row = {
            "uid": key.split("_")[0],
            "response_mask": (torch.arange(length) < tokens).long(),
            "rm_scores": torch.zeros(length),
            "extra_fields": {} if as_columns else {"reward_extra_info": scores},
        }
        rows.append({**row, **(scores if as_columns else {})})
        keys.append(key)
    tags = [{} for _ in keys]
    transfer_queue.kv_batch_put(
        keys=keys, fields=list_of_dict_to_tensordict(rows), tags=tags, partition_id=partition
    )
    return transfer_queue.KVBatchMeta(keys=keys, tags=tags, partition_id=partition)


@pytest.mark.parametrize("as_columns", [False, True])
@pytest.mark.parametrize("chosen", ["pama", "gdpo"])
def test_default_trainer_fetches_scores_and_counts_each_session_once(
    queue: None, chosen: str, as_columns: bool
) -> None:
    default, legacy = command_lines(plugin.__doc__)
    trainer = object.__new__(get_trainer_cls("sync"))
    trainer.config = compose(default if chosen == "pama" else [*default[1:], *legacy])
    meta = put(f"{chosen} {as_columns}", as_columns)
    metrics: dict[str, float] = {}
    trainer._compute_advantage(meta, metrics)
    # Of the five sessions, without the padding, format has no score of one.
    assert metrics["pama/informative/accuracy"] == 1
    assert metrics["pama/informative/format"] == pytest.approx(0.8)
    out = transfer_queue.kv_batch_get(
        keys=meta.keys, partition_id=meta.partition_id, select_fields=["advantages"]
    )["advantages"]
    sessions = {key.rsplit("_", 1)[0]: (x, y) for key, x, y, _ in sorted(ROWS) if key[0] != "p"}
    scores = torch.tensor([[np.nan if x is None else x for x in s] for s in sessions.values()]).T
    advantages = torch.cat(  # prompts a and b, with 2 and 3 sessions
        [po.group_normalize(scores[:, :2], 2), po.group_normalize(scores[:, 2:], 3)], dim=1
    )
    step = po.pama_advantages(advantages.float().unsqueeze(-1), reduction="sequence")
    expected = dict(zip(sessions, step.advantages[:, 0].tolist(), strict=True))
    for (key, _, _, tokens), row in zip(ROWS, out.unbind(), strict=True):
        value = expected.get(key.rsplit("_", 1)[0], 0)
        assert row.shape == (max(tokens, 1),)
        # Equal to float32's rounding of numbers of the size of 1, in either order.
        torch.testing.assert_close(
            row, torch.full_like(row, value), rtol=0, atol=8 * torch.finfo(torch.float32).eps
        )


def test_default_trainer_names_scores_that_are_not_there(queue: None) -> None:
    trainer = object.__new__(get_trainer_cls("sync"))
    keys = "+algorithm.gdpo_reward_keys=[accuracy,style]"
    trainer.config = compose(["algorithm.adv_estimator=pama", keys])
    with pytest.raises(ValueError, match=r"scores of \['style'\] .* \['accuracy', 'format'\]"):
        trainer._compute_advantage(put("missing", as_columns=False), {})
    assert plugin._fetched.get() is None


def actor(**counts: object) -> ActorConfig:
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=None,
        clip_ratio_high=0.3,
    )
    config.global_batch_info.update(counts)
    return config


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
    old, advantages = -torch.rand(8, 5), normal(8, 5)
    mask = batch().batch["response_mask"]
    importance = torch.rand(8, 5)
    for counts in ({}, {"dp_size": 4, "batch_num_tokens": 90, "global_batch_size": 24}):
        logp = (old + 0.3 * normal(8, 5)).requires_grad_()
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
    old, advantages = -torch.rand(8, 5), normal(8, 5)
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
