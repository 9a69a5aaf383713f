"""Tiny pools of pairs for whole runs: two patches of colour, and a caption that names them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.job import run_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120,) * 3}
TRUSTED, POOL, TEST = 24, 96, 20


def picture(rng, left, right):
    pixels = np.zeros((16, 16, 3))
    pixels[:, :8], pixels[:, 8:] = COLOURS[left], COLOURS[right]
    pixels += rng.normal(0, 12, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pairs(n, seed):
    rng = np.random.default_rng(seed)
    for number in range(n):
        left, right = rng.choice([*COLOURS], 2)
        caption = f"{left} beside {right}, picture {number % 7}"
        yield f"{seed}-{number:04}", picture(rng, left, right), caption


def write_tar(path, samples):
    """Write samples (uid, picture, caption) as a shard; None leaves a member out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (uid, image, caption) in enumerate(samples):
            contents = {
                "png": image,
                "txt": None if caption is None else caption.encode(),
                "json": None if uid is None else json.dumps({"uid": uid}).encode(),
            }
            for suffix, content in contents.items():
                if content is not None:
                    member = tarfile.TarInfo(f"{number:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_pools(folder, shards=3):
    """Write pool/ with some dirt in it, trusted.tar and test.tar."""
    whole = [*pairs(POOL, seed=1)]
    whole[5] = (whole[5][0], b"no picture", whole[5][2])
    whole[9] = (*whole[9][:2], " ")
    size = len(whole) // shards
    for shard in range(shards):
        write_tar(folder / "pool" / f"{shard:05}.tar", whole[shard * size : (shard + 1) * size])
    write_tar(folder / "trusted.tar", pairs(TRUSTED, seed=2))
    write_tar(folder / "test.tar", pairs(TEST, seed=3))


def clip_keys(folder, **changes):
    """Return the keys of a run on those pools; those changed to ... are left out."""
    keys = {
        "data": str(folder / "pool"),
        "trusted": str(folder / "trusted.tar"),
        "test": str(folder / "test.tar"),
        "image_size": 16,
        "epochs": 2,
        "reference_epochs": 3,
        "batch_size": 16,
        "noise_rate": 0.3,
        "out": str(folder / "run"),
        "report": False,
        **changes,
    }
    return {key: value for key, value in keys.items() if value is not ...}


def run_pairs(folder, **changes):
    """Run on those pools; return metrics.json and selection.parquet as they were written."""
    config = ClipConfig(**clip_keys(folder, **changes))
    run_clip(config)
    out = Path(config.out)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics, pq.read_table(out / "selection.parquet")
