"""The demo: its data, its rewards, its reports, and small runs of the whole."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

for package in (
    "transformers", "tokenizers", "sklearn", "vaderSentiment", "rich", "matplotlib", "pandas",
):  # fmt: skip
    pytest.importorskip(package, reason=f"the demo wants {package}: pip install 'pama_ops[demo]'")

import align_reviews  # noqa: E402
import pandas as pd  # noqa: E402
from reviews import cache, data, methods, ppo, prepare, report, rewards, schedule  # noqa: E402
from reviews.language_model import FineTuning, Sample, decode, load_policy, sample  # noqa: E402
from rich.console import Console  # noqa: E402

CPU = torch.device("cpu")
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prepare.Assets]:
    """Corpus, classifier and model of three fine-tuning steps, from 1,200 reviews."""
    everything = data.read_reviews()
    few = pd.concat([everything.iloc[:600], everything.iloc[-600:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "read_reviews", lambda: few)
        patch.setattr(rewards, "read_reviews", lambda: few)
        with prepare.one_thread():
            yield prepare.prepare(3, "cpu", 1, QUIET)


@pytest.fixture(scope="module")
def corpus(assets: prepare.Assets) -> data.Corpus:
    return data.load_corpus(assets.corpus)


def texts(*responses: str, prompt: str = "this film") -> rewards.Texts:
    lengths = np.array([len(response.split()) for response in responses])
    return rewards.Texts([prompt] * len(responses), list(responses), lengths)


# The data


def test_plain_sentences_keep_the_length_and_the_vocabulary() -> None:
    vocabulary = frozenset(["a", "good", "film", "with", "bad", "acting"])
    review = "A good film with bad acting. a film. a good film with 3 stars! a good film with bob."
    found = data.plain_sentences([review.lower()] * 2, vocabulary, 4, 24)
    assert found == ["a good film with bad acting."]


def test_classifier_and_language_model_hold_out_the_same_reviews() -> None:
    reviews = pd.DataFrame({"text": [f"text {k}" for k in range(50)], "label": [0, 1] * 25})
    share = data.CorpusSettings.held_out_share
    assert share == rewards.ClassifierSettings.held_out_share
    assert data.CorpusSettings.seed == rewards.ClassifierSettings.seed
    training, held_out = data.split_reviews(reviews, share, 0)
    assert set(training["text"]).isdisjoint(held_out["text"])
    assert len(held_out) == 5


def test_held_out_prompts_are_different_and_end_before_the_sentence(corpus: data.Corpus) -> None:
    prompts = corpus.held_out_prompts
    assert prompts.shape[1] == 3
    assert len(prompts.unique(dim=0)) == len(prompts)
    assert not (prompts == data.EOS_ID).any()
    assert all(len(sentence) > 3 for sentence in corpus.sentences[:100])


def test_tokenizer_gives_back_the_sentence(corpus: data.Corpus) -> None:
    sentence = "i've seen this, and it was great!"
    ids = corpus.tokenizer.encode(sentence).ids
    drawn = Sample(
        torch.tensor([ids[:3]]),
        torch.tensor([[*ids[3:], data.EOS_ID]]),
        torch.ones(1, len(ids) - 2, dtype=torch.bool),
    )
    decoded = decode(corpus.tokenizer, drawn)
    assert decoded.whole == [sentence]
    assert decoded.lengths.tolist() == [len(ids) - 2]


# The cache


def test_cache_builds_once_and_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []

    def build(folder: Path) -> None:
        (folder / "half").touch()
        built.append(folder)
        if len(built) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached("thing", {"size": 1}, build)
    assert list(cache.cache_root().iterdir()) == []
    folder = cache.cached("thing", {"size": 1}, build)
    assert cache.cached("thing", {"size": 1}, build) == folder
    assert len(built) == 2
    assert cache.cached("thing", {"size": 2}, build) != folder


# The rewards


def test_rewards_have_the_ranges_of_the_documentation(assets: prepare.Assets) -> None:
    classifier, accuracy = rewards.load_classifier(assets.classifier)
    functions = rewards.make_rewards(["sentiment", "brevity", "length"], classifier)
    good, bad = functions["sentiment"](texts(" great and wonderful", " the worst, awful, bad"))
    assert 2 >= good > bad >= -2
    assert accuracy > 0.7
    shortest = texts("a", " ".join("a" * 28))
    assert functions["brevity"](shortest).tolist() == [1 - 1 / 14, -1.0]
    assert functions["length"](shortest).tolist() == [0.5, 1.5]
    assert rewards.vader(texts(" is great"))[0] > 0 > rewards.vader(texts(" is awful"))[0]


@pytest.mark.parametrize("path", ["json", "json:", ":dumps", "json:nothing", "no_such:thing"])
def test_reward_that_cannot_be_imported_is_named(path: str) -> None:
    with pytest.raises(ValueError, match="--reward"):
        rewards.find_user_function(path)


@pytest.mark.parametrize("answer", [[1.0], [float("nan"), 0.0]])
def test_reward_of_the_wrong_shape_or_not_finite_is_refused(
    answer: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "find_user_function", lambda _path: lambda *_texts: answer)
    with pytest.raises(ValueError, match="one finite number for each of the 2 texts"):
        rewards.user_reward("some:function")(texts(" a", " b"))


# The policy


def test_sampling_repeats_and_masks_what_follows_the_end(
    assets: prepare.Assets, corpus: data.Corpus
) -> None:
    policy = load_policy(assets.model, 2, 0.8, CPU)
    drawn = sample(policy, corpus.prompts[:16], 12, torch.Generator().manual_seed(0))
    again = sample(policy, corpus.prompts[:16], 12, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.responses, again.responses)
    ends = (drawn.responses == data.EOS_ID).cumsum(dim=1)
    assert torch.equal(drawn.mask, ends - (drawn.responses == data.EOS_ID).long() == 0)


def test_log_probs_are_those_of_the_whole_model_without_a_cache(
    assets: prepare.Assets, corpus: data.Corpus
) -> None:
    policy = load_policy(assets.model, 2, 0.8, CPU)
    with torch.no_grad():
        drawn = sample(policy, corpus.prompts[:8], 6, torch.Generator().manual_seed(1))
        hidden = policy.hidden(drawn.prompts, drawn.responses)
        ours = policy.log_probs(hidden, drawn.responses, drawn.mask)
        logits = policy.model(torch.cat([drawn.prompts, drawn.responses], dim=1)).logits[:, 2:-1]
        full = torch.log_softmax(logits / 0.8, dim=-1)
        theirs = full.gather(2, drawn.responses.unsqueeze(-1)).squeeze(-1) * drawn.mask
    torch.testing.assert_close(ours, theirs)
    assert policy.values(hidden).shape == (2, *drawn.responses.shape)


@pytest.mark.parametrize(
    "name", ["morlhf", "morlhf-0.3", "token-0.7", *methods.MAIN[1:], *methods.REST[:3]]
)
def test_every_method_trains_and_repeats_itself(
    name: str, assets: prepare.Assets, corpus: data.Corpus
) -> None:
    objectives = rewards.make_rewards(
        ["sentiment", "brevity"], rewards.load_classifier(assets.classifier)[0]
    )
    settings = ppo.PPOSettings(iterations=1, batch=8, max_new_tokens=6)

    def run() -> tuple[list[dict[str, object]], torch.Tensor]:
        policy, reference = (load_policy(assets.model, 2, 0.8, CPU) for _ in range(2))
        records = list(
            ppo.train(
                policy,
                reference,
                corpus.prompts,
                corpus.tokenizer,
                list(objectives.values()),
                methods.find_method(name, 2),
                settings,
                seed=3,
            )
        )
        change = policy.model.lm_head.weight - reference.model.lm_head.weight
        assert change.abs().max() > 0
        return records, policy.model.lm_head.weight.detach()

    (first, weights), (second, same_weights) = run(), run()
    assert torch.equal(weights, same_weights)
    assert first[0]["rewards"] == second[0]["rewards"]
    assert sum(first[0]["weights"]) == pytest.approx(1, abs=1e-5)
    assert 0 < first[0]["choosing_seconds"] < first[0]["seconds"]


def test_fixed_weights_of_the_sweep_are_read_from_the_name() -> None:
    assert methods.find_method("morlhf-0.3", 3).keywords["weights"] == pytest.approx(
        (0.3, 0.35, 0.35)
    )
    preference = methods.find_method("token-0.7", 2).keywords["preference"]
    assert preference == pytest.approx((0.7, 0.3))
    for name in ("morlhf-2", "token-x", "pama", ""):
        with pytest.raises(ValueError, match="unknown method"):
            methods.find_method(name, 2)


# The reports


def test_hypervolume_of_known_sets() -> None:
    assert report.hypervolume([[2, 3]], [0, 1]) == 4
    assert report.hypervolume([[2, 1], [1, 2]], [0, 0]) == 3
    assert report.hypervolume([[2, 1], [1, 2], [1, 1]], [0, 0]) == 3
    assert report.hypervolume([[-1, 5]], [0, 0]) == 0
    assert report.hypervolume([[1, 1, 1], [2, 0.5, 1]], [0, 0, 0]) == pytest.approx(1.5)


def fake_run(method: str, seed: int, sentiment: float, brevity: float) -> dict[str, object]:
    rng = np.random.default_rng([seed, len(method)])
    by_prompt = {
        "sentiment": (sentiment + 0.1 * rng.standard_normal(50)).tolist(),
        "brevity": [brevity] * 50,
    }
    return {
        "identity": {
            "pair": "brevity",
            "method": method,
            "seed": seed,
            "objectives": ["sentiment", "brevity"],
        },
        "finished": True,
        "after": {
            "rewards": {"sentiment": sentiment + 0.01 * seed, "brevity": brevity},
            "rewards_by_prompt": by_prompt,
            "tokens": 4.0,
            "vader": 0.1,
            "kl": 1.0,
            "distinct": 0.9,
            "texts": [["a", " b"]] * 50,
        },
        "curve": [
            {
                "iteration": k,
                "rewards": [0.1 * k, 0.2],
                "weights": [0.5, 0.5],
                "seconds": 0.5,
                "choosing_seconds": 0.001,
            }
            for k in range(1, 4)
        ],
    }


def before() -> dict[str, object]:
    return {
        "brevity": {
            **fake_run("", 0, 0, 0.4)["after"],
            "rewards": {"sentiment": 0.0, "brevity": 0.4},
        }
    }


@pytest.mark.parametrize("seeds", [1, 5])
def test_summary_tells_above_from_below_from_equal(seeds: int) -> None:
    runs = [fake_run("morlhf", seed, 0.3, 0.7) for seed in range(seeds)]
    runs += [fake_run("token", seed, 0.5 + 0.02 * seed, 0.7) for seed in range(seeds)]
    runs += [fake_run("gram", seed, 0.2 - 0.02 * seed, 0.7) for seed in range(seeds)]
    rows = {row["method"]: row for row in report.summarise(runs, before())}
    assert rows["token"]["against_fixed"] == {"sentiment": "+", "brevity": "="}
    assert rows["gram"]["against_fixed"] == {"sentiment": "-", "brevity": "="}
    assert rows["morlhf"]["against_fixed"] is None
    assert rows["token"]["choosing_share"] == pytest.approx(0.002)
    mean, deviation = rows["morlhf"]["hypervolume"]
    assert mean == pytest.approx((0.3 + 0.01 * (seeds - 1) / 2) * 0.3)
    assert (deviation is None) == (seeds == 1)


def test_run_cut_short_counts_only_where_it_is_the_only_one() -> None:
    cut = [{**fake_run(name, 1, 0.1, 0.1), "finished": False} for name in ("token", "gram")]
    runs = [fake_run("token", 0, 0.5, 0.7), *cut]
    rows = report.summarise(report.settled(runs), before())
    assert [(row["method"], row["seeds"], row["cut_short"]) for row in rows] == [
        ("token", [0], 0),
        ("gram", [1], 1),
    ]


def test_table_and_figure_stand_for_any_set_of_methods(tmp_path: Path) -> None:
    from reviews.figure import draw

    names = [*methods.ALL, "morlhf-0.25"]
    runs = [fake_run(name, seed, 0.3, 0.7) for name in names for seed in range(2)]
    rows = report.summarise(runs, before())
    console = Console(width=80, record=True, file=QUIET.file)
    console.print(report.table(rows, before(), "brevity"))
    printed = console.export_text()
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "±0.01" in printed
    assert "…" not in printed
    for chosen in (runs, runs[:1]):
        draw(tmp_path / "figure.png", chosen, before(), "brevity")
        assert (tmp_path / "figure.png").stat().st_size < 300_000
    assert report.front_hypervolume(runs, before(), "brevity") is not None
    assert report.front_hypervolume(runs[:4], before(), "brevity") is None


# The command line, and the whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--iterations", "-3"], "--iterations must be at least 1"),
        (["--methods", "tokens"], "unknown method 'tokens'"),
        (["--reward", "nothing"], "module:function"),
        (["--device", "quantum"], "--device quantum"),
        (["--quick", "--full"], "not allowed with"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        align_reviews.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_full_plan_runs_the_main_methods_first() -> None:
    tasks = align_reviews.plan(align_reviews.parse(["--full"]))
    assert len(tasks) == 2 * (4 * 5 + 7 * 2)
    assert {task.method for task in tasks[:40]} == set(methods.MAIN)
    assert [task.pair for task in tasks[:40]] == ["brevity"] * 20 + ["length"] * 20
    assert {task.settings.kl_penalty for task in tasks if task.pair == "length"} == {0.1}
    assert len({task.file_name for task in tasks}) == len(tasks)


@pytest.mark.usefixtures("assets")
def test_small_run_of_the_whole_and_its_resumption(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path_factory.mktemp("module") / "reward_of_a_user.py"
    module.write_text("def letters(prompts, responses):\n    return [len(r) for r in responses]\n")
    monkeypatch.syspath_prepend(str(module.parent))
    reward = "reward_of_a_user:letters"
    arguments = ["--fine-tuning-steps", "3", "--iterations", "2", "--processes", "1"]
    arguments += ["--methods", "token", "--out", str(tmp_path), "--reward", reward]
    assert align_reviews.main([*arguments, "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    (run,) = results["runs"]
    assert run["finished"]
    assert run["identity"]["method"] == "token"
    assert [record["iteration"] for record in run["curve"]] == [1, 2]
    assert list(run["after"]["rewards"]) == ["sentiment", "brevity", reward]
    assert len(run["curve"][0]["weights"]) == 3
    assert results["before"]["brevity"]["kl"] == pytest.approx(0, abs=1e-4)
    assert results["versions"]["torch"] == torch.__version__
    assert results["settings"]["brevity"]["clip"] == 0.2
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "summary.json",
        "texts.md",
        "brevity.png",
        "runs",
    }
    written = (tmp_path / "runs" / "brevity-token-0.json").stat().st_mtime_ns
    assert align_reviews.main([*arguments, "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / "brevity-token-0.json").stat().st_mtime_ns == written


@pytest.mark.usefixtures("assets")
def test_interrupt_writes_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = schedule._Display.show
    handler = signal.getsignal(signal.SIGINT)

    def show_and_interrupt(
        self: object, task: schedule.Task, iteration: int, *rest: object
    ) -> None:
        shown(self, task, iteration, *rest)
        if iteration == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(schedule._Display, "show", show_and_interrupt)
    arguments = ["--fine-tuning-steps", "3", "--processes", "1", "--device", "cpu"]
    arguments += ["--iterations", "10000", "--methods", "token", "sequence", "gram"]
    assert align_reviews.main([*arguments, "--out", str(tmp_path)]) == 130
    (run,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert not run["finished"]
    assert 1 <= len(run["curve"]) < 10000
    assert list((tmp_path / "runs").iterdir()) == []  # what is not finished is run again
    assert signal.getsignal(signal.SIGINT) is handler


def test_fine_tuning_lowers_the_loss(corpus: data.Corpus) -> None:
    from reviews.language_model import fine_tune

    losses: list[float] = []
    fine_tune(corpus, FineTuning(steps=12), CPU, lambda _step, loss: losses.append(loss))
    assert np.mean(losses[-3:]) < losses[0] - 1


def test_the_cache_holds_the_classifier_as_numbers_and_words(assets: prepare.Assets) -> None:
    """A file that is unpickled runs whatever somebody put into the cache."""
    assert {file.suffix for file in assets.classifier.iterdir()} == {".json"}
    assert json.loads((assets.classifier / "classifier.json").read_text())["classes"] == [0, 1]
