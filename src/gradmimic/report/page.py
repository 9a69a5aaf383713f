"""The report as one HTML file that needs nothing else: no script, no font, no network.

Everything that comes from data is escaped by the template engine; the figures, which are ours, and
pictures that were encoded anew are all that enters as it is.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from gradmimic.atomic import atomic_write
from gradmimic.extras import import_extra
from gradmimic.report.figures import TITLES, curve_figure, score_figure
from gradmimic.report.numbers import LowSample, ReportData, percent
from gradmimic.report.pictures import data_uri

_LONGEST_TEXT = 400


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Write the report of a run as one self-contained HTML file, whole or not at all.

    Args:
        path: the file to write; its folder must exist.
        data: the numbers, texts and pictures.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        OSError: the file cannot be written; what stood there before stays.

    Example:
        >>> import tempfile, pathlib
        >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
        >>> write_report(page, ReportData(title="digits", total=1000, removed=180))
        >>> "180 of 1,000 samples" in page.read_text(encoding="utf-8")
        True
    """
    write_html(path, render_report(data))


def write_html(path: str | os.PathLike[str], html: str) -> None:
    """Write a page, whole or not at all; half a surrogate pair becomes a question mark."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8", errors="replace"))


def render_report(data: ReportData) -> str:
    """Return the report as the text of one HTML file.

    Args:
        data: the numbers, texts and pictures.

    Returns:
        The page; the same data give the same text.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    markup = import_extra("markupsafe", "report").Markup
    confirmed = [low.true != low.given for low in data.lowest if low.true is not None]
    return fill_template(
        "page.html.jinja",
        title=data.title,
        verdict=_verdict(data),
        tiles=list(_tiles(data)),
        notes=data.notes,
        metrics=[(row.name, row.printed, row.meaning) for row in data.metrics],
        scores=markup(score_figure(data.scores, data.mislabelled)),
        flags_known=data.mislabelled is not None,
        curves=markup(curve_figure(data.curves, data.curve_kind, data.reference_level)),
        curve_title=TITLES[data.curve_kind],
        cards=[_card(low) for low in data.lowest],
        wide_cards=bool(data.lowest) and data.lowest[0].text is not None,
        confirmed=f"{sum(confirmed)} of {len(confirmed)}" if confirmed else None,
        config=[(key, setting(value)) for key, value in data.config.items()],
        versions=list(data.versions.items()),
    )


def fill_template(name: str, **values: Any) -> str:
    """Fill one of this folder's templates; all values are escaped, but for ``Markup``.

    Args:
        name: the template's file.
        values: what it asks for.

    Returns:
        The page; the same values give the same text.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = import_extra("jinja2", "report")
    folder = files("gradmimic.report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
    )
    page: str = environment.get_template(name).render(**values)
    return page


def _verdict(data: ReportData) -> str:
    """Say in a sentence or two what came of the run."""
    parts = []
    if data.plain_accuracy is not None and data.reweighted_accuracy is not None:
        points = 100 * (data.reweighted_accuracy - data.plain_accuracy)
        parts.append(
            f"Re-weighting took test accuracy from {percent(data.plain_accuracy)} to "
            f"{percent(data.reweighted_accuracy)} ({signed(points)} points)."
        )
    share = percent(data.removed / data.total) if data.total else "none"
    parts.append(f"The selection removes {data.removed:,} of {data.total:,} samples ({share}).")
    return " ".join(parts)


def _tiles(data: ReportData) -> Iterator[tuple[str, str, str]]:
    """Choose the headline numbers: label, number, remark."""
    if data.plain_accuracy is not None:
        yield "plain", percent(data.plain_accuracy), "test accuracy"
    if data.reweighted_accuracy is not None:
        yield "re-weighted", percent(data.reweighted_accuracy), "test accuracy"
    if data.reference_accuracy is not None:
        yield "reference", percent(data.reference_accuracy), "test accuracy"
    if data.auroc is not None:
        yield "AUROC", f"{data.auroc:.3f}", "wrong against right labels; 0.5 is chance"
    yield "removed", f"{data.removed:,}", f"of {data.total:,} samples"


def _card(low: LowSample) -> dict[str, Any]:
    """Prepare what the page shows of one sample."""
    text = None if low.text is None else shortened(low.text)
    rows = [("given", low.given)]
    if low.suggested is not None:
        rows.append(("reference", low.suggested))
    if low.true is not None:
        rows.append(("true", low.true))
    status = None if low.true is None else ("wrong" if low.true != low.given else "right")
    return {
        "id": str(low.sample_id),
        "picture": None if low.image is None else data_uri(low.image),
        "undecodable": low.image is not None,
        "text": text,
        "rows": rows,
        "status": status,
        "score": short(low.score),
        "p_clean": None if low.p_clean is None else f"{low.p_clean:.2f}",
    }


def shortened(text: str) -> str:
    """Cut a long text off."""
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + " …"


def setting(value: object) -> str:
    """Print a configuration value as it would be written."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(item) for item in value)
    return str(value)


def short(value: float) -> str:
    """Print a score with three digits, and a proper minus."""
    return f"{value:.3g}".replace("-", "−")


def signed(points: float) -> str:
    """Print a difference with its sign."""
    return f"{points:+.1f}".replace("-", "−")
