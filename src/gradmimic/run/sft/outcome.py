"""What scoring instructions came to: every number, and what the reader must know of them."""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from gradmimic.curate import Quality, Selection
from gradmimic.log_reader import LogReader
from gradmimic.report import Metric
from gradmimic.report.numbers import percent
from gradmimic.run.outcome import USELESS
from gradmimic.run.score_folder import tell_apart
from gradmimic.run.sft.config import SftConfig
from gradmimic.run.sft.losses import REDUCIBLE, REFERENCE
from gradmimic.run.sft.samples import Read

SCORERS = {
    "mimic": "the mimic score",
    REFERENCE: "the reference’s own loss",
    REDUCIBLE: "the reducible loss",
}


def measure_sft(
    config: SftConfig,
    read: Read,
    log: LogReader,
    selection: Selection,
    quality: Quality | None,
    canaries: int,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect every number of a run.

    Args:
        config: the run's.
        read: the samples.
        log: every score.
        selection: what stage 2 decided.
        quality: what the canaries say, where there are any.
        canaries: how many there are.
        facts: of the scoring: how long it took, among others.

    Returns:
        Plain numbers by name; None where something cannot be known.
    """
    return {
        "samples": len(read.sequences),
        "census": read.census.to_dict(),
        "tokens": int(read.sequences.counted.sum()),
        "cut": read.cut,
        "canaries": canaries,
        "kept": len(selection.kept),
        "removed": len(selection.removed),
        "params": config.params,
        "aggregate": config.aggregate,
        "auroc": {name: own._asdict() for name, own in tell_apart(log.path).items()},
        "quality": None if quality is None else quality.as_dict(),
        "loss": _mean(log, "mimic", "loss"),
        "reference_loss": _negative(_mean(log, REFERENCE, "score")),
        **facts,
    }


def readable_sft(values: Mapping[str, Any]) -> list[Metric]:
    """Pick the numbers that a person wants to read, and say which end is good."""
    census = values["census"]
    unusable = census["total"] - census["kept"]
    rate = (values["quality"] or {}).get("noise_rate")
    rows = [
        Metric("samples scored", values["samples"]),
        Metric("rows that could not be used", unusable or None, f"of {census['total']:,}"),
        Metric("samples cut at max_length", values["cut"] or None),
        Metric("tokens of responses", values["tokens"]),
        Metric("loss of the model", values["loss"], "mean over samples; nats a token"),
        Metric("loss of the reference", values["reference_loss"], "lower is better"),
    ]
    if rate is not None and values["auroc"]:
        sure = f"interval {percent(rate['low'])} to {percent(rate['high'])}"
        what = "responses estimated not to fit"
        rows.append(Metric(what, rate["value"], sure, percent=True))
    perfect = 1.0 if rate is None else 1 - rate["value"] / 2  # bad samples score as canaries do
    for scorer, name in SCORERS.items():
        if (area := values["auroc"].get(scorer)) is not None:
            sure = f"{area['low']:.3f} to {area['high']:.3f}; 0.5 is chance, {perfect:.2f} perfect"
            rows.append(Metric(f"canary AUROC of {name}", area["value"], sure))
    rows.append(Metric("samples removed", values["removed"]))
    return [row for row in rows if row.value is not None]


def notes_on_sft(values: Mapping[str, Any]) -> list[str]:
    """Say what the reader must know before trusting the numbers."""
    notes = []
    census, areas = values["census"], values["auroc"]
    if any(own["fault"] for own in census["shards"].values()):
        notes.append(
            "Part of the data could not be read to its end; what was read of it is scored, and "
            "the rest is in no output."
        )
    if values["cut"]:
        notes.append(
            f"{values['cut']:,} samples are longer than {values['max_length']} tokens, and are "
            "judged by what comes before. Give --max-length to change that."
        )
    if not values["chat_template"]:
        notes.append(
            "The tokenizer has no chat template: turns stand one behind the other, each on a line "
            "of its own. Give --tokenizer, that of the reference perhaps, to use another format."
        )
    own = areas.get("mimic")
    if own is not None and own["value"] < USELESS:
        notes.append(
            f"The mimic scores tell canaries from samples with AUROC {own['value']:.3f}, where 0.5 "
            "is chance: do not trust the selection. Suspect the reference, or a model too far from "
            "it."
        )
    rivals = {name: areas[name] for name in (REFERENCE, REDUCIBLE) if name in areas}
    if own is not None and rivals:
        best = max(rivals, key=lambda name: rivals[name]["value"])
        if rivals[best]["low"] > own["value"] and values["aggregate"] == "mean":
            notes.append(
                f"On canaries {SCORERS[best]} is better than the mimic score, with AUROC "
                f"{rivals[best]['value']:.3f} against {own['value']:.3f}. Give --aggregate "
                f"stacked, which combines them, or select by it alone: gradmimic select "
                f"--scorer {best}."
            )
    if values["reference_loss"] is not None and values["reference_loss"] >= values["loss"]:
        notes.append(
            f"The reference predicts these responses no better than the model (loss "
            f"{values['reference_loss']:.3f} against {values['loss']:.3f}). It may have learned "
            "another format: see that the chat template is its own."
        )
    if values["removed"] == 0:
        notes.append("Nothing in the scores speaks against any sample, so every sample is kept.")
    return notes


def _mean(log: LogReader, scorer: str, column: str) -> float | None:
    """Return the mean of a column over the samples."""
    real = pc.field("canary").is_null() & (pc.field("scorer") == scorer)
    mean = pc.mean(log.scan([column], real)[column]).as_py()
    return None if mean is None else float(mean)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
