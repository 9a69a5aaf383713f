"""``gradmimic score --task clip``: a pool of pairs, checkpoints, a reference → a score log.

    mimic   m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖,  ℓ_i the contrastive loss in its batch
    own     cos(image, caption) by the checkpoint
    clip    cos(image, caption) by the reference: its CLIP score, at the cost of a pass of its own

Scorers of the same samples and the same canaries, images with the caption of another pair of the
batch, go into one log, so that ``gradmimic select`` can compare and combine them. The unit of work
is a shard (``shard_units``): started again, scoring goes on with the shards that are not done.
"""

import json
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.atomic import atomic_write
from gradmimic.canaries import Canaries, enough
from gradmimic.contrastive import Embedded
from gradmimic.data.pairs import Census, PairBatch, PairSource, open_pairs
from gradmimic.data.pairs.census import plain
from gradmimic.direction import Params
from gradmimic.errors import listed
from gradmimic.log import ScoreLog
from gradmimic.run.checkpoints import digest
from gradmimic.run.clip.answers import Answers
from gradmimic.run.clip.score_models import (
    TOWERS,
    Models,
    open_models,
    scored_params,
    settle_alignment,
)
from gradmimic.run.clip.shard_units import ShardUnits, digest_source, done_shards, read_counts
from gradmimic.run.clip.shared_index import share_index
from gradmimic.run.place import Place, find_place
from gradmimic.run.score import Progress, ScoreSummary
from gradmimic.run.score_config import PairScoreConfig
from gradmimic.run.score_folder import (
    beat,
    check_free,
    count_rows,
    finish,
    open_folder,
    said_before,
    signs_of_life,
    tell_apart,
    telling_of_disk,
)
from gradmimic.separation import Area
from gradmimic.trial import Given
from gradmimic.units import check_work, finished, score_units
from gradmimic.visit import Losses, Said

_MANY = 10_000  # samples, from which on 5 % are canaries enough
_PAUSE = 10.0  # seconds between two signs of life


def score_pairs(
    config: PairScoreConfig, progress: Progress = lambda _what, _samples: lambda _done: None
) -> ScoreSummary | None:
    """Score a pool of pairs with the checkpoints of a training, without training.

    Several processes share the work where the environment says so, as torchrun does.

    Args:
        config: what to score, with what, and where to.
        progress: told of every batch.

    Returns:
        What is in the log, and what became of all that was read; None in a process that is not the
        first.

    Raises:
        ConfigError: a checkpoint cannot be found, or the folder holds something else.
        DataError: the data are not there, or are no pairs.
        ReferenceMismatchError: weights are damaged, or do not fit.
        AlignmentError: the reference cannot be brought near in the way that was asked for.
        DirectionError: the reference equals a checkpoint.
        LossError: a loss is NaN or infinite.
        LogError: the log cannot be written.
        UsageError: another process stopped before it was done.
    """
    place, out = find_place(), Path(config.out)
    check_free(out, place, overwrite=config.overwrite)
    source = open_pairs(config.data, id=config.ids, image=config.image, text=config.text)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local % torch.cuda.device_count())
    models = open_models(config, device)
    params = scored_params(config, models.pair)
    align, notes = settle_alignment(config, models, params)
    told = {
        "data": digest_source(source),
        "columns": [config.ids, config.image, config.text],
        "checkpoints": [digest(model.state_dict()) for model in models.checkpoints.values()],
        "reference": digest(models.reference.tensors),
        "clip_score": config.clip_score and models.whole is not None,
        "align": align,
        "params": config.params,
        "engine": config.engine,
        "temperature": str(config.temperature),  # JSON knows no infinity
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "canary_rate": _rate(config, source, out),
        "seed": config.seed,
    }
    if models.whole is not None and (told["clip_score"] or align == "transport"):
        told["reference towers"] = digest(models.whole.model.state_dict())
    open_folder(out, told, place, overwrite=config.overwrite)
    began = time.perf_counter()
    with telling_of_disk(out):
        before = _score_share(config, models, source, params, told, place, progress)
        if not finish(out, place):
            return None
        census = Census(read_counts(out / "shards"))
        with atomic_write(out / "census.json") as file:
            file.write(json.dumps(census.to_dict(), indent=2).encode())
    seconds = time.perf_counter() - began
    visits, canaries = count_rows(out / "log")
    apart = tell_apart(out / "log")
    return ScoreSummary(
        out / "log",
        census.kept,
        list(models.checkpoints),
        visits,
        canaries,
        {},
        census.kept - before,
        seconds,
        [*notes, *_notes(census, apart)],
        census.rows(),
        apart,
    )


def _score_share(
    config: PairScoreConfig,
    models: Models,
    source: PairSource,
    params: Params,
    told: dict[str, Any],
    place: Place,
    progress: Progress,
) -> int:
    """Score the shards that are this process's; return how many samples, of all, were there."""
    out, total = Path(config.out), len(source)
    given = {"data": config.data, "reference": config.reference, "model": models.pair.name}
    about = {"score": told, "given": {**given, "checkpoints": [*models.checkpoints]}}
    (out / "shards").mkdir(exist_ok=True)
    with ScoreLog(out / "log", config=about, seed=config.seed, rank=place.rank) as log:
        check_work(log, {"shards": total, "checkpoints": len(models.checkpoints)})
        held = finished(log, total)
        counts = read_counts(out / "shards")  # after the rows: what has rows is counted already
        done = done_shards(held, counts)
        wanted = [n for n in range(place.rank, total, place.processes) if n not in done]
        alive = _Alive(out, place)
        skip = share_index(
            source, out, place, lambda absent: not absent.isdisjoint(wanted), alive,
            lambda: signs_of_life(out),
        )  # fmt: skip
        units = ShardUnits(
            source, models.pair, out / "shards", size=config.batch_size, seed=config.seed,
            workers=config.workers, skip=skip, device=models.device,
        )  # fmt: skip
        rate = told["canary_rate"]
        canaries = None if rate is None else Canaries(rate, seed=config.seed)
        tell: Callable[[int], None] = lambda _samples: None
        if place.rank == 0:
            what = "score" if place.processes == 1 else f"score, 1 of {place.processes} shares"
            tell = progress(what, None)

        def on_batch(samples: int) -> None:
            alive()
            tell(samples)

        toward: Given = models.reference
        if told["align"] == "transport" and models.whole is not None:
            toward = Answers(models.whole, models.pair)
            models = models._replace(pair=toward.beside(models.pair))
        score_units(
            models.checkpoints,
            toward,
            units,
            wanted,
            losses_of(models, canaries, clip_score=told["clip_score"]),
            log,
            ids=lambda batch: batch.ids,
            params=params,
            align=told["align"],
            temperature="auto" if config.temperature is None else config.temperature,
            engine=_engine(config),
            on_batch=on_batch,
        )
    return sum(counts[number].kept for number in done)


def losses_of(models: Models, canaries: Canaries | None, *, clip_score: bool) -> Losses[PairBatch]:
    """Return what one pass says of a batch: losses, canaries, and what other scorers make of both.

    Args:
        models: whose.
        canaries: draws pairs whose captions are exchanged; None for none.
        clip_score: whether the reference's comes too, with the first checkpoint's pass.
    """
    pair = models.pair
    first = next(iter(models.checkpoints.values()))

    def losses(model: nn.Module, batch: PairBatch) -> Said:
        said = pair.embed(model, batch)
        table = said.table("local")
        loss = table.clip if pair.loss == "clip" else table.siglip
        scorers: dict[str, Embedded] = {"own": said}
        if clip_score and models.whole is not None and model is first:
            scorers["clip"] = models.whole.embed(models.whole.model, batch)

        def of(i: Tensor, j: Tensor) -> Tensor:  # [1 + scorers, c] of images i with captions j
            cosines = [(own.image[i] * own.text[j]).sum(1) for own in scorers.values()]
            return torch.stack([loss(i, j), *cosines])

        rows = torch.arange(len(batch), device=said.image.device)
        samples, drawn = of(rows, rows), None
        others = samples[1:]
        if canaries is not None:
            drawn = canaries.pairs(said.image, batch.ids, of)
            others = torch.cat([others, drawn.losses[1:]], 1)
            drawn = drawn._replace(losses=drawn.losses[0])
        return Said(samples[0], drawn, dict(zip(scorers, others, strict=True)))

    return losses


class _Alive:
    """Shows the other processes that this one is at work, not too often."""

    def __init__(self, out: Path, place: Place) -> None:
        self._out, self._place, self._last = out, place, -_PAUSE

    def __call__(self) -> None:
        if (now := time.monotonic()) - self._last >= _PAUSE:
            beat(self._out, self._place)
            self._last = now


def _engine(config: PairScoreConfig) -> str:
    """Return the engine's name; for the last projections there is nothing to find out."""
    return "forward" if config.engine == "auto" and config.params in TOWERS else config.engine


def _rate(config: PairScoreConfig, source: PairSource, out: Path) -> float | None:
    """Return the canaries' rate: as given, as it was, or by the number of samples, up to many."""
    if config.canaries == "off" or config.canary_rate is not None:
        return None if config.canaries == "off" else config.canary_rate
    before = {} if config.overwrite else said_before(out)
    if isinstance(before.get("canary_rate"), float):  # shards may have gone since
        return float(before["canary_rate"])
    every = (sample_id for shard in range(len(source)) for sample_id in source.ids(shard))
    return enough(sum(1 for _ in islice(every, _MANY)))


def _notes(census: Census, apart: Mapping[str, Area]) -> list[str]:
    """Say what a reader must know of the data and of the scores."""
    notes = []
    if census.faults:
        names = listed((plain(own.name) for own in census.faults), most=4)
        notes.append(
            f"{len(census.faults)} of {len(census.shards)} shards could not be read to their end: "
            f"{names}. What was read of them is scored and counted. Start the same command again "
            "to try those that could not be read at all."
        )
    if "mimic" in apart and apart["mimic"].low <= 0.5:
        notes.append(
            f"By the mimic scores canaries look like pairs (AUROC {apart['mimic'].value:.3f}, 0.5 "
            "is chance), so they say nothing here. Expected a better model of the same data; one "
            "that can be transported, or has the same towers below the projections."
        )
    return notes
