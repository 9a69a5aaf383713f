"""The pictures of docs/clip.md, from the benchmark's rows of figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

Row = dict[str, Any]
IMAGES = Path(__file__).parents[1] / "docs" / "images"
_CURVES = {
    ("plain", ""): ("plain", "#888888"),
    ("re-weighted", "same initial weights"): ("re-weighted, same start", "#0b6e99"),
    ("re-weighted", "other initial weights"): ("re-weighted, other start", "#d9730d"),
    ("plain, correct pairs alone", ""): ("correct pairs alone", "#448361"),
}
_BARS = {
    "mimic": ("re-weighted", "auroc"),
    "CLIP score, five captions": ("reference", "own_auroc"),
    "CLIP score, one caption": ("reference", "one_caption_auroc"),
    "combined": ("re-weighted, planted", "combined_auroc"),
}


def draw(results: Sequence[Row]) -> list[Path]:
    """Draw learning curves and AUROCs; return the files."""
    headline = next(row["temperature"] for row in results if row["what"] == "re-weighted")
    rows = [row for row in results if row.get("temperature", headline) == headline]
    return [_curves(rows), _areas(rows)]


def _curves(rows: Sequence[Row]) -> Path:
    shares = sorted({row["share"] for row in rows})
    figure, axes = plt.subplots(1, len(shares), figsize=(9, 3.4), sharey=True)
    for axis, share in zip(axes, shares, strict=True):
        for (what, way), (name, color) in _CURVES.items():
            own = [r for r in rows if (r["what"], r["way"], r["share"]) == (what, way, share)]
            recall = 100 * np.array([row["recall"] for row in own])  # [seeds, looks]
            mean, spread = recall.mean(0), recall.std(0)
            axis.plot(own[0]["steps"], mean, color=color, label=name)
            axis.fill_between(
                own[0]["steps"], mean - spread, mean + spread, color=color, alpha=0.15, lw=0
            )
        axis.set(title=f"{share:.0%} of the captions swapped", xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("R@10, %")
    axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return _saved(figure, "clip-curves.png")


def _areas(rows: Sequence[Row]) -> Path:
    shares = sorted({row["share"] for row in rows})
    figure, axes = plt.subplots(1, len(shares), figsize=(9, 2.6), sharey=True, sharex=True)
    ways = {"same initial weights": "#0b6e99", "other initial weights": "#d9730d"}
    for axis, share in zip(axes, shares, strict=True):
        for at, (what, key) in enumerate(_BARS.values()):
            for offset, (way, color) in zip((-0.19, 0.19), ways.items(), strict=True):
                own = [
                    r[key] for r in rows if (r["what"], r["way"], r["share"]) == (what, way, share)
                ]
                axis.barh(at + offset, np.mean(own), 0.36, xerr=np.std(own), color=color)
        plain = [r["own_auroc"] for r in rows if r["what"] == "plain" and r["share"] == share]
        axis.barh(len(_BARS), np.mean(plain), 0.36, xerr=np.std(plain), color="#888888")
        axis.axvline(0.5, color="black", lw=0.8, ls=":")
        axis.set(title=f"{share:.0%} swapped", xlabel="AUROC", xlim=(0.4, 1.0))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(_BARS) + 1), [*_BARS, "plain model's own"])
    axes[0].invert_yaxis()
    for way, color in ways.items():
        axes[-1].bar(0, 0, color=color, label=f"reference from the {way}")
    figure.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    figure.subplots_adjust(bottom=0.3)
    return _saved(figure, "clip-auroc.png")


def _saved(figure: Any, name: str) -> Path:
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return IMAGES / name
