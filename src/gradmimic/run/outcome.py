"""What a run came to: numbers first, then the file of metrics and the page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.curate import Quality, Selection
from gradmimic.curate.export import export
from gradmimic.data import Samples
from gradmimic.data.pairs.census import Row
from gradmimic.log_reader import LogReader
from gradmimic.report import Metric
from gradmimic.report.numbers import percent
from gradmimic.run.compared import scorer_metrics
from gradmimic.run.config import Task
from gradmimic.run.inputs import Inputs
from gradmimic.run.metrics import detection
from gradmimic.run.trainings import Trained
from gradmimic.separation import auroc

USELESS = 0.6  # an AUROC below this says that the scores know next to nothing


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was measured.

    Args:
        values: every number by its name, as it stands in ``metrics.json``.
        metrics: the ones a person wants to read, with their meaning.
        notes: what the reader must know before trusting them.
        files: what was written where.
        census: of pairs and instructions, what became of all that was read; adds up to its last
            row.
        counted: what the census counts.
    """

    values: Mapping[str, Any]
    metrics: Sequence[Metric]
    notes: Sequence[str]
    files: Mapping[str, Path]
    census: Sequence[Row] = ()
    counted: str = "pairs"


Scores = Mapping[int, npt.NDArray[np.float32]]
"""For each epoch the scores ``[n]`` in the samples' order; NaN where a sample was not visited."""


def measure(
    inputs: Inputs,
    trained: Trained,
    scores: Scores,
    selection: Selection,
    quality: Quality | None,
) -> dict[str, Any]:
    """Collect every number of a run.

    Args:
        inputs: the tables; their true labels, where known, enter here and nowhere else.
        trained: the curves.
        scores: every score, by epoch.
        selection: what stage 2 decided.
        quality: what the canaries say, where there are any.

    Returns:
        Plain numbers by name; None where something cannot be known.
    """
    ids = inputs.train.ids
    judged = np.isin(ids, selection.table["sample_id"].to_numpy())  # [n]
    tables = [table for table in (inputs.train, inputs.test, inputs.trusted) if table is not None]
    values: dict[str, Any] = {
        "samples": len(inputs.train),
        "trusted": len(inputs.trusted) if inputs.trusted else 0,
        "skipped": [
            {"source": source, "sample_id": skipped.sample_id, "reason": skipped.reason}
            for source, all_skipped in {table.source: table.skipped for table in tables}.items()
            for skipped in all_skipped
        ],
        "kept": len(selection.kept),
        "removed": len(selection.removed),
        "unscored": int((~judged).sum()),
        "align": trained.aligned,
        "overtaken": trained.overtaken,
        "reference_accuracy": trained.reference_accuracy,
        "plain": trained.plain.by_epoch(),
        "reweighted": trained.reweighted.by_epoch(),
        "gain": None,
        "noise_rate": None,
        "auroc": None,
        "auroc_per_epoch": None,
        "detection": None,
        "quality": None if quality is None else quality.as_dict(),
    }
    if trained.plain.accuracy:
        values["gain"] = trained.reweighted.accuracy[-1] - trained.plain.accuracy[-1]
    wrong = inputs.wrong
    if wrong is not None:
        order = np.argsort(ids[judged])  # the selection is sorted by id
        values |= {
            "noise_rate": float(wrong.mean()),
            "auroc": auroc(selection.table["score"].to_numpy(), wrong[judged][order]),
            "auroc_per_epoch": {
                epoch: auroc(own[seen], wrong[seen])
                for epoch, own in scores.items()
                for seen in [~np.isnan(own)]
            },
            "detection": detection(~selection.mask(ids[judged]), wrong[judged]),
        }
    return values


def scores_by_epoch(log: LogReader, ids: npt.NDArray[Any] | pa.ChunkedArray) -> Scores:
    """Return for each epoch the mimic scores ``[n]`` in the order of some ids; NaN where unseen."""
    mimic = pc.field("canary").is_null() & (pc.field("scorer") == "mimic")
    rows = log.scan(["sample_id", "epoch", "score"], mimic)
    logged = rows["sample_id"]
    place = pc.index_in(logged, value_set=pa.array(ids, logged.type))  # [visits], null elsewhere
    rows = rows.filter(place.is_valid())
    at, epochs = place.drop_null().to_numpy(), rows["epoch"].to_numpy()
    scores, table = rows["score"].to_numpy(), {}
    for epoch in np.unique(epochs).tolist():
        table[epoch] = np.full(len(ids), np.nan, dtype=np.float32)
        table[epoch][at[epochs == epoch]] = scores[epochs == epoch]
    return table


def readable(values: Mapping[str, Any]) -> list[Metric]:
    """Pick the numbers that a person wants to read, and say which end is good."""
    found = values["detection"] or {}
    higher = "higher is better"
    rows = [
        Metric("samples trained on", values["samples"]),
        Metric("samples that could not be read", len(values["skipped"]) or None),
        Metric("trusted samples", values["trusted"] or None),
        *_of_quality(values["quality"]),
        Metric("labels known to be wrong", values["noise_rate"], "of all", percent=True),
        Metric("test accuracy, reference", values["reference_accuracy"], "0 to 1", percent=True),
        Metric("test accuracy, plain", last_accuracy(values, "plain"), higher, percent=True),
        Metric("test accuracy, re-weighted", last_accuracy(values, "reweighted"), higher, True),
        Metric("AUROC of the mean score", values["auroc"], "0.5 is chance, 1 is perfect"),
        Metric("samples removed", values["removed"]),
        Metric("precision of removal", found.get("precision"), "share removed rightly", True),
        Metric("recall of removal", found.get("recall"), "share of wrong ones removed", True),
        Metric("F1 of removal", found.get("f1"), "0 to 1, higher is better"),
        *scorer_metrics(values.get("scorers", {})),
    ]
    return [row for row in rows if row.value is not None]


def _of_quality(quality: Mapping[str, Any] | None) -> list[Metric]:
    """Pick what the canaries say; it needs no labels known to be right."""
    if quality is None:
        return []
    rate, (kind, area) = quality["noise_rate"], next(iter(quality["auroc"].items()))
    return [
        Metric(
            "labels estimated to be wrong",
            rate["value"],
            f"interval {percent(rate['low'])} to {percent(rate['high'])}",
            percent=True,
        ),
        Metric(
            f"AUROC of {kind.partition('/')[0]} canaries",
            area["value"],
            f"95 % interval {area['low']:.3f} to {area['high']:.3f}; 0.5 is chance, "
            f"{1 - rate['value'] / 2:.2f} is perfect",
        ),
    ]


def last_accuracy(values: Mapping[str, Any], which: str) -> float | None:
    """Return the test accuracy after the last epoch of one training, where it was measured."""
    accuracies = values[which]["accuracy"]
    return float(accuracies[-1]) if accuracies else None


def notes_on(values: Mapping[str, Any]) -> list[str]:
    """Say what the reader must know before trusting the numbers."""
    notes = []
    if values["skipped"]:
        notes.append(
            f"{len(values['skipped'])} samples could not be read, of all tables together; they are "
            "in no other number, and metrics.json lists them with the reasons."
        )
    if values["auroc"] is not None and values["auroc"] < USELESS:
        notes.append(
            f"The scores tell wrong labels from right ones with AUROC {values['auroc']:.3f}, where "
            "0.5 is chance: do not trust the selection, and suspect the reference, however large "
            "the gain in accuracy."
        )
    if values.get("unscored"):
        notes.append(
            f"{values['unscored']} samples were never scored, since the reference has no outputs "
            "for them; they are not in the selection."
        )
    if values.get("overtaken") is not None:
        notes.append(
            f"From step {values['overtaken']} on the scores know nothing, as the canaries show: "
            "the weights faded to equal ones, and later visits are left out of the selection where "
            "they can be."
        )
    reference, accuracies = values["reference_accuracy"], values["reweighted"]["accuracy"]
    if reference is not None and accuracies and accuracies[-1] > reference:
        first = next(epoch for epoch, value in enumerate(accuracies) if value > reference)
        notes.append(
            f"The re-weighted model overtook its reference on the test set (at epoch {first}). "
            "That is good for the model; scores of later visits know less."
        )
    if reference is not None and accuracies and accuracies[-1] <= reference:
        notes.append("The reference alone is at least as accurate on the test set as the model.")
    if values["removed"] == 0:
        notes.append("Nothing in the scores speaks against any sample, so every sample is kept.")
    return notes


def write_labels(path: Path, samples: Samples) -> tuple[Any, list[str]]:
    """Write every sample's given class, for ``gradmimic quality``, and return ids and classes."""
    labels = [samples.classes[label] for label in samples.labels]
    with export(path) as file:
        pq.write_table(pa.table({"sample_id": pa.array(samples.ids), "label": labels}), file)
    return samples.ids, labels


def write_metrics(path: Path, values: Mapping[str, Any], config: Task) -> None:
    """Write every number as JSON, with the configuration that gave it."""
    text = json.dumps(
        {**values, "config": config.as_dict()}, indent=2, ensure_ascii=False, allow_nan=False
    )
    with atomic_write(path) as file:
        file.write(text.encode())
