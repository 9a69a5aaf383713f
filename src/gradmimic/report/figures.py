"""The figures of the reports, as SVG text to stand inside the page.

Ink is ``currentColor`` and fonts are the page's own, so the figures follow light and dark mode.
The same numbers give the same bytes: no dates, no random ids.
"""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gradmimic.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision, on white and on near-black.
BLUE, ORANGE = "#0085c7", "#e8710a"
Kind = Literal["accuracy", "recall", "loss"]
TITLES = {"accuracy": "Test accuracy", "recall": "Retrieval", "loss": "Training loss"}
_AXES = {"accuracy": "test accuracy, %", "recall": "R@10, %", "loss": "training loss"}
_INK = "#010203"  # stands for currentColor until the SVG is written
_MOST_EPOCHS = 8
_BINS = 80

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "ytick.left": False,
    "text.parse_math": False,
}


def score_figure(
    scores: Mapping[int, npt.NDArray[Any]], mislabelled: npt.NDArray[np.bool_] | None = None
) -> str:
    """Draw how the mimic scores are distributed, one ridge per epoch, the first on top.

    Args:
        scores: for each epoch the mimic score of every sample, ``[n]``; NaN where not visited.
        mislabelled: which samples are known to carry a wrong label, ``[n]`` bool; they get a ridge
            of their own, of the area of their share.

    Returns:
        One ``<svg>`` element; of more than eight epochs eight are drawn, first and last included.
    """
    finite = {epoch: np.isfinite(values) for epoch, values in sorted(scores.items())}
    epochs = [epoch for epoch, seen in finite.items() if seen.any()]
    if len(epochs) > _MOST_EPOCHS:
        places = np.linspace(0, len(epochs) - 1, _MOST_EPOCHS).round().astype(int)
        epochs = [epochs[place] for place in places]
    if not epochs:
        return ""
    with _style("scores"):
        figure, axes = _canvas(width=5.4, height=1.0 + 0.52 * len(epochs))
        edges = _edges([scores[epoch][finite[epoch]] for epoch in epochs])
        for place, epoch in enumerate(epochs):
            seen = finite[epoch]
            wrong = np.zeros(len(seen), bool) if mislabelled is None else mislabelled
            groups = {BLUE: scores[epoch][seen & ~wrong], ORANGE: scores[epoch][seen & wrong]}
            _ridge(axes, groups, edges, base=-place)
        axes.axvline(0, color=_INK, linewidth=0.6, alpha=0.35, zorder=0)
        axes.set_yticks([-place for place in range(len(epochs))])
        axes.set_yticklabels([f"epoch {epoch}" for epoch in epochs], va="bottom")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(-len(epochs) + 0.92, 1.45)
        axes.set_xlabel("mimic score (higher: pulls toward the reference)")
        if mislabelled is not None:
            _legend(axes, {"right label": BLUE, "wrong label": ORANGE})
        return _svg(figure, "Distribution of the mimic scores in each epoch")


def curve_figure(
    curves: Mapping[str, Mapping[int, float]],
    kind: Kind = "accuracy",
    reference_level: float | None = None,
) -> str:
    """Draw a learning curve for each way of training, and the reference as a dashed line.

    Args:
        curves: for each way of training, a value per epoch.
        kind: what the values are: a share in [0, 1], or a loss.
        reference_level: the same quantity of the reference.

    Returns:
        One ``<svg>`` element.
    """
    drawn = {name: dict(sorted(curve.items())) for name, curve in curves.items() if curve}
    if not drawn:
        return ""
    scale = 1.0 if kind == "loss" else 100.0
    with _style("curves"):
        from matplotlib.ticker import MaxNLocator

        figure, axes = _canvas(width=5.4, height=3.0)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        colours = dict(zip(drawn, _colours(list(drawn)), strict=True))
        for name, curve in drawn.items():
            heights = [scale * value for value in curve.values()]
            axes.plot(list(curve), heights, color=colours[name], linewidth=2, marker="o", ms=4)
        if reference_level is not None:
            axes.axhline(
                scale * reference_level, color=_INK, alpha=0.6, linestyle=(0, (5, 4)), lw=1
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.03, y=0.12)
        axes.set_xlabel("epoch")
        axes.set_ylabel(_AXES[kind])
        dashed = {} if reference_level is None else {"reference": _INK}
        _legend(axes, {**colours, **dashed}, dashed=set(dashed))
        return _svg(figure, f"{TITLES[kind]} by epoch")


def histogram_figure(
    scores: npt.NDArray[Any],
    canaries: npt.NDArray[Any],
    bad: npt.NDArray[np.bool_] | None = None,
    threshold: float | None = None,
) -> str:
    """Draw how the mean scores of samples lie to those of canaries, and where the selection cuts.

    Args:
        scores: ``[n]``, the mean score of each sample.
        canaries: ``[c]``, of each canary; their area is drawn like that of the samples.
        bad: ``[n]``, which samples are known to be bad; they get a colour of their own.
        threshold: the lowest score that is kept.

    Returns:
        One ``<svg>`` element, empty where there is no sample.
    """
    if not len(scores):
        return ""
    flags = np.zeros(len(scores), bool) if bad is None else bad
    with _style("histogram"):
        figure, axes = _canvas(width=5.4, height=3.0)
        edges = _edges([scores, canaries])
        groups = {BLUE: scores[~flags], ORANGE: scores[flags]}
        top = _ridge(axes, groups, edges, base=0)
        colours = (
            {"samples": BLUE} if bad is None else {"matching": BLUE, "known to be bad": ORANGE}
        )
        if len(canaries):
            heights = _smooth(np.histogram(np.clip(canaries, edges[0], edges[-1]), edges)[0])
            middles = (edges[:-1] + edges[1:]) / 2
            axes.plot(
                middles, 1.3 * heights * len(scores) / len(canaries) / top, color=_INK, lw=1,
                alpha=0.6, linestyle=(0, (5, 4)),
            )  # fmt: skip
            colours["canaries"] = _INK
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1.2)
            axes.annotate(
                "kept →", (threshold, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", va="top",
            )  # fmt: skip
        axes.set_yticks([])
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.55)  # the tallest is 1.3
        axes.set_xlabel("mean mimic score (higher: pulls toward the reference)")
        _legend(axes, colours, dashed={"canaries"})
        return _svg(figure, "Distribution of the mean scores of samples and canaries")


def _style(salt: str) -> Any:
    """Apply the style while a figure is drawn; its ids depend on the salt and on what is drawn."""
    matplotlib = import_extra("matplotlib", "report")
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt})


def _canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    """Make a figure with one pair of axes, without the global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _edges(scores: list[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Divide the range that holds all but the outermost 0.2 % of the scores on either side."""
    low, high = np.quantile(np.concatenate(scores).astype(np.float64), [0.002, 0.998])
    margin = 0.04 * (high - low) or 0.5
    edges: npt.NDArray[np.float64] = np.linspace(low - margin, high + margin, _BINS + 1)
    return edges


def _ridge(
    axes: "Axes", groups: dict[str, npt.NDArray[Any]], edges: npt.NDArray[np.float64], base: float
) -> float:
    """Draw histograms on a common base line, the tallest 1.3 high; return its count."""
    heights = {
        colour: _smooth(np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0])
        for colour, values in groups.items()
        if len(values)
    }
    top = max(height.max() for height in heights.values()) or 1.0
    middles = (edges[:-1] + edges[1:]) / 2
    for colour, height in heights.items():
        ridge = base + 1.3 * height / top
        axes.fill_between(
            middles, base, ridge, color=colour, alpha=0.4, linewidth=0, zorder=1 - base
        )
        axes.plot(middles, ridge, color=colour, linewidth=1.2, zorder=1 - base)
    axes.axhline(base, color=_INK, linewidth=0.5, alpha=0.3, zorder=1 - base)
    return float(top)


def _smooth(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Smooth a histogram with a narrow kernel that keeps its area."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    smooth: npt.NDArray[np.float64] = np.convolve(counts, kernel, mode="same")
    return smooth


def _colours(names: list[str]) -> list[str]:
    """Give the plain run blue and the re-weighted one orange; others follow in a quiet order."""
    palette = [BLUE, ORANGE, "#009e73", "#cc79a7", "#b59f00"]
    return [palette[place % len(palette)] for place in range(len(names))]


def _legend(axes: "Axes", colours: Mapping[str, str], dashed: set[str] | None = None) -> None:
    """Put the names in one line above the axes, where no curve can run through them."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, lw=1 if name in (dashed or ()) else 4)
        for name, colour in colours.items()
    ]
    for handle, name in zip(handles, colours, strict=True):
        if name in (dashed or ()):
            handle.set(linestyle=(0, (5, 4)), alpha=0.6)
    axes.legend(
        handles,
        list(colours),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(colours),
        frameon=False,
        borderaxespad=0,
        handlelength=1.6,
    )


def _svg(figure: "Figure", label: str) -> str:
    """Write a figure as one ``<svg>`` element that takes its ink and its font from the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure, so not unique in a page
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)  # the page gives the width
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
