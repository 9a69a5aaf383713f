"""The reader of pairs against the webdataset library alone, over the same shards.

    rate = pairs per second, decoded, transformed and batched        goal: ours / theirs ≥ 0.95

Shards of JPEGs of web-like sizes are generated in a temporary folder. Both read the same shards in
turns, shuffle in a buffer of the same length, decode and scale with the same functions, and make
batches of the same size with ids and captions; ours also counts, checks and names what it drops.
"As it comes" is webdataset with its own decoder. Seconds of CPU, of all processes, are beside the
rates, since they notice less of what else a machine does.

Run: python benchmarks/reader.py [--pairs 20000] [--size 224]
"""

import argparse
import gc
import io
import json
import resource
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from harness import interleave, save
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradmimic.data.pairs import PairReader, open_pairs
from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.stream import BUFFER

PER_SHARD, BATCH, DISTINCT = 1_000, 256, 400
SHARDS_A_TURN = {0: 1, 2: 2}  # by workers


class Prepare:
    """Scale to a square, as floats."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        small = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)  # [3, s, s]
        return pixels.float().div_(255).sub_(0.5).div_(0.25)


def tokenize(texts: Any) -> dict[str, Tensor]:
    return {"length": torch.tensor([len(text) for text in texts])}


def generate(folder: Path, pairs: int) -> tuple[list[str], dict[str, float]]:
    """Write shards; return their paths, and what is in them on average."""
    rng = np.random.default_rng(0)
    pictures, pixels = [], []
    for _ in range(DISTINCT):
        short = int(rng.integers(256, 640))
        long = int(short * rng.uniform(1, 1.8))
        size = (short, long) if rng.random() < 0.5 else (long, short)
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-10, 10, fine.shape, dtype=np.int16)
        buffer = io.BytesIO()
        image = Image.fromarray((fine + grain).clip(0, 255).astype(np.uint8))
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 95)))
        pictures.append(buffer.getvalue())
        pixels.append(size[0] * size[1])
    paths = []
    for number in range(pairs // PER_SHARD):
        paths.append(str(folder / f"{number:08d}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for i in range(PER_SHARD):
                key = f"{number:05d}{i:04d}"
                meta = {"uid": f"{number * PER_SHARD + i:032x}", "url": "http://a/b.jpg" * 5}
                files = {
                    "jpg": pictures[int(rng.integers(DISTINCT))],
                    "json": json.dumps(meta | {"key": key, "status": "success"}).encode(),
                    "txt": b"a picture of " + b"something " * int(rng.integers(1, 8)),
                }
                for suffix, content in files.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return paths, {
        "picture KB": float(np.mean([len(own) for own in pictures])) / 1e3,
        "megapixels": float(np.mean(pixels)) / 1e6,
    }


def theirs(workers: int, prepare: Prepare, paths: list[str], *, same: bool) -> int:
    """Read shards with webdataset; return the number of pairs."""

    def picture(key: str, content: bytes) -> object:
        return decode(content, prepare.size) if key == ".jpg" else None

    decoder: Any = picture if same else "pilrgb"
    data = (
        wds.WebDataset(paths, shardshuffle=False, empty_check=False)
        .shuffle(BUFFER, initial=BUFFER)
        .decode(decoder)
        .to_tuple("jpg", "json", "txt")
        .map(lambda pair: (prepare(pair[0]), pair[1]["uid"], pair[2]))
        .batched(BATCH, collation_fn=stack)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
    return sum(len(ids) for _, _, ids, _ in loader)


def stack(pairs: list[tuple[Tensor, str, str]]) -> tuple[Tensor, Any, list[str], list[str]]:
    images, ids, texts = zip(*pairs, strict=True)
    return torch.stack(images), tokenize(texts), list(ids), list(texts)


def ours(workers: int, prepare: Prepare, paths: list[str]) -> int:
    """Read shards with the reader; return the number of pairs."""
    several = f"{Path(paths[0]).parent}/{{{','.join(Path(path).name for path in paths)}}}"
    source = open_pairs(several if len(paths) > 1 else paths[0])
    reader = PairReader(
        source, prepare, tokenize, batch_size=BATCH, shuffle=True, seed=0, workers=workers,
        mixed=True,
    )  # fmt: skip
    return sum(len(batch) for batch in reader)


def cpu() -> float:
    """Return the seconds of CPU that this process and its finished workers took."""
    took = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in took)


def turns(
    paths: list[str], workers: int, read: Callable[[list[str]], int], took: list[float]
) -> tuple[Callable[[], None], int]:
    """Return a function that reads the next shards, and how many turns read them all.

    It appends its seconds of CPU to ``took``.
    """
    together = SHARDS_A_TURN[workers]
    parts = [paths[i : i + together] for i in range(0, len(paths), together)]
    following: Iterator[list[str]] = cycle(parts)

    def turn() -> None:
        part, start = next(following), cpu()
        assert read(part) == len(part) * PER_SHARD  # noqa: S101 — nothing may be left out
        gc.collect()  # ends the workers
        took.append(cpu() - start)

    return turn, len(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=list(SHARDS_A_TURN))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare = Prepare(options.size)
    results: dict[str, Any] = {"pairs": options.pairs, "size": options.size, "batch": BATCH}
    table = Table("workers", "reader", "pairs/s", "× webdataset", "in CPU", "CPU ms a pair")
    with tempfile.TemporaryDirectory() as folder:
        paths, about = generate(Path(folder), options.pairs)
        results |= about
        for workers in options.workers:
            readers: dict[str, Callable[[list[str]], int]] = {
                "webdataset": partial(theirs, workers, prepare, same=True),
                "ours": partial(ours, workers, prepare),
                "webdataset as it comes": partial(theirs, workers, prepare, same=False),
            }
            took: dict[str, list[float]] = {name: [] for name in readers}
            made = {n: turns(paths, workers, read, took[n]) for n, read in readers.items()}
            count = next(iter(made.values()))[1]
            timed = interleave({n: turn for n, (turn, _) in made.items()}, turns=count, warmup=1)
            for name, timing in timed.items():
                each = zip(took["webdataset"], took[name], strict=True)
                row = {
                    "pairs per second": len(paths) / count * PER_SHARD / timing.seconds,
                    "ratio": 1 / timing.ratio,
                    "ratio in CPU": statistics.median(base / own for base, own in each),
                    "CPU ms per pair": sum(took[name][1:]) / len(paths) / PER_SHARD * 1e3,
                }
                table.add_row(str(workers), name, *(f"{value:.3g}" for value in row.values()))
                results[f"{name}, {workers} workers"] = row
    Console().print(table)
    Console().print(about)
    save("reader", results, f"python benchmarks/reader.py --pairs {options.pairs}")


if __name__ == "__main__":
    main()
