"""The report of a run on pairs: its outcome, laid out for the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradmimic.curate import Selection
from gradmimic.log_reader import LogReader
from gradmimic.pair_model import PairModel
from gradmimic.report import Frame, write_report
from gradmimic.report.charts.chart import Chart
from gradmimic.report.charts.curves import curve_chart
from gradmimic.report.charts.epochs import epoch_chart
from gradmimic.report.grids import Grid
from gradmimic.report.numbers import percent, signed
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.evaluate import KS
from gradmimic.run.clip.gallery import pairs_gallery
from gradmimic.run.clip.outcome import WAYS, mean_scores, recalls, zero_shots
from gradmimic.run.clip.read import Inputs
from gradmimic.run.outcome import Outcome, scores_by_epoch
from gradmimic.run.shown import census_grid, score_charts
from gradmimic.run.verdict import (
    gain_sentence,
    noise_sentence,
    removal_sentence,
    trust_sentence,
)


def write_pairs_page(
    config: ClipConfig,
    inputs: Inputs,
    outcome: Outcome,
    selection: Selection,
    log: LogReader,
    reference: PairModel | None,
) -> None:
    """Write the report: what was found, how the scores lie, and the pairs.

    Args:
        config: the run's configuration.
        inputs: the pairs.
        outcome: every number.
        selection: what stage 2 decided.
        log: every score.
        reference: the whole model, for its CLIP score of the pairs that are shown.
    """
    values = outcome.values
    write_report(
        outcome.files["report"],
        Frame(
            title=Path(config.out).resolve().name,
            verdict=_verdict(values, selection),
            tiles=_tiles(values, selection),
            notes=outcome.notes,
            charts=_charts(config, values, selection, log, inputs),
            gallery=pairs_gallery(config, inputs, selection, reference, log),
            grids=[_retrieval(values), _zero_shot(values), _census(outcome)],
            metrics=outcome.metrics,
            config=config.as_dict(),
            versions={name: found or "–" for name, found in log.run["versions"].items()},
        ),
    )


def _verdict(values: Mapping[str, Any], selection: Selection) -> str:
    """Say in a few sentences what came of the run."""
    parts = []
    plain, reweighted, selected = (recalls(values, way) for way in WAYS)
    if plain and reweighted:
        n = values["tests"]["test"]["pictures"]
        best = signed(100 * (max(reweighted) - max(plain)))
        parts += [
            gain_sentence("R@10", plain[-1], reweighted[-1], n),
            f"Best epoch against best, the gain is {best} points.",
        ]
    parts += [
        noise_sentence(values["quality"], "of the captions are likely not their picture’s"),
        removal_sentence(len(selection.removed), len(selection), "pairs"),
    ]
    if plain and selected:
        parts.append(
            f"Training on the rest alone, for as many steps, comes to {percent(selected[-1])}."
        )
    parts.append(trust_sentence(values["quality"]))
    return " ".join(part for part in parts if part)


def _tiles(values: Mapping[str, Any], selection: Selection) -> list[tuple[str, str, str]]:
    """Choose the headline numbers: label, number, remark."""
    tiles = []
    for way, name in WAYS.items():
        if found := recalls(values, way):
            tiles.append((name, percent(found[-1]), f"R@10; at best {percent(max(found))}"))
        elif shots := zero_shots(values, way):
            remark = f"zero-shot accuracy; at best {percent(max(shots))}"
            tiles.append((name, percent(shots[-1]), remark))
    if "retrieval" in values["reference"]:
        tiles.append(("reference", percent(values["reference"]["retrieval"]["R@10"]), "R@10"))
    if values["auroc"] is not None:
        remark = "swapped captions against others; 0.5 is chance"
        tiles.append(("AUROC", f"{values['auroc']:.3f}", remark))
    elif values["quality"] and values["quality"]["auroc"]:
        area = next(iter(values["quality"]["auroc"].values()))
        tiles.append(("canary AUROC", f"{area['value']:.3f}", "0.5 is chance"))
    tiles.append(("removed", f"{len(selection.removed):,}", f"of {len(selection):,} pairs"))
    return tiles


def _charts(
    config: ClipConfig,
    values: Mapping[str, Any],
    selection: Selection,
    log: LogReader,
    inputs: Inputs,
) -> list[Chart | None]:
    """Draw the curves and the distribution of the scores."""
    level = values["reference"].get("retrieval", {}).get("R@10")
    recall = {name: dict(enumerate(recalls(values, way))) for way, name in WAYS.items()}
    loss = {name: dict(enumerate(values[way]["loss"])) for way, name in WAYS.items() if values[way]}
    names, bad = ("own caption", "swapped caption"), None
    if inputs.swapped is not None:
        ids = selection.table["sample_id"].to_pylist()
        bad = np.array([sample_id in inputs.swapped for sample_id in ids], dtype=np.bool_)
    return [
        *score_charts(
            selection,
            log,
            values["quality"],
            rule=config.rule,
            aggregate=config.aggregate,
            other_scores=mean_scores(log, selection) if config.aggregate == "stacked" else None,
            bad=bad,
            noun="pairs",
            names=names,
            canaries_are="pictures with another one’s caption",
        ),
        curve_chart(
            recall,
            "recall",
            "R@10 after each epoch, averaged over both directions; higher is better.",
            level,
        ),
        curve_chart(
            loss,
            "loss",
            "Mean loss on the pairs as given. Learning bad ones by heart lowers it as well.",
        ),
        epoch_chart(scores_by_epoch(log, selection.table["sample_id"]), bad, names),
    ]


def _retrieval(values: Mapping[str, Any]) -> Grid:
    """Lay out R@1, R@5 and R@10 of every model, both ways."""
    rows = []
    if "retrieval" in values["reference"]:
        rows.append(["reference", *_recall_cells(values["reference"]["retrieval"])])
    for way, name in WAYS.items():
        if found := recalls(values, way):
            measured = values[way]["measured"]
            rows.append([f"{name}, last epoch", *_recall_cells(measured[-1]["retrieval"])])
            if (best := int(np.argmax(found))) < len(found) - 1:
                cells = _recall_cells(measured[best]["retrieval"])
                rows.append([f"{name}, best epoch ({best})", *cells])
    tests = values["tests"]["test"]
    return Grid(
        "Retrieval",
        ""
        if tests is None
        else f"Of {tests['pictures']:,} test pictures and their captions: the share of queries of "
        "which a right answer is among the first 1, 5 or 10. Higher is better.",
        [
            "model",
            *(f"{way} R@{k}" for way in ("to text:", "to image:") for k in KS),
        ],
        rows,
    )


def _recall_cells(found: Mapping[str, Any]) -> list[str]:
    return [percent(found[way][f"R@{k}"]) for way in ("image_to_text", "text_to_image") for k in KS]


def _zero_shot(values: Mapping[str, Any]) -> Grid:
    """Lay out the zero-shot accuracy of every model."""
    rows = []
    if "zero_shot" in values["reference"]:
        rows.append(["reference", percent(values["reference"]["zero_shot"]), "–"])
    for way, name in WAYS.items():
        if found := zero_shots(values, way):
            rows.append([name, percent(found[-1]), percent(max(found))])
    tests = values["tests"]["zero_shot"]
    return Grid(
        "Zero-shot classification",
        ""
        if tests is None
        else f"The share of {tests['pictures']:,} labelled pictures that are most similar to the "
        "sentences of their own class. Higher is better.",
        ["model", "last epoch", "best epoch"],
        rows,
    )


def _census(outcome: Outcome) -> Grid:
    """Lay out what became of everything that was read."""
    remark = "Every pair of the input, once; the counts add up to the last row."
    return census_grid(outcome, "What was read, and what was dropped", remark)
