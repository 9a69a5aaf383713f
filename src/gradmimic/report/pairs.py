"""The report of a run on pairs: pictures with their captions at both ends of the ranking.

As in ``page``, everything that comes from data is escaped, and pictures are encoded anew.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradmimic.report.frame import Frame
from gradmimic.report.page import fill_template, short, shortened, write_html
from gradmimic.report.pictures import data_uri


@dataclass(frozen=True)
class PairCard:
    """One pair.

    Args:
        sample_id: its id.
        caption: its caption.
        image: its picture: encoded bytes, which are decoded and encoded anew before they enter a
            page; None where they are gone.
        score: its mean mimic score; higher is better.
        kept: whether it is selected.
        p_clean: probability in [0, 1] that the two match.
        swapped: whether its caption is known to be another picture's.
        similarity: the reference's cosine of the two, in [−1, 1].
    """

    sample_id: int | str
    caption: str
    image: bytes | None
    score: float
    kept: bool
    p_clean: float | None = None
    swapped: bool | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class PairsReport(Frame):
    """What the page shows, beside what every page does.

    Args:
        lowest: pairs of the lowest scores, lowest first.
        highest: pairs of the highest scores, highest first.
    """

    lowest: Sequence[PairCard] = ()
    highest: Sequence[PairCard] = ()


def write_pairs_report(path: str | os.PathLike[str], data: PairsReport) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Args:
        path: the file to write; its folder must exist.
        data: the numbers, texts and pictures.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written; what stood there before stays.
    """
    write_html(path, render_pairs_report(data))


def render_pairs_report(data: PairsReport) -> str:
    """Return the report as the text of one HTML file.

    Args:
        data: the numbers, texts and pictures.

    Raises:
        MissingExtraError: jinja2 is not installed.

    Example:
        >>> html = render_pairs_report(PairsReport("pool", "A & B."))
        >>> "A &amp; B." in html
        True
    """
    known = [card.swapped for card in data.lowest if card.swapped is not None]
    return fill_template(
        "pairs.html.jinja",
        **data.shown(),
        ends=[
            (title, remark, [_card(card) for card in cards])
            for title, remark, cards in (
                (
                    "lowest",
                    "A step on one of these moves the weights away from the reference, or least "
                    "toward it."
                    + (f" Of {len(known)}, {sum(known)} are known to be swapped." if known else ""),
                    data.lowest,
                ),
                ("highest", "These pull most toward the reference.", data.highest),
            )
            if cards
        ],
        wide_cards=True,
    )


def _card(card: PairCard) -> dict[str, Any]:
    """Prepare what the page shows of one pair."""
    facts = [("score", short(card.score))]
    if card.p_clean is not None:
        facts.append(("p(match)", f"{card.p_clean:.2f}"))
    if card.similarity is not None:
        facts.append(("CLIP score", f"{card.similarity:.2f}".replace("-", "−")))
    return {
        "id": str(card.sample_id),
        "picture": None if card.image is None else data_uri(card.image),
        "caption": shortened(card.caption),
        "facts": facts,
        "kept": card.kept,
        "swapped": card.swapped,
    }
