"""What a run on pairs came to: every number, and what the reader must know of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from gradmimic.curate import Quality, Selection
from gradmimic.log_reader import LogReader
from gradmimic.report import Metric
from gradmimic.report.numbers import percent
from gradmimic.run.clip.beside import SCORER
from gradmimic.run.clip.read import Inputs
from gradmimic.run.clip.trainings import Trainings
from gradmimic.run.metrics import detection
from gradmimic.run.outcome import USELESS
from gradmimic.separation import auroc

WAYS = {"plain": "plain", "reweighted": "re-weighted", "selected": "selected"}


def mean_scores(log: LogReader, selection: Selection) -> npt.NDArray[np.float64]:
    """Return the mean mimic score of each sample ``[n]``, in the selection's order."""
    own = _means(log, "mimic")
    ids = selection.table["sample_id"].to_pylist()
    return np.array([own[sample_id] for sample_id in ids], dtype=np.float64)


def measure_pairs(
    inputs: Inputs,
    trainings: Trainings,
    log: LogReader,
    selection: Selection,
    quality: Quality | None,
) -> dict[str, Any]:
    """Collect every number of a run.

    Args:
        inputs: the pairs; which of them were swapped on purpose enters here and nowhere else.
        trainings: the curves.
        log: every score.
        selection: what stage 2 decided.
        quality: what the canaries say, where there are any.

    Returns:
        Plain numbers by name; None where something cannot be known.
    """
    scored = len(selection)
    values: dict[str, Any] = {
        "samples": len(inputs.train),
        "trusted": 0 if inputs.trusted is None else len(inputs.trusted),
        "census": inputs.census.to_dict(),
        "trusted_census": inputs.trusted_census and inputs.trusted_census.to_dict(),
        "tests": trainings.tests.sizes,
        "kept": len(selection.kept),
        "removed": len(selection.removed),
        "unscored": len(inputs.train) - scored,
        "aggregate": trainings.config.aggregate,
        "align": trainings.aligned,
        "overtaken": trainings.overtaken,
        "steps": trainings.steps,
        "reference": trainings.reference,
        **dict.fromkeys(WAYS),
        **{way: vars(curve) for way, curve in trainings.curves.items() if way in WAYS},
        "gain": None,
        "swapped": None,
        "auroc": None,
        "auroc_of": None,
        "auroc_per_epoch": None,
        "detection": None,
        "quality": None if quality is None else quality.as_dict(),
    }
    plain, reweighted = (recalls(values, way) for way in ("plain", "reweighted"))
    if plain and reweighted:
        values["gain"] = {
            "last": reweighted[-1] - plain[-1],
            "best": max(reweighted) - max(plain),
        }
    if inputs.swapped is not None:
        ids = selection.table["sample_id"].to_pylist()
        bad = np.array([sample_id in inputs.swapped for sample_id in ids])  # [n]
        values |= {
            "swapped": len(inputs.swapped) / max(len(inputs.train), 1),
            "auroc": auroc(selection.table["score"].to_numpy(), bad),
            "auroc_of": _by_scorer(log, inputs.swapped),
            "auroc_per_epoch": _by_epoch(log, inputs.swapped),
            "detection": detection(~selection.table["keep"].to_numpy(zero_copy_only=False), bad),
        }
    return values


def recalls(values: Mapping[str, Any], way: str) -> list[float]:
    """Return R@10 after each epoch of one training, where it was measured."""
    measured = (values[way] or {}).get("measured", [])
    return [own["retrieval"]["R@10"] for own in measured if "retrieval" in own]


def zero_shots(values: Mapping[str, Any], way: str) -> list[float]:
    """Return the zero-shot accuracy after each epoch, likewise."""
    measured = (values[way] or {}).get("measured", [])
    return [own["zero_shot"] for own in measured if "zero_shot" in own]


def readable_pairs(values: Mapping[str, Any]) -> list[Metric]:
    """Pick the numbers that a person wants to read, and say which end is good."""
    found = values["detection"] or {}
    census = values["census"]
    left_out = census["total"] - census["kept"]
    rows = [
        Metric("pairs trained on", values["samples"]),
        Metric("pairs that could not be used", left_out or None, f"of {census['total']:,}"),
        Metric("trusted pairs", values["trusted"] or None),
        *_of_quality(values["quality"]),
        Metric("captions swapped on purpose", values["swapped"], "of all", percent=True),
        *_of_tests(values),
        *_of_scorers(values),
        Metric("pairs removed", values["removed"]),
        Metric("precision of removal", found.get("precision"), "share removed rightly", True),
        Metric("recall of removal", found.get("recall"), "share of swapped ones removed", True),
        Metric("F1 of removal", found.get("f1"), "0 to 1, higher is better"),
    ]
    return [row for row in rows if row.value is not None]


def _of_tests(values: Mapping[str, Any]) -> Iterator[Metric]:
    """Pick what the models come to on the test sets."""
    reference = values["reference"]
    if "retrieval" in reference:
        yield Metric("R@10, reference", reference["retrieval"]["R@10"], "0 to 1", True)
    for way, name in WAYS.items():
        if found := recalls(values, way):
            best = f"best {percent(max(found))}, epoch {int(np.argmax(found))}; higher is better"
            yield Metric(f"R@10, {name}", found[-1], best, True)
    if "zero_shot" in reference:
        yield Metric("zero-shot accuracy, reference", reference["zero_shot"], "0 to 1", True)
    for way, name in WAYS.items():
        if found := zero_shots(values, way):
            best = f"best {percent(max(found))}, epoch {int(np.argmax(found))}; higher is better"
            yield Metric(f"zero-shot accuracy, {name}", found[-1], best, True)


def _of_scorers(values: Mapping[str, Any]) -> Iterator[Metric]:
    """Tell how well the scores, and their rival, find the captions that were swapped."""
    by_scorer = values["auroc_of"] or {}
    perfect = "0.5 is chance, 1 is perfect"
    yield Metric("AUROC of the mean mimic score", by_scorer.get("mimic"), perfect)
    yield Metric("AUROC of the reference’s CLIP score", by_scorer.get(SCORER), perfect)
    if values["auroc"] != by_scorer.get("mimic"):
        yield Metric("AUROC of both, combined", values["auroc"], perfect)


def _of_quality(quality: Mapping[str, Any] | None) -> list[Metric]:
    """Pick what the canaries say; it needs no pairs known to match."""
    if quality is None or not quality["auroc"]:
        return []
    rate, (kind, area) = quality["noise_rate"], next(iter(quality["auroc"].items()))
    return [
        Metric(
            "pairs estimated not to match",
            rate["value"],
            f"interval {percent(rate['low'])} to {percent(rate['high'])}",
            percent=True,
        ),
        Metric(
            f"AUROC of {kind} canaries",
            area["value"],
            f"95 % interval {area['low']:.3f} to {area['high']:.3f}; 0.5 is chance, "
            f"{1 - rate['value'] / 2:.2f} is perfect",
        ),
    ]


def notes_on_pairs(values: Mapping[str, Any]) -> list[str]:
    """Say what the reader must know before trusting the numbers."""
    notes = []
    census = values["census"]
    if census["lost_unknown"]:
        notes.append(
            f"{len(census['lost_unknown'])} shards could not be read to their end, and nothing "
            "tells how many pairs they hold: the counts leave those out."
        )
    if values["auroc"] is not None and values["auroc"] < USELESS:
        notes.append(
            f"The scores tell swapped captions from others with AUROC {values['auroc']:.3f}, where "
            "0.5 is chance: do not trust the selection, and suspect the reference."
        )
    rivals = values["auroc_of"] or {}
    mean = values["auroc"] if values["aggregate"] == "mean" else None
    if mean is not None and (rivals.get(SCORER) or 0) > mean + 0.01:
        notes.append(
            "The reference’s own CLIP score tells swapped captions from others better, with AUROC "
            f"{rivals[SCORER]:.3f}: give aggregate: stacked, which combines both."
        )
    quality = values["quality"]
    if values["auroc"] is None and quality is not None and quality["auroc"]:
        area = next(iter(quality["auroc"].values()))
        if area["value"] < USELESS:
            notes.append(
                f"The scores tell canaries from samples with AUROC {area['value']:.3f}, where 0.5 "
                "is chance: do not trust the selection, and suspect the reference."
            )
    if values["unscored"] > 0:
        notes.append(
            f"{values['unscored']:,} pairs were never scored, and are not in the selection."
        )
    if values["overtaken"] is not None:
        notes.append(
            f"From step {values['overtaken']} on the scores know nothing, as the canaries show: "
            "the weights faded to equal ones, and later visits are left out of the selection where "
            "they can be."
        )
    plain, reweighted = (recalls(values, way) for way in ("plain", "reweighted"))
    reference = values["reference"].get("retrieval", {}).get("R@10")
    if reference is not None and reweighted and reweighted[-1] <= reference:
        notes.append("The reference alone retrieves at least as well as the re-weighted model.")
    if len(plain) > 2 and plain[-1] < max(plain) - 0.03:
        notes.append(
            f"Plain training was at its best after epoch {int(np.argmax(plain))} and then learned "
            "bad pairs by heart; compare with its best as well."
        )
    tests = values["tests"]["test"]
    if tests is not None:
        if tests["unusable"]:
            notes.append(f"{tests['unusable']} test pairs could not be used.")
        chance = 100 * (0.25 / tests["pictures"]) ** 0.5
        if chance > 1.5 and reweighted:
            notes.append(
                f"With {tests['pictures']} test pictures chance alone moves R@10 by up to "
                f"{chance:.0f} points, as a standard error: smaller differences mean nothing."
            )
    if values["removed"] == 0:
        notes.append("Nothing in the scores speaks against any pair, so every pair is kept.")
    return notes


def _means(log: LogReader, scorer: str) -> dict[Any, float]:
    """Return the mean score of each sample."""
    real = pc.field("canary").is_null()
    rows = log.scan(["sample_id", "score"], real & (pc.field("scorer") == scorer))
    rows = rows.group_by("sample_id").aggregate([("score", "mean")])
    return dict(zip(rows["sample_id"].to_pylist(), rows["score_mean"].to_pylist(), strict=True))


def _by_scorer(log: LogReader, bad: frozenset[str]) -> dict[str, float | None]:
    """Return the AUROC of each scorer's mean scores."""
    found = {}
    for scorer in ("mimic", SCORER):
        means = _means(log, scorer)
        if means:
            flags = np.array([sample_id in bad for sample_id in means])
            found[scorer] = auroc(np.array([*means.values()]), flags)
    return found


def _by_epoch(log: LogReader, bad: frozenset[str]) -> dict[int, float | None]:
    """Return the AUROC of each epoch's mimic scores alone."""
    real = pc.field("canary").is_null() & (pc.field("scorer") == "mimic")
    rows = log.scan(["sample_id", "epoch", "score"], real)
    flags = np.array([sample_id in bad for sample_id in rows["sample_id"].to_pylist()])
    epochs, scores = rows["epoch"].to_numpy(), rows["score"].to_numpy()
    return {
        int(epoch): auroc(scores[epochs == epoch], flags[epochs == epoch])
        for epoch in np.unique(epochs)
    }
