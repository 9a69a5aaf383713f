"""TRL's SFTTrainer on questions of which 40 % have a wrong answer: plainly, and re-weighted.

python examples/sft_trainer.py

A tiny Llama and a tokenizer of 70 words, no network. The base knows a little; the reference is the
base after a training on answers that were checked.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from gradmimic.integrations.huggingface import MimicMixin

THINGS, WRONG, RATE = 32, 0.4, 2e-3
WORDS = ["<pad>", "</s>", "what", "goes", "with", "?"]
WORDS += [f"{kind}{i}" for kind in ("thing", "answer") for i in range(THINGS)]


class MimicSFT(MimicMixin, SFTTrainer):
    """The one line that an own trainer needs."""


def tokenizer() -> PreTrainedTokenizerFast:
    own = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": WORDS[0], "eos_token": WORDS[1]}
    return PreTrainedTokenizerFast(tokenizer_object=own, **names)


def llama(weights: dict | None = None) -> LlamaForCausalLM:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if weights is not None:  # a model that TRL had is not to be copied: its forward is TRL's
        model.load_state_dict(weights)
    return model


def questions(rows: int, seed: int, wrong: float = 0.0) -> tuple[Dataset, np.ndarray]:
    """Return prompts with completions, and which of the answers are wrong."""
    chance = np.random.default_rng(seed)
    asked, bad = chance.integers(THINGS, size=rows), chance.random(rows) < wrong
    said = np.where(bad, (asked + chance.integers(1, THINGS, rows)) % THINGS, asked)
    prompts = [f"what goes with thing{i} ?" for i in asked]
    return Dataset.from_dict({"prompt": prompts, "completion": [f" answer{i}" for i in said]}), bad


def train(kind: type, start: dict | None, data: Dataset, folder: Path, **options) -> SFTTrainer:
    args = SFTConfig(
        str(folder), max_steps=50, per_device_train_batch_size=16, learning_rate=RATE,
        lr_scheduler_type="constant", logging_steps=20, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True, dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    made = kind(llama(start), args, train_dataset=data, processing_class=tokenizer(), **options)
    made.train()
    return made


def main(folder: Path, rows: int = 480) -> None:
    checked, _ = questions(rows, seed=1)
    noisy, bad = questions(rows, seed=2, wrong=WRONG)
    test, _ = questions(200, seed=3)
    base = train(SFTTrainer, None, checked, folder).model.state_dict()
    reference = train(SFTTrainer, base, checked, folder)
    plain = train(SFTTrainer, base, noisy, folder)
    mimic = train(
        MimicSFT, base, noisy, folder,
        reference=reference.model, temperature="auto", score_log=folder / "scores",
    )  # fmt: skip
    scored = mimic.add_scores(noisy)
    scores = np.array(scored["mimic_score"][:])
    print(f"AUROC of wrong answers, by mean score: {roc_auc_score(~bad, scores):.3f}")
    lowest = scored.select(np.argsort(scores)[:100])
    print(f"of the 100 lowest, wrong: {bad[np.argsort(scores)[:100]].sum()}")
    print(f"the lowest of all: {lowest[0]['prompt']}{lowest[0]['completion']}")
    for name, own in (("plain", plain), ("re-weighted", mimic), ("reference", reference)):
        found = own.evaluate(test)
        print(f"{name}: loss on right answers {found['eval_loss']:.2f}, "
              f"right tokens {found['eval_mean_token_accuracy']:.1%}")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else folder))
