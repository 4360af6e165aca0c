"""PAMAGRPOTrainer in TRL itself: a tiny GPT-2 trained on the CPU, offline."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("trl", "datasets", "transformers", "tokenizers"):
    pytest.importorskip(package, reason=f"wants {package}: pip install 'pama_ops[trl]'")

import datasets  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402

import pama_ops as po  # noqa: E402
from pama_ops.integrations.trl import PAMAGRPOTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and its dependencies' own warnings
WORDS = [*"abcdefgh"]
BATCH, LENGTH = 64, 8


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[EOS]", *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[PAD]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", eos_token="[EOS]"
    )


def share_of_a(completions: list[str], **kwargs: object) -> list[float]:
    return [text.count("a") / 8 for text in completions]


def share_of_b(completions: list[str], **kwargs: object) -> list[float]:
    return [text.count("b") / 8 for text in completions]


def sometimes(completions: list[str], **kwargs: object) -> list[float | None]:
    """Does not apply to every other completion."""
    return [None if k % 2 else r for k, r in enumerate(share_of_b(completions))]


def share_of(
    completions: list[str], prompts: list[str], word: str, where: str, **kwargs: object
) -> list[float | None]:
    """Applies to the prompts in `where` only."""
    return [
        text.count(word) / 8 if prompt in where else None
        for text, prompt in zip(completions, prompts, strict=True)
    ]


def make_trainer(
    path: Path,
    rewards: list[object],
    kind: type = PAMAGRPOTrainer,
    steps: int = 2,
    **options: object,
) -> trl.GRPOTrainer:
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 2, n_positions=32, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    settings = {
        "output_dir": str(path), "use_cpu": True, "bf16": False, "report_to": [],
        "max_steps": steps, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "learning_rate": 1e-2, "per_device_train_batch_size": BATCH, "num_generations": 8,
        "max_completion_length": LENGTH, "beta": 0.0, "seed": 0, **options.pop("settings", {}),
    }  # fmt: skip
    return kind(
        transformers.GPT2LMHeadModel(config),
        rewards,
        trl.GRPOConfig(**settings),
        datasets.Dataset.from_dict({"prompt": WORDS * 8}),
        processing_class=tokenizer(),
        **options,
    )


def test_twenty_steps_raise_both_rewards_and_log_what_led(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [share_of_a, share_of_b], steps=20)
    trainer.train()
    history = [row for row in trainer.state.log_history if "pama/weight/share_of_a" in row]
    assert len(history) == 20
    for name in ("share_of_a", "share_of_b"):
        means = torch.tensor([row[f"rewards/{name}/mean"] for row in history])
        deviation = torch.tensor([row[f"rewards/{name}/std"] for row in history])
        # Standard error of a difference of means over 5 steps of 64 completions each.
        error = deviation.max() * math.sqrt(2 / (5 * 64))
        assert means[-5:].mean() - means[:5].mean() > -2 * error
        assert all(0 <= row[f"pama/weight/{name}"] <= 1 for row in history)
        assert all(row[f"pama/mean/{name}"] >= 0 for row in history)
        assert history[0][f"pama/active/{name}"] == 1
    # 8 words and the end are equally likely at first: the sum of the two rewards must have risen.
    total = [row["rewards/share_of_a/mean"] + row["rewards/share_of_b/mean"] for row in history]
    assert sum(total[-5:]) > sum(total[:5])
    cosines = [row["pama/cosine/share_of_a/share_of_b"] for row in history]
    assert all(0 <= c <= 1 + 1e-12 for c in cosines if c is not None)


def test_rewards_for_different_prompts_both_rise_on_their_own(tmp_path: Path) -> None:
    """Two partials of one function, each None on the other's prompts."""
    rewards = [
        functools.partial(share_of, word="a", where="abcd"),
        functools.partial(share_of, word="b", where="efgh"),
    ]
    trainer = make_trainer(tmp_path, rewards, steps=20)
    trainer.train()
    history = [row for row in trainer.state.log_history if "pama/weight/share_of" in row]
    assert len(history) == 20
    for name in ("share_of", "share_of_2"):
        means = [row[f"rewards/{name}/mean"] for row in history]
        # From one word in 9 to some .4. A mean over five steps is of some 160 completions, as half
        # of the prompts are this reward's, which deviate by at most .25: its standard error is .02.
        assert sum(means[-5:]) / 5 - sum(means[:5]) / 5 > 0.1
    said = [
        row["pama/informative/share_of"] + row["pama/informative/share_of_2"] for row in history
    ]
    assert max(said) <= 1
    assert sum(said) / 20 > 0.9  # but for groups that came out flat
    for row in history:  # alone where it speaks, and it teaches there
        assert row["pama/weight/share_of"] == row["pama/informative/share_of"]
        assert row["pama/weight/share_of_2"] == row["pama/informative/share_of_2"]


def test_rewards_of_one_name_get_their_own_keys(tmp_path: Path) -> None:
    def share_of_2(completions: list[str], **kwargs: object) -> list[float]:
        return share_of_b(completions)

    def factory(word: str) -> Callable[..., list[float | None]]:
        def reward(completions: list[str], **kwargs: object) -> list[float | None]:
            return [text.count(word) / 8 for text in completions]

        return reward

    first, second = (functools.partial(share_of, word=word, where="abcdefgh") for word in "ab")
    rewards = [first, share_of_2, second, factory("a"), factory("b")]
    trainer = make_trainer(tmp_path, rewards)
    names = ["share_of", "share_of_2", "share_of_3", "reward", "reward_2"]
    assert trainer.reward_func_names == names
    trainer.train()
    row = trainer.state.log_history[0]
    for name in names:
        for key in ("rewards/{}/mean", "pama/weight/{}", "pama/active/{}", "pama/informative/{}"):
            assert key.format(name) in row
    assert row["rewards/share_of/mean"] == row["rewards/reward/mean"]
    assert row["rewards/share_of_3/mean"] == row["rewards/reward_2/mean"]
    assert row["rewards/reward/mean"] != row["rewards/reward_2/mean"]
    assert "pama/cosine/reward/reward_2" in row
    assert {*trainer._logs["rewards"]} == {*names}
    for rewarded in trainer._logs["rewards"].values():
        assert len(rewarded) == len(trainer._logs["completion"])


def test_advantages_of_ones_own_speak_for_a_flat_group(tmp_path: Path) -> None:
    class Raw(PAMAGRPOTrainer):
        """The rewards themselves, of which a flat group's are not 0."""

        def advantages_of_objectives(
            self, rewards: torch.Tensor, output: dict[str, torch.Tensor]
        ) -> torch.Tensor:
            return rewards.nan_to_num()

    def right(completions: list[str], **kwargs: object) -> list[float]:
        return [1.0] * len(completions)

    trainer = make_trainer(tmp_path, [share_of_a, right], kind=Raw, reduction="token")
    trainer.model.train()
    output = trainer._generate_and_score_completions([{"prompt": w} for w in WORDS for _ in WORDS])
    assert torch.equal(output["advantages"], trainer._rewards[:, 0])  # below 1 as a rule


@pytest.mark.parametrize("reduction", ["token", "sequence", "gram", "batch"])
def test_loss_gets_the_combination_of_the_rewards_that_trl_computed(
    tmp_path: Path, reduction: str
) -> None:
    trainer = make_trainer(
        tmp_path, [share_of_a, sometimes], reduction=reduction, preference=[1, 3], noon=False
    )
    trainer.model.train()
    output = trainer._generate_and_score_completions([{"prompt": w} for w in WORDS for _ in WORDS])
    rewards = trainer._rewards
    assert rewards.shape == (64, 2)
    assert rewards[1::2, 1].isnan().all()
    advantages, informative = po.group_normalize(rewards.T, 8, return_informative=True)
    assert (advantages[1, 1::2] == 0).all()
    assert not informative[1, 1::2].any()
    expected = po.pama_advantages(
        advantages.unsqueeze(-1),
        reduction=reduction,
        preference=informative * torch.tensor([[1.0], [3.0]]),
        noon=False,
    )
    assert torch.equal(output["advantages"], expected.advantages[:, 0])
    assert output["advantages"].isfinite().all()
    assert list(trainer._logs["advantages"]) == output["advantages"].tolist()


def test_single_reward_gets_trls_own_advantages_where_it_does_not_apply(tmp_path: Path) -> None:
    def in_some_groups(completions: list[str], **kwargs: object) -> list[float | None]:
        """In no completion of the first prompt, in one of the second's, in half of the others'."""
        rewards = sometimes(completions)
        return [None] * 15 + [0.5] + rewards[16:]

    outputs = []
    for kind, options in ((PAMAGRPOTrainer, {"noon": False}), (trl.GRPOTrainer, {})):
        trainer = make_trainer(tmp_path, [in_some_groups], kind=kind, **options)
        trainer.model.train()
        transformers.set_seed(0)
        outputs.append(
            trainer._generate_and_score_completions([{"prompt": w} for w in WORDS for _ in WORDS])
        )
    ours, theirs = outputs
    assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert theirs["advantages"].count_nonzero() > 8
    assert (theirs["advantages"][:16] == 0).all()
    # TRL's own sums are of float32: a few roundings of numbers of the size of 1.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(ours["advantages"], theirs["advantages"], rtol=8 * eps, atol=8 * eps)


def test_reward_that_never_applies_gets_no_weight(tmp_path: Path) -> None:
    def never(completions: list[str], **kwargs: object) -> list[None]:
        return [None] * len(completions)

    trainer = make_trainer(tmp_path, [share_of_a, never])
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["pama/weight/never"] == row["pama/active/never"] == 0
    assert row["pama/cosine/share_of_a/never"] is None
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_documented_snippet_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*PAMAGRPOTrainer[^`]*)```", text)
    theirs = make_trainer(tmp_path, [share_of_a, share_of_b], kind=trl.GRPOTrainer)
    names = {
        "model": theirs.model,
        "helpful": share_of_a,
        "short": share_of_b,
        "args": theirs.args,
        "prompts": theirs.train_dataset,
        "tokenizer": theirs.processing_class,
    }
    exec(code, names)
    assert names["trainer"].state.log_history[0]["pama/active/share_of_b"] == 1


class ByToken(PAMAGRPOTrainer):
    """Gives each objective its advantage at the even or at the odd tokens only."""

    def advantages_of_objectives(
        self, rewards: torch.Tensor, output: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        advantages = self.of_this_rank(super().advantages_of_objectives(rewards, output))
        mask = output["completion_mask"]
        odd = torch.arange(mask.shape[1]) % 2
        where = torch.stack([1 - odd, odd]).unsqueeze(1)
        return torch.where(mask == 1, advantages.unsqueeze(-1) * where, torch.nan)


def test_advantages_by_token_reach_the_loss_and_padding_does_not(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [share_of_a, share_of_b], kind=ByToken, reduction="gram")
    trainer.model.train()
    output = trainer._generate_and_score_completions([{"prompt": w} for w in WORDS for _ in WORDS])
    mask = output["completion_mask"]
    assert output["advantages"].shape == mask.shape
    assert (mask == 0).any()  # some completion has ended early, so that padding is there
    assert (output["advantages"][mask == 0] == 0).all()
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    # The even tokens are one objective's and the odd ones the other's: they never meet.
    row = trainer.state.log_history[0]
    assert row["pama/cosine/share_of_a/share_of_b"] == 0
    assert row["pama/mean/share_of_a"] > 0


def test_arguments_are_those_of_grpo_trainer_and_three_more(tmp_path: Path) -> None:
    parameters = inspect.signature(PAMAGRPOTrainer.__init__).parameters
    assert [k for k, p in parameters.items() if p.kind == p.KEYWORD_ONLY] == [
        "reduction",
        "preference",
        "noon",
    ]
    theirs, ours = (
        make_trainer(tmp_path, [share_of_a, share_of_b], kind=kind)
        for kind in (trl.GRPOTrainer, PAMAGRPOTrainer)
    )
    assert ours.args.to_dict() == theirs.args.to_dict()
    assert ours.reward_func_names == theirs.reward_func_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "mean"}, "reduction must be one of"),
        ({"preference": [1.0]}, "preference must have the 2 entries"),
        ({"preference": [1.0, -1.0]}, "^preference must be nonnegative"),
        ({"settings": {"reward_weights": [1.0, -1.0]}}, "^args.reward_weights must be nonnegative"),
        ({"settings": {"scale_rewards": "batch"}}, "args.scale_rewards must be 'group'"),
        (
            {"settings": {"multi_objective_aggregation": "normalize_then_sum"}},
            "args.multi_objective_aggregation must be left",
        ),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, [share_of_a, share_of_b], **options)


class Entries:
    """A list of a configuration that is no Sequence."""

    def __init__(self, *entries: float) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> float:
        return self.entries[i]


@pytest.mark.parametrize(
    "preference",
    [Entries(1, 3), [np.int64(1), np.float32(3)], np.array([1, 3]), torch.tensor([1, 3])],
)
def test_numbers_of_other_libraries_are_a_preference(tmp_path: Path, preference: object) -> None:
    trainer = make_trainer(tmp_path, [share_of_a, share_of_b], preference=preference, noon=np.True_)
    assert trainer.preference == [1, 3]
    assert trainer.noon is True


def test_arguments_of_a_wrong_kind_are_named(tmp_path: Path) -> None:
    for options, message in (
        ({"noon": 1}, "noon must be True or False, got 1"),
        ({"preference": 3}, "preference must be a tensor or a sequence, got int"),
        ({"preference": [1, "3"]}, r"preference\[1\] must be a number, got str"),
    ):
        with pytest.raises(TypeError, match=message):
            make_trainer(tmp_path, [share_of_a, share_of_b], **options)


def same_for_any_number_of_ranks(prompts: list[str], trainer: trl.GRPOTrainer) -> dict[str, object]:
    """In place of sampling: completions that depend on the step and the place in the batch only."""
    generator = torch.Generator().manual_seed(trainer.state.global_step)
    words = torch.randint(2, 2 + len(WORDS), (BATCH, LENGTH), generator=generator)
    lengths = 2 + torch.arange(BATCH) * (LENGTH - 1) // BATCH  # shorter ones on the first rank
    completions = [row[:n].tolist() for row, n in zip(words, lengths, strict=True)]
    first = trainer.accelerator.process_index * len(prompts)
    return {
        "prompt_ids": trainer.processing_class(prompts)["input_ids"],
        "completion_ids": completions[first : first + len(prompts)],
        "logprobs": None,
    }


def train_on(
    rank: int, world: int, path: Path, kind: type, reduction: str
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]], list[dict[str, float]]]:
    """Parameters before and after training as one of `world` ranks, and what was logged."""
    if world > 1:  # what a launcher sets; the process group is there already
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    trainer = make_trainer(
        path,
        [share_of_a, sometimes],
        kind=kind,
        reduction=reduction,
        rollout_func=same_for_any_number_of_ranks,
        settings={
            "per_device_train_batch_size": BATCH // world,
            "optim": "sgd",  # Adam would divide differences of rounding by vanishing gradients
            "learning_rate": 1.0,
            "disable_dropout": True,
        },
    )
    assert trainer.accelerator.num_processes == world
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    rows = [row for row in trainer.state.log_history if "pama/weight/share_of_a" in row]
    logged = [{k: v for k, v in row.items() if k.startswith("pama/")} for row in rows]
    return before, [p.detach() for p in trainer.model.parameters()], logged


@pytest.mark.parametrize(
    ("kind", "reduction"), [(PAMAGRPOTrainer, "sequence"), (ByToken, "gram"), (ByToken, "batch")]
)
def test_two_ranks_train_as_one_process_does(
    ranks: Callable[..., list[object]], tmp_path: Path, kind: type, reduction: str
) -> None:
    before, alone, logged = train_on(0, 1, tmp_path, kind, reduction)
    (_, first, first_logged), (_, second, second_logged) = ranks(
        train_on, 2, tmp_path, kind, reduction
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first_logged == second_logged
    # Sums of float32, of numbers below 1, in another order: a few roundings in each of two steps.
    tolerance = 8 * torch.finfo(torch.float32).eps
    step = max((a - b).abs().max() for a, b in zip(alone, before, strict=True))
    assert step > 1e4 * tolerance
    for ours, theirs in zip(first, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert len(logged) == 2
    for ours, theirs in zip(first_logged, logged, strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=tolerance)
