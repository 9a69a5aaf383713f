"""Tiny data sets for whole runs: three well separated clouds, as features or as pictures."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gradmimic.run.config import RunConfig
from gradmimic.run.job import run_job

CLASSES = 3
TRUSTED = 60  # the first rows, by the configuration below


def make_blobs(n, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    x = rng.normal(size=(n, 4)) + 3 * np.eye(CLASSES, 4)[y]
    return x.astype(np.float32), y


def write_blobs(folder, n=240):
    """Write x.npy and y.npy to train on, and test_x.npy and test_y.npy."""
    for prefix, rows, seed in (("", n, 0), ("test_", 90, 1)):
        x, y = make_blobs(rows, seed)
        np.save(folder / f"{prefix}x.npy", x)
        np.save(folder / f"{prefix}y.npy", y)


def blob_keys(folder, **changes):
    """Return the keys of a run on those files; those changed to ... are left out."""
    keys = {
        "data": str(folder / "x.npy"),
        "labels": "y.npy",
        "test": str(folder / "test_x.npy"),
        "test_labels": "test_y.npy",
        "trusted": f"0:{TRUSTED}",
        "noise": "symmetric",
        "noise_rate": 0.3,
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.01,
        "out": str(folder / "run"),
        "report": False,
        **changes,
    }
    return {key: value for key, value in keys.items() if value is not ...}


def run_blobs(folder, **changes):
    """Run on those files; return metrics.json and selection.parquet as they were written."""
    config = RunConfig(**blob_keys(folder, **changes))
    run_job(config)
    return read_outputs(config.out)


def read_outputs(out):
    metrics = json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8"))
    return metrics, pq.read_table(Path(out) / "selection.parquet")


def write_pictures(folder, n=24, size=6):
    """Write a folder of PNGs for each of two classes: reddish and bluish noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for row in range(n):
        name = ("red", "blue")[row % 2]
        pixels = rng.integers(0, 120, (size, size, 3))
        pixels[..., 0 if name == "red" else 2] += 130
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{row:03}.png")
