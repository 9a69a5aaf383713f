"""Make a small pool in DataComp's layout, from your own pairs or from drawn ones.

    python examples/datacomp/pool.py runs/datacomp [--pairs pairs.parquet]

shards/00000000.tar, 00000000_stats.json …   as img2dataset writes them; some pairs are broken
metadata/00000000.parquet …                  as DataComp publishes them
trusted.parquet                              pairs that match, to train a reference on
swapped.txt                                  uids with another pair's caption, to see who finds them
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SHARD, SWAPPED, TRUSTED = 200, 0.3, 200
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white", "pink", "brown"]
SHAPES = {"disc": 40, "triangle": 3, "square": 4, "hexagon": 6}  # corners
COLUMNS = ["uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score",
           "clip_l14_similarity_score", "face_bboxes", "sha256"]  # fmt: skip


def draw(chance):
    """Draw two coloured shapes, and say so."""
    colours, shapes = chance.choice(COLOURS, 3, replace=False), chance.choice([*SHAPES], 2)
    picture = Image.new("RGB", (120, 80), colours[2])
    for colour, shape, x in zip(colours, shapes, (32, 88), strict=False):
        turned = chance.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, SHAPES[shape] + 1)
        corners = np.stack([x + 24 * np.cos(turned), 40 + 24 * np.sin(turned)], 1)
        ImageDraw.Draw(picture).polygon([tuple(c) for c in corners.tolist()], fill=colour)
    file = io.BytesIO()
    picture.save(file, "JPEG")
    left, right = (f"a {colours[i]} {shapes[i]}" for i in range(2))
    return file.getvalue(), f"{left} and {right} on {colours[2]} ground"


def write_shard(folder, first, pairs, chance):
    """Write a shard, of which one pair in forty is broken, and its metadata."""
    rows, name = [], f"{first // SHARD:08d}"
    with tarfile.open(folder / "shards" / f"{name}.tar", "w") as tar:
        for number, (uid, image, text, matches) in enumerate(pairs, first):
            files = {"jpg": image, "txt": text.encode(), "json": json.dumps({"uid": uid}).encode()}
            if number % 40 == 20:
                broken = [("jpg", image[:300]), ("txt", b""), ("txt", b"\xff\xfe"), ("jpg", b"?")]
                files.update([broken[number // 40 % len(broken)]])
            for kind, content in files.items():
                entry = tarfile.TarInfo(f"{number:09d}.{kind}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            size = Image.open(io.BytesIO(image)).size
            clip = chance.normal(0.24 if matches else 0.18, 0.05)  # stands for a published score
            url, digest = f"https://example.org/{uid}.jpg", hashlib.sha256(image).hexdigest()
            rows.append((uid, url, text, *size, clip - 0.01, clip, [], digest))
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    columns["face_bboxes"] = pa.array(columns["face_bboxes"], pa.list_(pa.list_(pa.float64())))
    pq.write_table(pa.table(columns), folder / "metadata" / f"{name}.parquet")
    stats = json.dumps({"count": len(pairs), "successes": len(pairs)})
    (folder / "shards" / f"{name}_stats.json").write_text(stats)


def main():
    parser = argparse.ArgumentParser(description="Make a small pool in DataComp's layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=Path, help="a Parquet with columns image and captions")
    parser.add_argument("--drawn", type=int, default=1000, help="how many pairs to draw without")
    options = parser.parse_args()
    folder, chance = options.folder, np.random.default_rng(0)
    if options.pairs:
        rows = pq.read_table(options.pairs, columns=["image", "captions"]).to_pylist()
        rows = [rows[i] for i in chance.permutation(len(rows))]
        pairs = [(row["image"], row["captions"][0]) for row in rows]
    else:
        pairs = [draw(chance) for _ in range(options.drawn)]
    for name in ("shards", "metadata"):
        (folder / name).mkdir(parents=True)
    images, texts = zip(*pairs[:TRUSTED], strict=True)
    pq.write_table(pa.table({"image": images, "caption": texts}), folder / "trusted.parquet")
    images, texts = zip(*pairs[TRUSTED:], strict=True)
    swapped = np.flatnonzero(chance.random(len(images)) < SWAPPED)
    source = np.arange(len(images))
    source[swapped] = np.roll(swapped, 1)  # each has the caption of the one before it
    uids = [chance.bytes(16).hex() for _ in images]
    pool = [(uids[i], images[i], texts[j], i == j) for i, j in enumerate(source.tolist())]
    for first in range(0, len(pool), SHARD):
        write_shard(folder, first, pool[first : first + SHARD], chance)
    (folder / "swapped.txt").write_text("".join(f"{uids[i]}\n" for i in swapped))
    with (folder / "shards" / "00000000.tar").open("r+b") as shard:
        shard.truncate(shard.seek(0, io.SEEK_END) * 3 // 4)  # a download that broke off


if __name__ == "__main__":
    main()
