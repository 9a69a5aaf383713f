"""The report of scored instructions: numbers, scores, and responses whose tokens are coloured."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate import Selection
from gradmimic.data.instructions import Instruction
from gradmimic.log_reader import LogReader
from gradmimic.report.charts.chart import Chart
from gradmimic.report.grids import Grid
from gradmimic.report.tokens import TokenCard, TokensReport, write_tokens_report
from gradmimic.run.outcome import Outcome
from gradmimic.run.sft.config import SftConfig
from gradmimic.run.sft.gallery import END, instructions_gallery
from gradmimic.run.sft.losses import REFERENCE
from gradmimic.run.sft.tokens import token_scores
from gradmimic.run.shown import arranged, census_grid, score_charts
from gradmimic.run.verdict import noise_sentence, removal_sentence, trust_sentence

LOWEST, BORDER, HIGHEST = 24, 6, 12  # samples shown; at the border so many on either side

LookUp = Callable[[Collection[str]], Mapping[str, Instruction]]


def write_sft_page(
    config: SftConfig,
    outcome: Outcome,
    selection: Selection,
    log: LogReader,
    look_up: LookUp,
    tokens: Path | None,
) -> None:
    """Write the report.

    Args:
        config: the run's configuration.
        outcome: every number, and where the page goes.
        selection: what stage 2 decided.
        log: every score.
        look_up: finds samples in the data again, by their ids.
        tokens: the file of the scores of tokens; without it responses are not coloured.
    """
    chosen = _choose(selection)
    rows = [row for _, _, rows in chosen for row in rows]
    shown = arranged(selection, END)
    ids = shown.table["sample_id"].to_pylist()
    wanted = [*(row["sample_id"] for row in rows), *(ids[place] for place in shown.wanted)]
    found = look_up(dict.fromkeys(wanted))
    cards = _cards(rows, log, found, tokens)
    write_tokens_report(
        outcome.files["report"],
        TokensReport(
            title=Path(config.out).resolve().name,
            verdict=_verdict(outcome.values, selection),
            tiles=_tiles(outcome.values, selection),
            notes=outcome.notes,
            charts=_charts(config, outcome.values, selection, log),
            gallery=instructions_gallery(config, shown, log, found),
            grids=[_census(outcome)],
            metrics=outcome.metrics,
            ends=[
                (name, remark, [cards[row["sample_id"]] for row in rows])
                for name, remark, rows in chosen
            ],
            config=config.as_dict(),
            versions={name: own or "–" for name, own in log.run["versions"].items()},
        ),
    )


def _verdict(values: Mapping[str, Any], selection: Selection) -> str:
    """Say in a few sentences what came of the run."""
    quality = values["quality"]
    parts = [
        noise_sentence(quality, "of the responses do not fit their prompts"),
        removal_sentence(len(selection.removed), len(selection), "samples"),
        trust_sentence(quality, values["auroc"].get("mimic")),
    ]
    return " ".join(part for part in parts if part)


def _tiles(values: Mapping[str, Any], selection: Selection) -> list[tuple[str, str, str]]:
    """Choose the headline numbers: label, number, remark."""
    tiles = [("removed", f"{len(selection.removed):,}", f"of {len(selection):,} samples")]
    names = {"mimic": "canary AUROC", REFERENCE: "the reference’s"}
    for scorer, name in names.items():
        if (area := values["auroc"].get(scorer)) is not None:
            what = "" if scorer == "mimic" else "AUROC of its own loss, "
            remark = f"{what}{area['low']:.3f} to {area['high']:.3f}; 0.5 is chance"
            tiles.append((name, f"{area['value']:.3f}", remark))
    tiles.append(("loss", f"{values['loss']:.3f}", "of the model, nats a token"))
    if values["reference_loss"] is not None:
        tiles.append(("reference", f"{values['reference_loss']:.3f}", "its loss, nats a token"))
    return tiles


def _charts(
    config: SftConfig, values: Mapping[str, Any], selection: Selection, log: LogReader
) -> list[Chart | None]:
    """Draw how the scores lie."""
    other = None
    if config.aggregate == "stacked":  # there is one visit, so a sample's score is its mean
        rows = log.scan(["sample_id", "score"], _of("mimic")).sort_by("sample_id")
        other = rows["score"].to_numpy()
    return score_charts(
        selection,
        log,
        values["quality"],
        rule=config.rule,
        aggregate=config.aggregate,
        other_scores=other,
        canaries_are="prompts with another sample’s response",
    )


def _of(scorer: str) -> pc.Expression:
    """Select the samples' rows of the log."""
    return pc.field("canary").is_null() & (pc.field("scorer") == scorer)


def _census(outcome: Outcome) -> Grid:
    """Lay out what became of everything that was read."""
    remark = "Every row of the input, once; the counts add up to the last one."
    return census_grid(outcome, "What was read, and what was left out", remark)


def _choose(selection: Selection) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Choose the samples at both ends of the ranking and at its border; none comes twice."""
    ranked = selection.table.sort_by([("score", "ascending"), ("sample_id", "ascending")])
    n = len(ranked)
    low = min(LOWEST, (2 * n + 2) // 3)
    high = min(HIGHEST, n - low)
    middle = ranked.slice(low, n - low - high)
    keep = middle["keep"].to_numpy(zero_copy_only=False)
    below, above = np.flatnonzero(~keep)[-BORDER:], np.flatnonzero(keep)[:BORDER]
    border = middle.take(pa.array(np.union1d(below, above)))
    if len(selection.removed) in (0, n):
        border = border.slice(0, 0)
    pulling_away = (
        "Lowest score first. A step on one of these moves the weights away from the reference, or "
        "least toward it."
    )
    return [
        ("lowest", pulling_away, ranked.slice(0, low).to_pylist()),
        ("borderline", "Just removed, and just kept.", border.to_pylist()),
        (
            "highest",
            "Highest score first. These pull most toward the reference.",
            ranked.slice(n - high).to_pylist()[::-1],
        ),
    ]


def _cards(
    rows: Sequence[Mapping[str, Any]],
    log: LogReader,
    instructions: Mapping[str, Instruction],
    tokens: Path | None,
) -> dict[str, TokenCard]:
    """Collect what is known of these samples."""
    wanted = [row["sample_id"] for row in rows]
    coloured = {} if tokens is None else token_scores(tokens, wanted)
    own = pc.field("sample_id").isin(wanted)
    columns = ["sample_id", "score", "loss"]
    mimic = _by_id(log.scan(columns, _of("mimic") & own))
    reference = _by_id(log.scan(columns, _of(REFERENCE) & own))
    cards = {}
    for row in rows:
        sample_id = row["sample_id"]
        sample = instructions.get(sample_id)
        cards[sample_id] = TokenCard(
            sample_id,
            "This sample is not there any more." if sample is None else sample.prompt,
            "" if sample is None else sample.response,
            mimic[sample_id]["score"],
            row["keep"],
            coloured.get(sample_id),
            row["p_clean"],
            mimic[sample_id]["loss"],
            -reference[sample_id]["score"] if sample_id in reference else None,
        )
    return cards


def _by_id(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in table.to_pylist()}
