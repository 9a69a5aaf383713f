"""The report of a run: its outcome, laid out for the page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradmimic.curate import Selection
from gradmimic.log_reader import LogReader
from gradmimic.report import Frame, Interval, write_report
from gradmimic.report.charts.chart import Chart
from gradmimic.report.charts.classes import class_chart, confusion_chart
from gradmimic.report.charts.curves import curve_chart
from gradmimic.report.charts.epochs import epoch_chart
from gradmimic.report.numbers import percent
from gradmimic.run.config import RunConfig
from gradmimic.run.gallery import labels_gallery
from gradmimic.run.inputs import Inputs
from gradmimic.run.outcome import Outcome, Scores, last_accuracy
from gradmimic.run.shown import score_charts
from gradmimic.run.trainings import Trained
from gradmimic.run.verdict import (
    gain_sentence,
    noise_sentence,
    removal_sentence,
    trust_sentence,
)

_CANARIES = "samples with a wrong label that we gave them"


def write_page(
    config: RunConfig,
    inputs: Inputs,
    trained: Trained,
    scores: Scores,
    selection: Selection,
    log: LogReader,
    outcome: Outcome,
) -> None:
    """Write the report: what was found, how the scores lie, and the samples.

    Args:
        config: the run's configuration.
        inputs: the tables.
        trained: the curves.
        scores: every score, by epoch.
        selection: what stage 2 decided.
        log: every score, with canaries.
        outcome: every number, and where the page goes.
    """
    values = outcome.values
    write_report(
        outcome.files["report"],
        Frame(
            title=Path(config.out).resolve().name,
            verdict=_verdict(values, inputs, selection),
            tiles=list(_tiles(values, selection)),
            notes=outcome.notes,
            charts=_charts(config, inputs, trained, scores, selection, log, values),
            gallery=labels_gallery(config, inputs, selection, trained.suggested, log),
            metrics=outcome.metrics,
            config=config.as_dict(),
            versions={name: found or "–" for name, found in log.run["versions"].items()},
        ),
    )


def _verdict(values: Mapping[str, Any], inputs: Inputs, selection: Selection) -> str:
    """Say in a few sentences what came of the run."""
    parts = []
    plain, reweighted = (last_accuracy(values, which) for which in ("plain", "reweighted"))
    if plain is not None and reweighted is not None and inputs.test is not None:
        parts.append(gain_sentence("test accuracy", plain, reweighted, len(inputs.test)))
    parts += [
        noise_sentence(values["quality"], "of the labels are likely wrong"),
        removal_sentence(len(selection.removed), len(selection), "samples"),
        trust_sentence(values["quality"]),
    ]
    return " ".join(part for part in parts if part)


def _tiles(values: Mapping[str, Any], selection: Selection) -> Iterator[tuple[str, str, str]]:
    """Choose the headline numbers: label, number, remark."""
    accuracies = {
        "plain": last_accuracy(values, "plain"),
        "re-weighted": last_accuracy(values, "reweighted"),
        "reference": values["reference_accuracy"],
    }
    for label, accuracy in accuracies.items():
        if accuracy is not None:
            yield label, percent(accuracy), "test accuracy"
    if values["auroc"] is not None:
        yield "AUROC", f"{values['auroc']:.3f}", "wrong against right labels; 0.5 is chance"
    yield "removed", f"{len(selection.removed):,}", f"of {len(selection):,} samples"


def _charts(
    config: RunConfig,
    inputs: Inputs,
    trained: Trained,
    scores: Scores,
    selection: Selection,
    log: LogReader,
    values: Mapping[str, Any],
) -> list[Chart | None]:
    """Draw everything that this run can tell."""
    samples, quality = inputs.train, values["quality"]
    order = np.argsort(samples.ids)
    ids = selection.table["sample_id"].to_numpy()
    rows = order[np.searchsorted(samples.ids[order], ids)]  # [judged], in the selection's order
    wrong = inputs.wrong
    return [
        *score_charts(
            selection,
            log,
            quality,
            rule=config.rule,
            aggregate=config.aggregate,
            bad=None if wrong is None else wrong[rows],
            canaries_are=_CANARIES,
        ),
        _curves(trained),
        epoch_chart(scores, wrong),
        class_chart(_noise_by_class(quality), _known_by_class(inputs)),
        confusion_chart(
            samples.classes,
            samples.labels[rows],
            trained.suggested[rows],
            ~selection.table["keep"].to_numpy(zero_copy_only=False),
        ),
    ]


def _curves(trained: Trained) -> Chart | None:
    """Draw test accuracy, or where there is no test set, training loss."""
    ways = {"plain": trained.plain, "re-weighted": trained.reweighted}
    if trained.plain.accuracy:
        return curve_chart(
            {name: dict(enumerate(curve.accuracy)) for name, curve in ways.items()},
            "accuracy",
            "Test accuracy after each epoch, plain training against re-weighted; higher is better.",
            trained.reference_accuracy,
        )
    return curve_chart(
        {name: dict(enumerate(curve.loss)) for name, curve in ways.items()},
        "loss",
        "Mean loss on the labels as given. Learning wrong ones by heart lowers it as well.",
    )


def _noise_by_class(quality: Mapping[str, Any] | None) -> dict[str, Interval]:
    """Return the share of likely wrong labels of each class."""
    by_class = (quality or {}).get("by_class", {})
    return {
        str(name): Interval(1 - own["value"], 1 - own["high"], 1 - own["low"])
        for name, own in by_class.items()
    }


def _known_by_class(inputs: Inputs) -> dict[str, float] | None:
    """Return the share of wrong labels of each class, where the true ones are known."""
    if inputs.wrong is None:
        return None
    samples = inputs.train
    n = np.bincount(samples.labels, minlength=len(samples.classes))
    wrong = np.bincount(samples.labels, weights=inputs.wrong, minlength=len(samples.classes))
    return {name: float(wrong[at] / n[at]) for at, name in enumerate(samples.classes) if n[at]}
