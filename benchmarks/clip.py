"""CLIP on noisy pairs: swapped pairs found, better retrieval, fewer steps; and what it costs.

Flickr8k, 800 images with five captions each: 200 clean pairs train the reference, 500 others have
the captions of 30 % or 50 % swapped, 100 test. Projections of frozen features into 128 dimensions
and a temperature, or a small two-tower CLIP on the pixels; batch 64, AdamW. Every training of one
seed starts at the same weights and takes as many steps.

Run: python benchmarks/clip.py [--pixels] [--seeds 3]
     python benchmarks/clip.py --again             tables and pictures of what is saved
     python benchmarks/clip.py --overhead
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from clip_data import Pool, Split, Where, split
from clip_overhead import overhead
from clip_pictures import draw
from clip_settings import FEATURES, PIXELS, Setting, bring_near, train_reference
from clip_tables import tables
from clip_train import Course, train
from harness import RESULTS, save
from rich.console import Console
from rich.progress import track

from gradmimic import ScoreLog, select
from gradmimic.separation import auroc

SHARES = (0.3, 0.5)
PLANTED = 0.2  # canaries for each pair
SCORERS = ("mimic", "clip", "own", "random")


def measure(setting: Setting, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for each training."""
    parts = split(share, seed)
    noisy, trusted = parts.noisy, parts.trusted
    both = Pool(
        torch.cat([noisy.images, trusted.images]), torch.cat([noisy.owners, trusted.owners])
    )
    facts = {"setting": setting.name, "share": share, "seed": seed}

    def row(what: str, way: str, course: Course, **more: Any) -> dict[str, Any]:
        losses = {name: [round(loss, 4) for loss in own] for name, own in course.losses.items()}
        recall = [round(share, 4) for share in course.recall]
        curves = {"steps": course.steps, "recall": recall, "losses": losses}
        own = found(course.mean_similarity(noisy), parts)
        return {**facts, "what": what, "way": way, "own_auroc": own, **curves, **more}

    def plainly(pool: Pool) -> Course:
        return follow(setting, pool, parts, seed)

    yield row("plain", "", plainly(noisy))
    if setting.others:  # trainings are cheap
        yield row("plain, trusted pairs too", "", plainly(both))
    yield row("plain, correct pairs alone", "", plainly(noisy.only(~parts.wrong)))
    for way in setting.ways:
        reference = train_reference(setting, way, parts, seed)
        first = reference.similarity(Where(*noisy_pairs(noisy)))
        yield row("reference", way, reference, one_caption_auroc=found(first, parts))
        for tau in (setting.temperature, *setting.others):
            course = follow(setting, noisy, parts, seed, (way, reference), temperature=tau)
            figures = {"temperature": tau, "auroc": found(course.scores, parts)}
            yield row("re-weighted", way, course, **figures)
        if way not in setting.selecting:
            continue
        with tempfile.TemporaryDirectory() as folder:
            planted = noisy.plant(PLANTED, seed)
            with ScoreLog(folder) as log:
                course = follow(setting, planted, parts, seed, (way, reference), log=log)
            keep, figures = selection(folder, noisy, parts)
        yield row("re-weighted, planted", way, course, **figures)
        yield row("plain, selected pairs", way, plainly(noisy.only(keep)))


def follow(
    setting: Setting,
    pool: Pool,
    parts: Split,
    seed: int,
    toward: tuple[str, Course] | None = None,
    *,
    log: ScoreLog | None = None,
    **options: Any,
) -> Course:
    """Train from the seed's initial weights, plainly or toward a reference."""
    pair = setting.open(seed)
    data = setting.data()
    if toward is None:
        return train(pair, data, pool, parts, setting.recipe, seed)
    way, reference = toward
    options.setdefault("temperature", setting.temperature)
    mimic, seen = bring_near(setting, way, pair, reference, log=log, **options)
    chance = torch.Generator().manual_seed(seed)
    beside = {
        "clip": reference.similarity,
        "own": Course(pair, data).similarity,
        "random": lambda at: torch.rand(len(at.images), generator=chance),
    }
    return train(
        pair, data, pool, parts, setting.recipe, seed,
        mimic=mimic, log=log, beside=beside, seen=seen,
    )  # fmt: skip


def selection(folder: str, noisy: Pool, parts: Split) -> tuple[torch.Tensor, dict[str, Any]]:
    """Select by what the planted canaries say; return the mask ``[500]``, and how good it is."""
    ids, kept = noisy.images.numpy(), parts.wrong
    figures: dict[str, Any] = {}
    for name in (*SCORERS, "combined"):
        combined = name == "combined"
        chosen = select(
            folder,
            scorer=list(SCORERS) if combined else name,
            aggregate="stacked" if combined else "mean",
        )
        said = chosen.rows(ids, ["score", "keep"])
        scores = torch.tensor(said["score"].to_numpy())
        figures[f"{name}_auroc"] = found(scores, parts)
        if combined:
            kept = torch.tensor(chosen.mask(ids))
            figures["why"] = list(chosen.notes)
    figures["kept"] = int(kept.sum())
    figures["kept_wrong"] = int((kept & parts.wrong).sum())
    return kept, figures


def noisy_pairs(pool: Pool) -> Where:
    """Return the real pairs with the first caption of each."""
    images = pool.images[: pool.real]
    return Where(images, pool.owners[: pool.real], torch.zeros_like(images))


def found(scores: torch.Tensor, parts: Split) -> float:
    """Return the AUROC of telling swapped pairs, which should score low, from the others."""
    area = auroc(scores.nan_to_num(float(scores.nanmean())).numpy(), parts.wrong.numpy())
    assert area is not None  # noqa: S101
    return round(area, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pixels", action="store_true", help="the small CLIP on the pixels")
    parser.add_argument("--overhead", action="store_true", help="time the steps instead")
    parser.add_argument("--again", action="store_true", help="show what is saved, train nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="100 for trials")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.overhead:
        overhead(Console())
        return
    setting = PIXELS if options.pixels else FEATURES
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [(share, seed) for share in SHARES for seed in seeds]
    name, flags = ("clip-pixels", "--pixels ") if options.pixels else ("clip", "")
    results: list[dict[str, Any]] = []
    if options.again:
        results = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    else:
        for share, seed in track(todo, "training", console=Console(stderr=True)):
            results += measure(setting, share, seed)
        if options.first_seed == 0:
            save(name, results, f"python benchmarks/clip.py {flags}--seeds {options.seeds}")
    for table in tables(results):
        Console(width=160).print(table)
    if options.again and not options.pixels:
        draw(results)


if __name__ == "__main__":
    main()
