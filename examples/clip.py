"""Draw pictures of coloured shapes, with their captions, as WebDataset shards: no download.

    python examples/clip.py runs/clip-data && gradmimic run examples/clip.yaml

pool/00000.tar …   pairs to train on; a few pictures are broken, captions empty, ids twice there
trusted.tar        pairs that match
test.tar           pairs to retrieve
colours/           labelled pictures, for zero-shot classification
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4", "yellow": "#f2d024",
    "purple": "#8e44ad", "orange": "#ff7f0e", "black": "#111111", "white": "#fafafa",
}  # fmt: skip
SHAPES = {"circle": 40, "triangle": 3, "square": 4, "hexagon": 6}  # corners
GROUNDS = {"grey": "#8a8f98", "pink": "#f5b5c8", "brown": "#7a5230", "turquoise": "#40c9c0"}
PAIRS, SHARD, TRUSTED, TEST, LABELLED = 500, 125, 80, 300, 40


def polygon(shape, x, y, radius, turn):
    angles = turn + 2 * np.pi * np.arange(SHAPES[shape]) / SHAPES[shape]
    corners = zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)
    return [(float(a), float(b)) for a, b in corners]


def draw(rng, both, ground):
    """Draw two shapes, each of its colour, about their places."""
    picture = Image.new("RGB", (96, 64), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    for at, (colour, shape) in zip((25, 71), both, strict=True):
        x, y = rng.normal((at, 32), 3)
        corners = polygon(shape, x, y, rng.uniform(13, 20), rng.uniform(0, 2 * np.pi))
        pen.polygon(corners, fill=COLOURS[colour])
    noisy = np.asarray(picture) + rng.normal(0, 8, (64, 96, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def pair(rng):
    both = [(rng.choice([*COLOURS]), rng.choice([*SHAPES])) for _ in range(2)]
    ground = rng.choice([*GROUNDS])
    one, other = (f"{'an' if colour[0] == 'o' else 'a'} {colour} {shape}" for colour, shape in both)
    caption = f"{one.capitalize()} and {other} on {ground} ground."
    return draw(rng, both, ground), caption


def write_shard(path, rng, first, count, dirty=False):
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            picture, caption = pair(rng)
            uid = f"{number:032x}"
            if dirty and number % 97 == 13:
                picture = picture[:200]
            if dirty and number % 131 == 17:
                caption = " "
            if dirty and number == first + 50:
                uid = f"{first:032x}"
            for suffix, content in (
                ("jpg", picture),
                ("txt", caption.encode()),
                ("json", json.dumps({"uid": uid}).encode()),
            ):
                member = tarfile.TarInfo(f"{number:08}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def main(folder):
    rng = np.random.default_rng(0)
    (folder / "pool").mkdir(parents=True, exist_ok=True)
    for shard in range(PAIRS // SHARD):
        write_shard(folder / "pool" / f"{shard:05}.tar", rng, shard * SHARD, SHARD, dirty=True)
    write_shard(folder / "trusted.tar", rng, 10_000, TRUSTED)
    write_shard(folder / "test.tar", rng, 20_000, TEST)
    for colour in COLOURS:
        (folder / "colours" / colour).mkdir(parents=True, exist_ok=True)
        for number in range(LABELLED):
            both = [(colour, rng.choice([*SHAPES])) for _ in range(2)]
            content = draw(rng, both, rng.choice([*GROUNDS]))
            (folder / "colours" / colour / f"{number}.jpg").write_bytes(content)
    print(f"{PAIRS + TRUSTED + TEST} pairs and {len(COLOURS) * LABELLED} pictures are in {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/clip-data"))
