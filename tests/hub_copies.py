"""Tiny copies of the paper's image sets, laid out as on the hub, and a tiny ViT."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image as Picture

LAYOUTS = {  # folder of the Parquets, columns of picture and label, splits, other columns
    "dtd": ("data", "image", "label", ("train", "test"), ()),
    "flowers102": ("data", "image", "label", ("train", "validation", "test"), ()),
    "stl10": ("data", "image", "label", ("train", "test", "unlabeled"), ()),
    "pets": ("data", "image", "label", ("train", "test"), ("image_id", "label_cat_dog")),
    "cifar10": ("plain_text", "img", "label", ("train", "test"), ()),
    "cifar100": ("cifar100", "img", "fine_label", ("train", "test"), ("coarse_label",)),
}
NAMES = ("ant", "bee", "cow")


def pixels_of(split, rows, size=8):
    """Return ``[rows, 3, size, size]`` uint8; each class has a colour of its own."""
    chance = np.random.default_rng(len(split) + rows)
    noise = chance.integers(0, 60, (rows, 3, size, size))
    for row in range(rows):
        noise[row, row % len(NAMES)] += 150
    return noise.astype(np.uint8)


def encoded(picture):
    """Return a picture ``[3, s, s]`` as the bytes of a PNG file."""
    file = io.BytesIO()
    Picture.fromarray(picture.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def dataset(split, rows, image="image", label="label", more=(), size=8):
    """Return a ``datasets.Dataset`` of pictures in turns of the classes."""
    import datasets

    pictures = [{"bytes": encoded(own), "path": None} for own in pixels_of(split, rows, size)]
    labels = [row % len(NAMES) for row in range(rows)]
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(NAMES))}
    columns = {image: pictures, label: labels}
    for name in more:
        features[name], columns[name] = datasets.Value("string"), [name] * rows
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def write_copy(folder, name, train=12, test=6, size=8):
    """Write a set's Parquets as they lie on the hub."""
    inner, image, label, splits, more = LAYOUTS[name]
    (folder / inner).mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = train if split == "train" else test
        data = dataset(split, rows, image, label, more, size)
        halves = 2 if name == "dtd" and split == "train" else 1  # large splits have several files
        for part in range(halves):
            own = data.shard(halves, part, contiguous=True)
            own.to_parquet(folder / inner / f"{split}-{part:05d}-of-{halves:05d}.parquet")
    return folder


def write_features(folder, train=60, test=30, width=4, classes=3, seed=0):
    """Write features and labels alone, in clusters by class."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    centres = chance.normal(size=(classes, width)) * 3
    for part, rows in (("train", train), ("test", test)):
        labels = np.arange(rows) % classes
        features = centres[labels] + chance.normal(size=(rows, width))
        np.save(folder / f"features_{part}.npy", features.astype(np.float32))
        np.save(folder / f"labels_{part}.npy", labels)
    return folder


def write_vit(folder, seed=0, classes=5, size=16):
    """Save a ViT of one narrow layer, and its picture processor."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=size, patch_size=size // 2, num_labels=classes,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


def rename_column(file, old, new):
    """Write a Parquet again with a column of another name."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = [new if name == old else name for name in table.column_names]
    pq.write_table(pa.table(table.columns, names=names), file)
