"""LoRA on wrong labels: what finds them, A and B by themselves or the weights that they make?

    base        a tiny Llama of banking77, trained in full on 1,500 clean rows
    reference   an adapter, or a full fine-tune, of the base on 2,000 clean rows
    student     an adapter of the base on 2,000 other rows, 40 % of them with a wrong label
    AUROC       that a right label scores higher than a wrong one: at the start, and over the visits
                of the first epoch

References differ in where their adapter began: from the student's A, from another A, with another
rank; and in what they are. Then what re-weighting gives: test accuracy after the last epoch. Also
what a step costs, in turns with the plain step.

Run: python benchmarks/lora.py [--quick]
"""

import argparse
import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import pyarrow.parquet as pq
import tokenizers
import torch
import transformers
from harness import interleave, save
from torch import Tensor
from torch.nn import functional as F

from gradmimic import GradMimic, mimic_scores
from gradmimic.integrations.peft import lora_reference
from gradmimic.separation import separation

SHARED = Path(os.environ.get("GRADMIMIC_DATA", "../shared/data")) / "banking77"
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CLASSES, LENGTH, BATCH = 77, 24, 32


class Rows(NamedTuple):
    """Token ids ``[n, LENGTH]`` (0 pads on the left), labels, and which of them are wrong."""

    ids: Tensor
    labels: Tensor
    wrong: Tensor


def load(seed: int) -> tuple[dict[str, Rows], int]:
    """Return the parts of the data, and the size of the vocabulary."""
    tables = {
        part: pq.read_table(SHARED / f"{part}.parquet").to_pydict() for part in ("train", "test")
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=2000, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(tables["train"]["text"], trainer)
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(direction="left", length=LENGTH)
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(tables["train"]["text"]))
    parts = {"base": order[:1500], "trusted": order[1500:3500], "noisy": order[3500:5500]}
    found = {}
    for part, rows in {**parts, "test": np.arange(len(tables["test"]["text"]))}.items():
        table = tables["test" if part == "test" else "train"]
        encoded = tokenizer.encode_batch([table["text"][i] for i in rows])
        labels = np.array([table["label"][i] for i in rows])
        wrong = np.zeros(len(rows), bool)
        if part == "noisy":
            wrong[chance.permutation(len(rows))[: int(0.4 * len(rows))]] = True
            moved = (labels + chance.integers(1, CLASSES, len(rows))) % CLASSES
            labels = np.where(wrong, moved, labels)
        ids = torch.tensor([one.ids for one in encoded])
        found[part] = Rows(ids, torch.from_numpy(labels), torch.from_numpy(wrong))
    return found, tokenizer.get_vocab_size()


def fresh(
    vocabulary: int, seed: int, wide: int = 64, layers: int = 2
) -> transformers.PreTrainedModel:
    """Build a Llama with a head of classes."""
    torch.manual_seed(seed)
    configured: Any = transformers.LlamaConfig
    built: Any = transformers.LlamaForSequenceClassification
    config = configured(
        hidden_size=wide, intermediate_size=2 * wide, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
        vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=1, num_labels=CLASSES,
    )  # fmt: skip
    model: transformers.PreTrainedModel = built(config)
    return model


def adapter_of(base: Any, seed: int, r: int = 8) -> peft.PeftModel:
    """Put a fresh adapter on a copy of the base; its A is of the seed."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.05, target_modules=TARGETS)
    return peft.get_peft_model(copy.deepcopy(base), config)


def losses_of(model: torch.nn.Module, rows: Rows, at: Tensor) -> Tensor:
    """Return ``[b]``."""
    ids = rows.ids[at]
    logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    return F.cross_entropy(logits, rows.labels[at], reduction="none")


def batches(n: int, epochs: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Draw shuffled batches, with the number of the epoch."""
    chance = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for at in torch.randperm(n, generator=chance).split(BATCH):
            yield epoch, at


def train(
    model: torch.nn.Module,
    rows: Rows,
    epochs: int,
    *,
    rate: float,
    seed: int,
    mimic: GradMimic | None = None,
) -> Tensor:
    """Train; return every row's score in the first epoch, where there is a reference."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    scores = torch.full((len(rows.labels),), torch.nan)
    torch.manual_seed(seed)
    for epoch, at in batches(len(rows.labels), epochs, seed):
        if mimic is None:
            loss = losses_of(model, rows, at).mean()
        else:
            with mimic:
                losses = losses_of(model, rows, at)
            loss = mimic.weigh(losses)
            if epoch == 0 and mimic.scores is not None:
                scores[at] = mimic.scores
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scores


def at_start(model: torch.nn.Module, rows: Rows, reference: Any, params: Any) -> Tensor:
    """Return every row's score while B is still 0."""
    model.eval()
    scored = [
        mimic_scores(model, reference, at, lambda m, at: losses_of(m, rows, at), params=params)
        for at in torch.arange(len(rows.labels)).split(128)
    ]
    return torch.cat(scored)


@torch.no_grad()
def accuracy(model: torch.nn.Module, rows: Rows) -> float:
    """Return the share of right answers."""
    model.eval()
    right = 0
    for at in torch.arange(len(rows.labels)).split(256):
        ids = rows.ids[at]
        logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        right += int((logits.argmax(1) == rows.labels[at]).sum())
    return right / len(rows.labels)


def one_seed(seed: int, epochs: int) -> dict[str, Any]:
    """Train the base, the references, and a student for each of them."""
    rows, vocabulary = load(seed)
    base = fresh(vocabulary, seed)
    train(base, rows["base"], 8, rate=2e-3, seed=seed)
    start = copy.deepcopy(base)
    found: dict[str, Any] = {"base": accuracy(base, rows["test"])}
    own, other = 100 + seed, 200 + seed
    references: dict[str, torch.nn.Module] = {
        "adapter, same A": adapter_of(start, own),
        "adapter, another A": adapter_of(start, other),
        "adapter, another A, r 4": adapter_of(start, other, r=4),
        "full fine-tune": base,
    }
    for name, reference in references.items():
        rate = 1e-3 if name == "full fine-tune" else 3e-3
        train(reference, rows["trusted"], 4, rate=rate, seed=seed + 1)
        found[f"reference: {name}"] = accuracy(reference, rows["test"])
    plain = adapter_of(start, own)
    train(plain, rows["noisy"], epochs, rate=2e-3, seed=seed)
    found["plain"] = accuracy(plain, rows["test"])
    wrong = rows["noisy"].wrong
    for name, reference in references.items():
        for params in ("adapter", "weights"):
            if params == "adapter" and (name.endswith("r 4") or name.startswith("full")):
                continue  # refused: they cannot be compared
            student = adapter_of(start, own)
            target, scored = lora_reference(student, reference, params)
            first = at_start(student, rows["noisy"], target, scored)
            mimic = GradMimic(student, target, params=scored, temperature="auto")
            scores = train(student, rows["noisy"], epochs, rate=2e-3, seed=seed, mimic=mimic)
            found[f"{params}: {name}"] = {
                "at the start": separation(first[~wrong].numpy(), first[wrong].numpy()).value,
                "first epoch": separation(scores[~wrong].numpy(), scores[wrong].numpy()).value,
                "accuracy": accuracy(student, rows["test"]),
            }
            print(seed, params, name, found[f"{params}: {name}"], flush=True)
    return found


def overhead(turns: int) -> dict[str, float]:
    """Return what a re-weighted step takes, over the plain step of the same adapter."""
    rows, vocabulary = load(0)
    base = fresh(vocabulary, 0, wide=256, layers=4)
    better = adapter_of(base, 1)
    full = fresh(vocabulary, 2, wide=256, layers=4)
    with torch.no_grad():
        for name, parameter in better.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    at = torch.arange(32)

    def stepping(reference: torch.nn.Module | None, params: str = "weights", **more: Any) -> Any:
        model = adapter_of(base, 0)
        mimic = None
        if reference is not None:
            target, scored = lora_reference(model, reference, params)
            mimic = GradMimic(model, target, params=scored, **more)

        def step() -> None:
            if mimic is None:
                loss = losses_of(model, rows["noisy"], at).mean()
            else:
                with mimic:
                    losses = losses_of(model, rows["noisy"], at)
                loss = mimic.weigh(losses)
            loss.backward()

        return step

    ways = {
        "plain": stepping(None),
        "adapter": stepping(better, "adapter"),
        "weights, of an adapter": stepping(better),
        "weights, of an adapter, backward once": stepping(better, backward="once"),
        "weights, of a full fine-tune": stepping(full),
    }
    return {name: timing.ratio for name, timing in interleave(ways, turns=turns).items()}


def main() -> None:
    """Measure all and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and one epoch")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)  # beside others, more of them wait for each other
    cost = overhead(3 if quick else 15)
    print(cost, flush=True)
    found = [one_seed(seed, 1 if quick else 2) for seed in range(1 if quick else 3)]
    results = {"seeds": found, "step over plain": cost}
    if not quick:
        save("lora", results, "python benchmarks/lora.py")


if __name__ == "__main__":
    main()
