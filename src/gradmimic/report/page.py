"""The report as one HTML file that needs nothing else: no font, no network.

Everything that comes from data is escaped by the template engine, or stands in the page as data
that its scripts read; scripts of ours, and pictures that were encoded anew, are all that enters as
it is. Without scripts the page still says every number.
"""

import os
from typing import Any

from gradmimic.atomic import atomic_write
from gradmimic.extras import import_extra
from gradmimic.report.frame import Frame
from gradmimic.report.inline import policy, source
from gradmimic.report.vega import bundle


def write_report(path: str | os.PathLike[str], frame: Frame) -> None:
    """Write the report of a run as one self-contained HTML file, whole or not at all.

    Args:
        path: the file to write; its folder must exist.
        frame: the numbers, texts and charts.

    Raises:
        MissingExtraError: jinja2, altair or vl-convert is not installed.
        OSError: the file cannot be written; what stood there before stays.

    Example:
        >>> import tempfile, pathlib
        >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
        >>> write_report(page, Frame("digits", "180 of 1,000 samples are removed."))
        >>> "180 of 1,000 samples" in page.read_text(encoding="utf-8")
        True
    """
    write_html(path, render_report(frame))


def write_html(path: str | os.PathLike[str], html: str) -> None:
    """Write a page, whole or not at all; half a surrogate pair becomes a question mark."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8", errors="replace"))


def render_report(frame: Frame) -> str:
    """Return the report as the text of one HTML file.

    Args:
        frame: the numbers, texts and charts.

    Returns:
        The page; the same data give the same text.

    Raises:
        MissingExtraError: jinja2, altair or vl-convert is not installed.
    """
    return fill_template("base.html.jinja", frame)


def fill_template(name: str, frame: Frame, **values: Any) -> str:
    """Fill one of this folder's templates; all values are escaped, but for ``Markup``.

    Args:
        name: the template's file.
        frame: what every page shows.
        values: what this template asks for beside it.

    Returns:
        The page; the same values give the same text.

    Raises:
        MissingExtraError: jinja2, altair or vl-convert is not installed.
    """
    jinja2 = import_extra("jinja2", "report")
    markup = import_extra("markupsafe", "report").Markup
    shown = frame.shown()
    scripts = [bundle(), source("charts.js")] if shown["charts"] else []
    styles = []
    if shown["gallery_shown"] is not None:
        scripts.append(source("gallery.js"))
        styles.append(source("gallery.css"))
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(source),
    )
    page: str = environment.get_template(name).render(
        **shown,
        **values,
        policy=markup(policy(scripts)),
        scripts=[markup(text) for text in scripts],
        styles=[markup(text) for text in styles],
    )
    return page
