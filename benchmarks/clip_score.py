"""What scoring pairs costs: ``gradmimic score --task clip`` against inference on the same input.

    cost = median_t (scoring_t / inference_t)       the two take turns in one process

On a CPU these are seconds of one core, which other work on the machine does not stretch; what a
disk takes to write the log is not among them.

In memory: inference runs both towers of one model without gradients on batches that are there
already, and fetches each pair's cosine. Scoring runs the same, scores the last projections toward a
reference, and logs every pair by the mimic score and that cosine; with canaries; and with the
reference's CLIP score, a second model's inference. The ViT-B/32 has random weights: what they are
costs nothing.

From shards: inference reads a pool of generated JPEGs in shards, decodes, and runs both towers;
scoring is the whole command on the same pool, its index of duplicates and its log included.

Run: python benchmarks/clip_score.py [--quick]
"""

import argparse
import io
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import Timing, interleave, save
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradmimic.canaries import Canaries
from gradmimic.data.pairs import PairBatch, PairReader, open_pairs
from gradmimic.integrations.pillow import Picture
from gradmimic.log import ScoreLog
from gradmimic.pair_model import PairModel
from gradmimic.reference import load_reference
from gradmimic.run.clip.models import open_pair_model
from gradmimic.run.clip.score import losses_of, score_pairs
from gradmimic.run.clip.score_models import Models
from gradmimic.run.score_config import PairScoreConfig
from gradmimic.scoring import score

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WORDS, CONTEXT = 49_406, 77  # of CLIP's tokenizer


def random_tokens(captions: Sequence[str]) -> Mapping[str, Tensor]:
    """Stand in for CLIP's tokenizer: a number for each word, between the marks of both ends."""
    ids = torch.full((len(captions), CONTEXT), WORDS + 1)
    for row, caption in enumerate(captions):
        words = [WORDS, *(hash(word) % WORDS for word in caption.split())][: CONTEXT - 1]
        ids[row, : len(words)] = torch.tensor(words)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def models() -> dict[str, tuple[PairModel, int, int]]:
    """Return models with the pairs of a batch, and the batches of a turn."""
    from transformers import CLIPConfig, CLIPModel

    from gradmimic.integrations.hf_clip import pair_model_of

    large = DEVICE.type == "cuda"
    base = pair_model_of(CLIPModel(CLIPConfig()), None, Picture(224, (224, 224)), name="ViT-B/32")
    base = replace(base, tokenize=random_tokens)
    return {
        "small, 64 px": (open_pair_model("small"), 256, 40 if large else 12),
        "ViT-B/32, 224 px": (base, 256 if large else 32, 20 if large else 1),
    }


def random_batches(pair: PairModel, size: int, count: int) -> list[PairBatch]:
    """Return random pairs, prepared and on the device."""
    chance = np.random.default_rng(0)
    found = []
    for number in range(count):
        pixels = chance.integers(0, 256, (size, 64, 64, 3), dtype=np.uint8)
        images = torch.stack([pair.transform(Image.fromarray(own)) for own in pixels])
        texts = [" ".join(map(str, chance.integers(0, 9999, 10))) for _ in range(size)]
        tokens = {name: own.to(DEVICE) for name, own in pair.tokenize(texts).items()}
        ids = [f"{number:04}{row:04}" for row in range(size)]
        found.append(PairBatch(images.to(DEVICE), tokens, ids, texts))
    return found


def inference(pair: PairModel, batches: Any) -> Callable[[], object]:
    """Return a pass of both towers over all batches."""

    @torch.no_grad()
    def run() -> list[Any]:
        found = []
        for batch in batches:
            said = pair.embed(pair.model, batch)
            found.append((said.image * said.text).sum(1).cpu())
        return found

    return run


def scoring(
    opened: Models, batches: list[PairBatch], canaries: Canaries | None
) -> Callable[[], object]:
    """Return a pass that scores all batches and logs them, in a new folder each time."""
    losses = losses_of(opened, canaries, clip_score=opened.whole is not None)
    params = opened.pair.scored()

    def run() -> None:
        folder = Path(tempfile.mkdtemp())
        with ScoreLog(folder) as log:
            score(
                opened.checkpoints, opened.reference, batches, losses, log,
                ids=lambda batch: batch.ids, params=params, temperature="auto", engine="forward",
            )  # fmt: skip
        shutil.rmtree(folder)

    return run


def in_memory(name: str, turns: int) -> tuple[dict[str, Timing], int]:
    """Measure one model; return its timings, and the pairs of a turn."""
    pair, size, count = models()[name]
    model, better = pair.model.to(DEVICE).eval(), deepcopy(pair.model).to(DEVICE).eval()
    with torch.no_grad():
        for parameter in better.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    batches = random_batches(pair, size, count)
    reference = load_reference({own: better.get_parameter(own) for own in pair.scored()})
    whole = replace(pair, model=better)
    alone = Models(pair, {"first": model}, reference, None, DEVICE)
    found = in_turns(
        {
            "inference": inference(pair, batches),
            "scores": scoring(alone, batches, None),
            "and canaries": scoring(alone, batches, Canaries(0.05)),
            "and CLIP score": scoring(alone._replace(whole=whole), batches, Canaries(0.05)),
        },
        turns,
    )
    return found, size * count


def in_turns(candidates: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Timing]:
    """Time candidates in turns by the clock that suits the device; the first is the baseline."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    spent: dict[str, list[float]] = {name: [] for name in candidates}

    def metered(name: str) -> Callable[[], object]:
        def call() -> None:
            start = clock()
            candidates[name]()
            spent[name].append(clock() - start)

        return call

    interleave({name: metered(name) for name in candidates}, turns=turns, warmup=1)
    base, *_ = spent.values()
    return {
        name: Timing(median(own[1:]), median(a / b for a, b in zip(own[1:], base[1:], strict=True)))
        for name, own in spent.items()
    }


def write_pool(folder: Path, shards: int, each: int) -> None:
    """Write shards of JPEGs of 256 pixels, smooth as photographs are."""
    chance = np.random.default_rng(0)
    folder.mkdir()
    for number in range(shards):
        with tarfile.open(folder / f"{number:08}.tar", "w") as archive:
            for row in range(each):
                coarse = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                picture, buffer = Image.fromarray(coarse).resize((256, 256)), io.BytesIO()
                picture.save(buffer, "JPEG", quality=90)
                key = f"{number:05}{row:04}"
                text = " ".join(map(str, chance.integers(0, 9999, 10)))
                files = {"jpg": buffer.getvalue(), "txt": text.encode(),
                         "json": json.dumps({"uid": key}).encode()}  # fmt: skip
                for suffix, content in files.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def from_shards(turns: int, shards: int, each: int) -> tuple[dict[str, Timing], int]:
    """Measure the whole command with the small model; return timings, and the pairs of a turn."""
    folder = Path(tempfile.mkdtemp())
    write_pool(folder / "pool", shards, each)
    for seed in range(2):
        torch.save(open_pair_model("small", seed=seed).model.state_dict(), folder / f"{seed}.pt")
    pair = open_pair_model("small")
    pair.model.to(DEVICE).eval()

    def read_and_run() -> None:
        reader = PairReader(
            open_pairs(str(folder / "pool")), pair.transform, pair.tokenize,
            batch_size=256, shuffle=False, seed=0, workers=0, mixed=False,
        )  # fmt: skip
        moved = (
            PairBatch(
                own.images.to(DEVICE), {n: t.to(DEVICE) for n, t in own.tokens.items()}, own.ids,
                own.texts,
            )
            for own in reader
        )  # fmt: skip
        inference(pair, moved)()

    def command(**changes: Any) -> Callable[[], object]:
        config = PairScoreConfig(
            data=str(folder / "pool"), checkpoints=[str(folder / "0.pt")], model="small",
            reference=str(folder / "1.pt"), align="none", out=str(folder / "scores"),
            overwrite=True, canary_rate=0.05, **changes,
        )  # fmt: skip
        return lambda: score_pairs(config)

    found = in_turns(
        {
            "inference": read_and_run,
            "scores": command(clip_score=False, canaries="off"),
            "and canaries": command(clip_score=False),
            "and CLIP score": command(),
        },
        turns,
    )
    shutil.rmtree(folder)
    return found, shards * each


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer turns and pairs")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    table = Table("", "inference, pairs/s", "canaries, pairs/s", "scores", "canaries", "CLIP score")
    results = {}
    turns = 3 if quick else 5
    measured: dict[str, Callable[[], tuple[dict[str, Timing], int]]] = {
        "small, 64 px": lambda: in_memory("small, 64 px", turns),
        "ViT-B/32, 224 px": lambda: in_memory("ViT-B/32, 224 px", turns),
        "small, from shards": lambda: from_shards(turns, 2, 100 if quick else 1000),
    }
    for name, measure in measured.items():
        found, pairs = measure()
        rates = {what: pairs / timing.seconds for what, timing in found.items()}
        results[name] = {
            what: {**timing._asdict(), "pairs_per_second": rates[what]}
            for what, timing in found.items()
        }
        _, *others = found.values()
        table.add_row(
            name, f"{rates['inference']:,.1f}", f"{rates['and canaries']:,.1f}",
            *(f"{own.ratio:.3f}" for own in others),
        )  # fmt: skip
    Console().print(table)
    command = "python benchmarks/clip_score.py" + (" --quick" if quick else "")
    print(f"saved to {save('clip_score-quick' if quick else 'clip_score', results, command)}")


if __name__ == "__main__":
    main()
