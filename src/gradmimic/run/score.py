"""``gradmimic score``: a data set, the checkpoints of a training, a reference → a score log.

    read → every batch through every checkpoint → log/, which select and quality take

Started again, it goes on where it was: what is done stands in the log. ``run.json`` says of what
data, weights and settings it is, so that nothing else is ever mixed into it.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries, enough
from gradmimic.data import Samples, read_samples
from gradmimic.data.pairs.census import Row
from gradmimic.errors import ConfigError, DataError, listed
from gradmimic.log import ScoreLog
from gradmimic.outputs import Outputs, cache_outputs
from gradmimic.reference import Reference, Source
from gradmimic.run.beside import Beside, asked_of
from gradmimic.run.checkpoints import (
    Remembered,
    check_classes,
    digest,
    digest_below_head,
    find_checkpoints,
    with_shared_trunks,
)
from gradmimic.run.models import Classifier
from gradmimic.run.other_scorers import toward_weights
from gradmimic.run.outcome import write_labels
from gradmimic.run.place import Place, find_place
from gradmimic.run.prepare import read_outputs
from gradmimic.run.restore import restore
from gradmimic.run.row_batches import Labelled, RowBatches
from gradmimic.run.score_config import ScoreConfig
from gradmimic.run.score_folder import (
    check_free,
    count_rows,
    digest_file,
    digest_samples,
    finish,
    open_folder,
    tell_apart,
    telling_of_disk,
)
from gradmimic.scoring import score
from gradmimic.separation import Area
from gradmimic.trial import Given
from gradmimic.units import finished
from gradmimic.visit import Said

Align: TypeAlias = Literal["none", "shift", "outputs"]
Progress: TypeAlias = Callable[[str, int | None], Callable[[int], None]]
"""``progress(what, samples)`` announces the work, of an unknown number of samples where it is None;
what it returns is told of samples done."""


@dataclass(frozen=True)
class ScoreSummary:
    """What is in the log in the end.

    Args:
        log: its folder.
        samples: how many there are to score.
        checkpoints: by name, in the order of the log's epochs.
        visits: rows of samples.
        canaries: rows of canaries.
        skipped: why samples are missing, and how many.
        scored: samples that this call scored, in all its processes; the rest was there.
        seconds: that it took, without opening data and models.
        notes: what the reader must know.
        census: of pairs, what became of all that was read; adds up to its last row.
        apart: where there are several scorers, by scorer, the AUROC of samples over canaries.
    """

    log: Path
    samples: int
    checkpoints: Sequence[str]
    visits: int
    canaries: int
    skipped: dict[str, int]
    scored: int
    seconds: float
    notes: list[str]
    census: Sequence[Row] = ()
    apart: Mapping[str, Area] = field(default_factory=dict)


class _Toward(NamedTuple):
    """The reference, and how it is brought near."""

    reference: Given
    align: Align
    temperature: float | Literal["auto"]
    digest: str
    notes: list[str]
    model: Classifier | None  # None where a table of outputs is all there is


def score_data(
    config: ScoreConfig, progress: Progress = lambda _what, _samples: lambda _done: None
) -> ScoreSummary | None:
    """Score a data set with the checkpoints of a training, without training.

    Several processes share the work where the environment says so, as torchrun does.

    Args:
        config: what to score, with what, and where to.
        progress: told of every batch.

    Returns:
        What is in the log; None in a process that is not the first.

    Raises:
        ConfigError: no checkpoint matches, has other classes than the labels, or the folder holds
            something else.
        DataError: the data cannot be read, or have no labels.
        ReferenceMismatchError: a file of weights is damaged, or does not fit.
        DirectionError: the reference equals a checkpoint.
        LossError: a loss is NaN or infinite.
        LogError: the log cannot be written.
        UsageError: another process stopped before it was done.
    """
    place, out = find_place(), Path(config.out)
    files = find_checkpoints(config.checkpoints)
    check_free(out, place, overwrite=config.overwrite)
    samples = _samples(config)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local % torch.cuda.device_count())
    models = {str(f): restore(str(f), samples.inputs, "checkpoint", device=device) for f in files}
    check_classes(models, samples.classes, "checkpoint")
    toward = _toward(config, samples, models, device)
    if (names := toward_weights(config.others)) and toward.align == "outputs":
        raise ConfigError(
            f"The scorer {names[0]!r} compares weights, but the reference has other layers below "
            "the head than the checkpoints. Leave it out, or give align none."
        )
    rate = None
    if config.canaries == "scored":
        rate = config.canary_rate or enough(len(samples))
    told = {
        "data": digest_samples(samples),
        "checkpoints": [digest(model.state_dict()) for model in models.values()],
        "reference": toward.digest,
        "align": toward.align,
        "params": config.params,
        "engine": config.engine,
        "temperature": str(toward.temperature),  # JSON knows no infinity
        "batch_size": config.batch_size,
        "canary_rate": rate,
        "seed": config.seed,
    }
    if config.others:
        told["scorers"] = list(config.others)
    open_folder(out, told, place, overwrite=config.overwrite)
    batches = RowBatches(samples, config.batch_size, device)
    began = time.perf_counter()
    before = _score_share(config, models, toward, batches, rate, told, place, progress)
    if not finish(out, place):
        return None
    seconds = time.perf_counter() - began
    visits, canaries = count_rows(out / "log")
    skipped = Counter(own.reason for own in samples.skipped)
    if isinstance(toward.reference, Outputs):
        skipped["not in the table of outputs"] = len(samples) - visits // len(models)
    apart = tell_apart(out / "log") if config.others else {}
    return ScoreSummary(
        out / "log",
        len(samples),
        list(models),
        visits,
        canaries,
        {reason: count for reason, count in skipped.items() if count},
        len(samples) - before,
        seconds,
        toward.notes,
        apart=apart,
    )


def _score_share(
    config: ScoreConfig,
    models: dict[str, Classifier],
    toward: _Toward,
    batches: RowBatches,
    rate: float | None,
    told: dict[str, Any],
    place: Place,
    progress: Progress,
) -> int:
    """Score what is this process's to score; return how many samples, of all, were there."""
    out = Path(config.out)
    canaries = None if rate is None else Canaries(rate, seed=config.seed)

    given = {"data": config.data, "reference": config.reference, "checkpoints": [*models]}
    about = {"score": told, "given": given}
    with (
        telling_of_disk(out, DataError),
        ScoreLog(out / "log", config=about, seed=config.seed, rank=place.rank) as log,
    ):
        if place.rank == 0:
            write_labels(out / "labels.parquet", batches.samples)
        done = finished(log, len(batches))
        own = range(place.rank, len(batches), place.processes)
        what = "score" if place.processes == 1 else f"score, 1 of {place.processes} shares"
        on_batch: Callable[[int], None] = lambda _samples: None
        if place.rank == 0:
            on_batch = progress(what, sum(map(batches.rows_of, own)))
            on_batch(sum(batches.rows_of(number) for number in own if number in done))
        left = [number for number in own if number not in done]
        others = Beside(config.others, _weights(toward), _said(config, toward, batches, left))

        def losses(model: nn.Module, batch: Labelled) -> Said:
            with others.watching(model) as scores:
                z = model(batch.inputs)  # [b, K]
            drawn = None if canaries is None else canaries.labels(z, batch.labels, batch.ids)
            more = scores.score(z, batch.labels, batch.ids, drawn) if scores else {}
            return Said(F.cross_entropy(z, batch.labels, reduction="none"), drawn, more)

        score(
            with_shared_trunks(models) if config.params == "head" else models,
            toward.reference,
            batches,
            losses,
            log,
            ids=lambda batch: batch.ids,
            params=config.params,
            align=toward.align,
            temperature=toward.temperature,
            engine=config.engine,
            processes=place.processes,
            on_batch=on_batch,
        )
    return sum(map(batches.rows_of, done))


def _weights(toward: _Toward) -> Reference | Source | None:
    """Return the reference's weights, where there are any."""
    return None if isinstance(toward.reference, Outputs) else toward.reference


def _said(
    config: ScoreConfig, toward: _Toward, batches: RowBatches, left: Sequence[int]
) -> Outputs | None:
    """Return what the reference says of the samples that are left, where a scorer asks."""
    if isinstance(toward.reference, Outputs):
        return toward.reference
    if "outputs" not in asked_of(config.others) or toward.model is None:
        return None
    rows = (batches[number] for number in left or [0])  # the first one tells where the head is
    return cache_outputs(toward.model, ((own.ids, own.inputs) for own in rows))


def _samples(config: ScoreConfig) -> Samples:
    """Read the data."""
    samples = read_samples(
        config.data,
        labels=config.labels,
        ids=config.ids,
        kind=config.kind,
        image_size=config.image_size,
    )
    if len(samples.classes) < 2:
        raise DataError(
            f"all {len(samples)} labels of {samples.source} are {listed(samples.classes)}, so none "
            "can be wrong. Expected two classes or more."
        )
    return samples


def _toward(
    config: ScoreConfig, samples: Samples, models: dict[str, Classifier], device: torch.device
) -> _Toward:
    """Read the reference, and settle how it is brought near."""
    if config.is_table:
        table = read_outputs(config.reference, samples)
        return _Toward(
            table, "outputs", config.temperature or "auto", digest_file(config.reference), [], None
        )
    better = restore(config.reference, samples.inputs, "reference", device=device)
    check_classes({config.reference: better}, samples.classes, "reference")
    below = digest_below_head(better)
    alike = all(digest_below_head(model) == below for model in models.values())
    align: Align = config.align or ("none" if alike or config.params != "head" else "outputs")
    notes = []
    if not alike and align != "outputs" and config.params == "head":
        notes.append(
            "The reference's layers below the head are not those of the checkpoints, so its head "
            f"may mean nothing to theirs. Compare with align outputs; this was align {align}."
        )
    reference: Given = better
    if align == "outputs":
        reference = Remembered(better.eval())
    elif config.params == "head":  # of what lies below, nothing is compared
        own = better.state_dict()
        reference = {name: own[name] for name in own if name.startswith("head.")}
    tau: float | Literal["auto"] = "auto" if align == "outputs" else 0.7
    tau = tau if config.temperature is None else config.temperature
    return _Toward(reference, align, tau, digest(better.state_dict()), notes, better)
