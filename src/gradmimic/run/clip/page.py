"""The report of a run on pairs: its outcome, laid out for the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradmimic.curate import Selection
from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.sample import Record
from gradmimic.pair_model import PairModel
from gradmimic.report.figures import curve_figure, histogram_figure
from gradmimic.report.grids import Grid
from gradmimic.report.numbers import percent
from gradmimic.report.page import signed
from gradmimic.report.pairs import PairCard, PairsReport, write_pairs_report
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.evaluate import KS
from gradmimic.run.clip.outcome import WAYS, Means, recalls, zero_shots
from gradmimic.run.clip.pool import Held
from gradmimic.run.clip.read import Inputs
from gradmimic.run.outcome import Outcome
from gradmimic.run.shown import census_grid, lowest_kept

LOWEST, HIGHEST = 36, 12  # pairs shown


def write_pairs_page(
    config: ClipConfig,
    inputs: Inputs,
    outcome: Outcome,
    selection: Selection,
    means: Means,
    reference: PairModel | None,
    versions: Mapping[str, str | None],
) -> None:
    """Write the report: what was found, how the scores lie, and both ends of the ranking.

    Args:
        config: the run's configuration.
        inputs: the pairs.
        outcome: every number.
        selection: what stage 2 decided.
        means: the mean scores.
        reference: the whole model, for its CLIP score of the pairs that are shown.
        versions: library → version.
    """
    values = outcome.values
    lowest, highest = _ends(selection)
    cards = _cards([*lowest, *highest], inputs, reference)
    write_pairs_report(
        outcome.files["report"],
        PairsReport(
            title=Path(config.out).resolve().name,
            verdict=_verdict(values, selection),
            tiles=_tiles(values, selection),
            notes=outcome.notes,
            figures=_figures(values, selection, means, inputs),
            grids=[_retrieval(values), _zero_shot(values), _census(outcome)],
            metrics=outcome.metrics,
            lowest=cards[: len(lowest)],
            highest=cards[len(lowest) :],
            config=config.as_dict(),
            versions={name: found or "–" for name, found in versions.items()},
        ),
    )


def _verdict(values: Mapping[str, Any], selection: Selection) -> str:
    """Say in a sentence or two what came of the run."""
    parts = []
    plain, reweighted, selected = (recalls(values, way) for way in WAYS)
    if plain and reweighted:
        parts.append(
            f"Re-weighting took R@10 from {percent(plain[-1])} to {percent(reweighted[-1])} "
            f"({signed(100 * (reweighted[-1] - plain[-1]))} points; best against best "
            f"{signed(100 * (max(reweighted) - max(plain)))})."
        )
    removed, total = len(selection.removed), len(selection)
    share = percent(removed / total) if total else "none"
    parts.append(f"The selection removes {removed:,} of {total:,} pairs ({share}).")
    if plain and selected:
        parts.append(
            f"Training on the rest alone, for as many steps, comes to {percent(selected[-1])}."
        )
    return " ".join(parts)


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


def _figures(
    values: Mapping[str, Any], selection: Selection, means: Means, inputs: Inputs
) -> list[tuple[str, str]]:
    """Draw the curves and the distribution of the scores."""
    level = values["reference"].get("retrieval", {}).get("R@10")
    recall = {name: dict(enumerate(recalls(values, way))) for way, name in WAYS.items()}
    loss = {name: dict(enumerate(values[way]["loss"])) for way, name in WAYS.items() if values[way]}
    bad = None
    if inputs.swapped is not None:
        bad = np.array([sample_id in inputs.swapped for sample_id in means.ids.tolist()])
    return [
        (
            curve_figure(recall, "recall", level),
            "R@10 after each epoch, averaged over both directions; higher is better.",
        ),
        (
            histogram_figure(
                means.samples, means.canaries, bad, lowest_kept(selection, means.samples)
            ),
            "Mean mimic scores of the pairs, and of canaries: pictures with another one’s caption.",
        ),
        (
            curve_figure(loss, "loss"),
            "Mean loss on the pairs as given. Learning bad ones by heart lowers it as well.",
        ),
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


def _ends(selection: Selection) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the lowest and of the highest scores; no pair is in both."""
    table = selection.table
    lowest = table.sort_by([("score", "ascending"), ("sample_id", "ascending")])
    highest = table.sort_by([("score", "descending"), ("sample_id", "ascending")])
    low = min(LOWEST, (3 * len(table) + 3) // 4)
    return (
        lowest.slice(0, low).to_pylist(),
        highest.slice(0, min(HIGHEST, len(table) - low)).to_pylist(),
    )


def _cards(
    rows: Sequence[Mapping[str, Any]], inputs: Inputs, reference: PairModel | None
) -> list[PairCard]:
    """Find the pictures and captions of these pairs in the data again."""
    wanted = {row["sample_id"] for row in rows}
    found: dict[str, Record] = {}
    for shard in inputs.shards_of(wanted):
        for item in inputs.source.records(shard):
            if isinstance(item, Record) and item.sample_id in wanted:
                found.setdefault(item.sample_id, item)
        if len(found) == len(wanted):
            break
    captions = {sample_id: record.texts[0] for sample_id, record in found.items()}
    if isinstance(inputs.train, Held):  # as they were trained on
        held = zip(inputs.train.ids, inputs.train.captions, strict=True)
        captions |= {sample_id: own[0] for sample_id, own in held if sample_id in wanted}
    cards = []
    for row in rows:
        sample_id = row["sample_id"]
        record, caption = found.get(sample_id), captions.get(sample_id, "")
        image = None if record is None else record.image
        cards.append(
            PairCard(
                sample_id,
                caption,
                image,
                row["score"],
                row["keep"],
                row["p_clean"],
                None if inputs.swapped is None else sample_id in inputs.swapped,
                None if reference is None else _similarity(reference, image, caption),
            )
        )
    return cards


@torch.no_grad()
def _similarity(reference: PairModel, content: bytes | None, caption: str) -> float | None:
    """Return the reference's cosine of a picture and a caption: its CLIP score."""
    picture = None if content is None else decode(content)
    if picture is None or isinstance(picture, str):
        return None
    model = reference.model.eval()
    device = next(model.parameters()).device
    tokens = {name: own.to(device) for name, own in reference.tokenize([caption]).items()}
    u = reference.encode_images(model, reference.transform(picture)[None].to(device))
    return float((u * reference.encode_texts(model, tokens)).sum())
