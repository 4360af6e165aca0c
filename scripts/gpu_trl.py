"""A few steps of TRL's GRPO with PAMA, of a small GPT-2 and two rewards, and their time.

python scripts/gpu_trl.py cpu|cuda
"""

import sys
import tempfile

import datasets
import tokenizers
import torch
import transformers
import trl

from pama_ops._bench import seconds
from pama_ops.integrations.trl import PAMAGRPOTrainer

WORDS = [*"abcdefgh"]
STEPS, BATCH, LENGTH = 5, 64, 32


def share_of_a(completions: list[str], **_: object) -> list[float]:
    """One reward."""
    return [text.count("a") / LENGTH for text in completions]


def share_of_b(completions: list[str], **_: object) -> list[float]:
    """Another, at odds with it."""
    return [text.count("b") / LENGTH for text in completions]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A letter is a token."""
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[EOS]", *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[PAD]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", eos_token="[EOS]"
    )


def main(device: str) -> None:
    """Train and print the log."""
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 2, n_positions=64, n_embd=256, n_layer=4, n_head=4,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder, use_cpu=device == "cpu", bf16=False, report_to=[], max_steps=STEPS,
            logging_steps=1, save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
            per_device_train_batch_size=BATCH, num_generations=8, max_completion_length=LENGTH,
            beta=0.0, seed=0,
        )  # fmt: skip
        trainer = PAMAGRPOTrainer(
            model=transformers.GPT2LMHeadModel(config),
            reward_funcs=[share_of_a, share_of_b],
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"prompt": [*WORDS] * 16}),
            processing_class=tokenizer(),
        )
        took = seconds(trainer.train, torch.device(device))
    for row in trainer.state.log_history:
        print({k: v for k, v in row.items() if "reward" in k or "pama" in k or k == "loss"})
    print(f"{STEPS} steps on {device}: {1e3 * took / STEPS:.0f} ms a step")


if __name__ == "__main__":
    main(sys.argv[1])
