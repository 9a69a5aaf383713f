"""The pictures of docs/clip.md, from the benchmark's rows of figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.reproduce.plots import dots, lines, save

Row = dict[str, Any]
IMAGES = Path(__file__).parents[1] / "docs" / "images"
_CURVES = {
    ("plain", ""): "plain",
    ("re-weighted", "same initial weights"): "re-weighted, same start",
    ("re-weighted", "other initial weights"): "re-weighted, other start",
    ("plain, correct pairs alone", ""): "correct pairs alone",
}
_SCORES = {
    "mimic": ("re-weighted", "auroc"),
    "CLIP score, five captions": ("reference", "own_auroc"),
    "CLIP score, one caption": ("reference", "one_caption_auroc"),
    "combined": ("re-weighted, planted", "combined_auroc"),
}
_WAYS = ("same initial weights", "other initial weights")


def draw(results: Sequence[Row]) -> list[Path]:
    """Draw learning curves and AUROCs; return the files."""
    headline = next(row["temperature"] for row in results if row["what"] == "re-weighted")
    rows = [row for row in results if row.get("temperature", headline) == headline]
    return [_curves(rows), _areas(rows)]


def _curves(rows: Sequence[Row]) -> Path:
    points = []
    for share in sorted({row["share"] for row in rows}):
        for (what, way), name in _CURVES.items():
            own = _those(rows, what, way, share)
            recall = 100 * np.array([row["recall"] for row in own])  # [seeds, looks]
            for step, values in zip(own[0]["steps"], recall.T, strict=True):
                points.append({"x": step, "y": values.mean(), **_labels(values, share, name)})
    names = [*_CURVES.values()]
    chart = lines(points, title="Retrieval", x="step", y="R@10, %", told_apart=names)
    return save(chart, IMAGES / "clip-curves.png")


def _areas(rows: Sequence[Row]) -> Path:
    points = []
    for share in sorted({row["share"] for row in rows}):
        for name, (what, key) in _SCORES.items():
            for way in _WAYS:
                values = np.array([row[key] for row in _those(rows, what, way, share)])
                own = _labels(values, share, name)
                points.append({"x": values.mean(), "group": way, **own})
        values = np.array([row["own_auroc"] for row in _those(rows, "plain", "", share)])
        own = _labels(values, share, "plain model's own")
        points.append({"x": values.mean(), "group": "none", **own})
    title = "Finding swapped captions: mean and standard deviation of the seeds"
    chart = dots(points, title=title, x="AUROC; 0.5 is chance", group="reference from the")
    return save(chart, IMAGES / "clip-auroc.png")


def _those(rows: Sequence[Row], what: str, way: str, share: float) -> list[Row]:
    return [row for row in rows if (row["what"], row["way"], row["share"]) == (what, way, share)]


def _labels(values: npt.NDArray[np.float64], share: float, name: str) -> Row:
    """Return the band of one standard deviation over the seeds, the name and the panel."""
    mean, spread = values.mean(), values.std()
    panel = f"{share:.0%} of the captions swapped"
    return {"low": mean - spread, "high": mean + spread, "name": name, "panel": panel}
