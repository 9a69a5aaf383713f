"""Hugging Face's Trainer on digits of which 40 % are mislabelled: plainly, and re-weighted.

python examples/hf_trainer.py

A ResNet of transformers, fresh weights, no network. The reference is the same net trained on 300
digits with checked labels, saved as any model is, and named by its folder.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from gradmimic import ScoreLog
from gradmimic.integrations.huggingface import MimicMixin
from gradmimic.outputs import Outputs

CHECKED, TEST, ROWS = np.arange(300), np.arange(300, 700), np.arange(700, 1300)


class MimicTrainer(MimicMixin, Trainer):
    """The one line that an own Trainer needs."""


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pictures ``[n, 1, 16, 16]``, their digits, and labels of which 40 % are wrong."""
    pixels, y = load_digits(return_X_y=True)
    chance = np.random.default_rng(0)
    order = chance.permutation(len(y))
    x, y = (pixels[order] / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8), y[order]
    wrong = chance.random(len(y)) < 0.4
    noisy = np.where(wrong, (y + chance.integers(1, 10, len(y))) % 10, y)
    return x.repeat(2, 2).repeat(2, 3), y, noisy


def fresh() -> torch.nn.Module:
    set_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    return AutoModelForImageClassification.from_config(config)


def main(folder: Path, epochs: int = 10) -> None:
    x, y, noisy = digits()

    def data(rows: np.ndarray, labels: np.ndarray) -> Dataset:
        columns = {"pixel_values": x[rows], "labels": labels[rows], "sample_id": rows}
        return Dataset.from_dict(columns).with_format("torch")

    def train(kind: type, rows: np.ndarray, labels: np.ndarray, epochs: int, **mimic: object):
        args = TrainingArguments(
            str(folder / "run"), num_train_epochs=epochs, per_device_train_batch_size=32,
            learning_rate=3e-3, report_to="none", save_strategy="no", use_cpu=True, seed=0,
            logging_strategy="no", disable_tqdm=True, log_level="error",
        )  # fmt: skip
        trainer = kind(model=fresh(), args=args, train_dataset=data(rows, labels), **mimic)
        trainer.train()
        logits = trainer.predict(data(TEST, y)).predictions
        return trainer, f"accuracy {(logits.argmax(1) == y[TEST]).mean():.1%}"

    better, found = train(Trainer, CHECKED, y, 2 * epochs)
    better.save_model(str(folder / "better"))
    print("the reference alone:", found)
    print("plain:", train(Trainer, ROWS, noisy, epochs)[1])

    said = Outputs(ROWS.tolist(), torch.tensor(better.predict(data(ROWS, y)).predictions))
    for name, mimic in {
        "re-weighted, by the reference's weights": {"reference": str(folder / "better")},
        "re-weighted, by what it says": {
            "reference": said,
            "align": "outputs",
            "temperature": "auto",
        },
    }.items():
        log = folder / name.split()[-1]
        found = train(MimicTrainer, ROWS, noisy, epochs, score_log=log, **mimic)[1]
        rows = ScoreLog.read(log).scan().to_pandas().groupby("sample_id")["score"].mean()
        right = noisy[rows.index] == y[rows.index]
        print(f"{name}: {found}, AUROC of the wrong labels {roc_auc_score(right, rows):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
