"""A small ViT for `reproduce table1 --tuning full` on a CPU, and the rows that it never saw.

Where no published ViT is at hand: 2 layers of width 48 on CIFAR-10's own 32 × 32 pictures, trained
on the clean labels of rows 15,000 … 29,999. The set for the table is rows 0 … 2,499, and 2,000 of
the test rows. So its features suit the set far better than ImageNet's would; what the table then
compares is how methods treat noise when everything trains.

Run: python benchmarks/reproduce_small_vit.py ../shared/data/cifar10n small
     gradmimic reproduce table1 --set cifar10 --data cifar10=small/cifar10 --backbone small/vit \
        --tuning full --out small/table1
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import Progress

from gradmimic.reproduce.backbones import Backbone
from gradmimic.reproduce.sets import load_set
from gradmimic.run.train import Rows, accuracy, train

PRETRAINED, TRAINED, TESTED = slice(15_000, 30_000), 2_500, 2_000
EPOCHS, LR = 4, 1e-3


def write_copy(source: Path, folder: Path) -> None:
    """Write the rows of the table as a set without its other columns."""
    folder.mkdir(parents=True, exist_ok=True)
    train_rows = pq.read_table(source / "images_train.parquet").slice(0, TRAINED)
    test_rows = pq.read_table(source / "images_test.parquet")  # sorted by class
    drawn = np.sort(np.random.default_rng(0).permutation(len(test_rows))[:TESTED])
    for part, rows, label in (
        ("train", train_rows, "clean_label"),
        ("test", test_rows.take(drawn), "label"),
    ):
        table = pa.table({"image": rows["image"], "label": rows[label]})
        pq.write_table(table, folder / f"{part}.parquet")


def write_vit(folder: Path) -> None:
    """Save a ViT with fresh weights, and the processor of its pictures."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8, id2label={n: str(n) for n in range(10)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def main() -> None:
    """Write the copy, and train and save the ViT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the folder with images_train.parquet")
    parser.add_argument("out", type=Path, help="the folder to write vit and cifar10 into")
    arguments = parser.parse_args()
    write_copy(arguments.source, arguments.out / "cifar10")
    write_vit(arguments.out / "vit")
    model = Backbone(str(arguments.out / "vit"), 10)
    whole = load_set("cifar10", arguments.source)
    pictures = torch.from_numpy(whole.train.pictures(32)[PRETRAINED])
    data = Rows(pictures, torch.from_numpy(whole.train.labels[PRETRAINED]))
    test = Rows(torch.from_numpy(whole.test.pictures(32)), torch.from_numpy(whole.test.labels))
    with Progress(console=Console(stderr=True)) as bars:
        task = bars.add_task("pretraining", total=EPOCHS * -(-len(data) // 64))
        train(
            model, data, epochs=EPOCHS, batch_size=64, lr=LR, weight_decay=1e-5, seed=0,
            on_step=lambda: bars.advance(task),
        )  # fmt: skip
    model.model.save_pretrained(arguments.out / "vit")
    Console().print(f"accuracy on CIFAR-10's test rows: {accuracy(model, test):.3f}")


if __name__ == "__main__":
    main()
