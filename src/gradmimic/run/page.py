"""The report of a run: its outcome, laid out for the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gradmimic.curate import Selection
from gradmimic.data import Samples
from gradmimic.report import LowSample, ReportData, write_report
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import Inputs
from gradmimic.run.outcome import Outcome, Scores, last_accuracy
from gradmimic.run.trainings import Trained

LOWEST = 50  # samples shown


def write_page(
    config: RunConfig,
    inputs: Inputs,
    trained: Trained,
    scores: Scores,
    selection: Selection,
    versions: Mapping[str, str | None],
    outcome: Outcome,
) -> None:
    """Write the report: what was found, how the scores lie, and the lowest samples."""
    measured: Literal["accuracy", "loss"] = "accuracy" if trained.plain.accuracy else "loss"
    curves = {
        name: dict(enumerate(getattr(curve, measured)))
        for name, curve in (("plain", trained.plain), ("re-weighted", trained.reweighted))
    }
    values = outcome.values
    write_report(
        outcome.files["report"],
        ReportData(
            title=Path(config.out).resolve().name,
            total=len(selection),
            removed=len(selection.removed),
            plain_accuracy=last_accuracy(values, "plain"),
            reweighted_accuracy=last_accuracy(values, "reweighted"),
            reference_accuracy=trained.reference_accuracy,
            auroc=values["auroc"],
            metrics=outcome.metrics,
            scores=scores,
            mislabelled=inputs.wrong,
            curves=curves,
            curve_kind=measured,
            reference_level=trained.reference_accuracy,
            lowest=_lowest(inputs.train, selection, trained.suggested),
            config=config.as_dict(),
            versions={name: found or "–" for name, found in versions.items()},
            notes=outcome.notes,
        ),
    )


def _lowest(
    samples: Samples, selection: Selection, suggested: npt.NDArray[np.int64]
) -> list[LowSample]:
    row_of = {sample_id: row for row, sample_id in enumerate(samples.ids.tolist())}
    lowest = selection.table.sort_by([("score", "ascending"), ("sample_id", "ascending")])
    shown, names = samples.shown, samples.classes
    cards = []
    for entry in lowest.slice(0, LOWEST).to_pylist():
        row = row_of[entry["sample_id"]]
        truth = samples.true_labels
        cards.append(
            LowSample(
                sample_id=entry["sample_id"],
                given=names[samples.labels[row]],
                score=entry["score"],
                suggested=names[suggested[row]],
                true=None if truth is None else names[truth[row]],
                p_clean=entry["p_clean"],
                text=shown.text(row) if shown else None,
                image=shown.image(row) if shown else None,
            )
        )
    return cards
