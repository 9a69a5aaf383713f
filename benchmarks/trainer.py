"""What the mimicking Trainer costs: its steps against those of the plain ``Trainer``.

    time = median_t (mimicking_t / plain_t)      the two take turns in one process

A step is what ``Trainer.train`` does of it: the next batch of the Trainer's own loader, with ids,
``training_step``, the optimizer's step. Every score is logged. The head is scored. Models are
small, for a CPU; the head of a language model grows with its vocabulary, and so does its share.

Run: python benchmarks/trainer.py [--quick]
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from datasets import Dataset
from harness import interleave, save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from trainer_step import Step
from transformers import Trainer, TrainingArguments

WORDS, ROWS = 8192, 512
SIZES: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": WORDS, "intermediate_size": 1024}


def bert() -> Any:
    own: dict[str, Any] = {"num_labels": 20}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, **own))


def vit() -> Any:
    own: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 4,
        "num_labels": 100,
        "intermediate_size": 1024,
    }
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **own))


def gpt2() -> Any:
    sizes: dict[str, Any] = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": WORDS}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=4))


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "BERT, classes of texts": (bert, 16),
    "ViT, classes of images": (vit, 16),
    "GPT-2, texts": (gpt2, 8),
    "Llama, texts": (llama, 8),
}
LENGTH = 64


def rows(model: Any) -> Dataset:
    """Draw inputs; what they are does not matter for the time that they take."""
    chance = torch.Generator().manual_seed(0)
    classes = torch.randint(20, (ROWS,), generator=chance).tolist()
    if isinstance(model, transformers.ViTForImageClassification):
        pixels = torch.randn(ROWS, 3, 32, 32, generator=chance).numpy()
        return Dataset.from_dict({"pixel_values": pixels, "labels": classes}).with_format("torch")
    words = torch.randint(WORDS, (ROWS, LENGTH), generator=chance).tolist()
    texts = isinstance(model, transformers.BertForSequenceClassification)
    return Dataset.from_dict({"input_ids": words, "labels": classes if texts else words})


def step_of(build: Callable[[], Any], batch: int, folder: str, *, mimics: bool) -> Step:
    torch.manual_seed(0)
    model, reference = build(), build()
    args = TrainingArguments(
        folder, per_device_train_batch_size=batch, report_to="none", use_cpu=True, seed=0,
        log_level="error", dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=rows(model))
    return Step(trainer, reference if mimics else None, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns")
    quick = parser.parse_args().quick
    results: list[dict[str, Any]] = []
    for name in track(MODELS, "measuring", console=Console(stderr=True)):
        build, batch = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            steps = {
                "plain": step_of(build, batch, folder, mimics=False),
                "mimicking": step_of(build, batch, folder, mimics=True),
                "plain again": step_of(build, batch, folder, mimics=False),
            }
            timing = interleave(steps, turns=3 if quick else 40)
            steps["mimicking"].trainer.score_log.close()
        results.append(
            {
                "model": name,
                "batch": batch,
                "plain_seconds": timing["plain"].seconds,
                "time_ratio": timing["mimicking"].ratio,
                "noise_ratio": timing["plain again"].ratio,
            }
        )
    table = Table("model", "batch", "plain step", "time ×", "plain again ×")
    for row in results:
        table.add_row(
            str(row["model"]), str(row["batch"]), f"{1e3 * row['plain_seconds']:.1f} ms",
            f"{row['time_ratio']:.3f}", f"{row['noise_ratio']:.3f}",
        )  # fmt: skip
    Console().print(table)
    if not quick:
        save("trainer", results, "python benchmarks/trainer.py")


if __name__ == "__main__":
    main()
