"""The report of a run on instructions: responses whose tokens are coloured by their scores.

    colour = the level of m_{i,t} / c      orange below 0, blue above, paler the nearer to 0

with c the 95th percentile of |m_{i,t}| over the page. As in ``page``, everything that comes from
data is escaped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradmimic.report.charts.chart import BLUE, ORANGE
from gradmimic.report.frame import Frame
from gradmimic.report.numbers import short, shortened
from gradmimic.report.page import fill_template, write_html

LEVELS = 5  # of each colour
_MOST_TOKENS = 256  # shown of a response
_STRONGEST = 0.6  # opacity: ink stays readable on it in light and dark
_END = 95.0  # percentile


@dataclass(frozen=True)
class TokenCard:
    """One sample.

    Args:
        sample_id: its id.
        prompt: what is asked.
        response: the answer, shown where the scores of its tokens are not known.
        score: its mimic score; higher is better.
        kept: whether it is selected.
        tokens: the answer's tokens with the score of each, whose mean is the sample's.
        p_clean: probability in [0, 1] that the answer is good.
        loss: the mean loss of its tokens, lower is better.
        reference_loss: the reference's.
        swapped: whether the answer is known to be another sample's.
    """

    sample_id: int | str
    prompt: str
    response: str
    score: float
    kept: bool
    tokens: Sequence[tuple[str, float]] | None = None
    p_clean: float | None = None
    loss: float | None = None
    reference_loss: float | None = None
    swapped: bool | None = None


@dataclass(frozen=True)
class TokensReport(Frame):
    """What the page shows, beside what every page does.

    Args:
        ends: samples by the name of where they lie, such as ``lowest``, with a remark.
    """

    ends: Sequence[tuple[str, str, Sequence[TokenCard]]] = ()


def write_tokens_report(path: str | os.PathLike[str], data: TokensReport) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Args:
        path: the file to write; its folder must exist.
        data: the numbers and texts.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written; what stood there before stays.
    """
    write_html(path, render_tokens_report(data))


def render_tokens_report(data: TokensReport) -> str:
    """Return the report as the text of one HTML file.

    Args:
        data: the numbers and texts.

    Raises:
        MissingExtraError: jinja2 is not installed.

    Example:
        >>> card = TokenCard("7", "Say hello.", "<b>", 0.5, True, [("<b>", 0.5)])
        >>> html = render_tokens_report(TokensReport("run", "Done.", ends=[("top", "", [card])]))
        >>> '<span class="t5" title="+0.5">&lt;b&gt;</span>' in html
        True
    """
    limit = _limit(data)
    return fill_template(
        "tokens.html.jinja",
        data,
        ends=[
            {"name": name, "remark": remark, "cards": [_card(card, limit) for card in cards]}
            for name, remark, cards in data.ends
            if cards
        ],
        coloured=limit > 0,
        colours=_colours(),
        low=_signed(-limit),
        high=_signed(limit),
    )


def _limit(data: TokensReport) -> float:
    """Return c, where the colours end; 0 where no score of a token is known."""
    cards = [card for _, _, cards in data.ends for card in cards if card.tokens]
    scores = [abs(own) for card in cards for _, own in _shown(card)]
    if not scores:
        return 0.0
    return float(np.percentile(scores, _END)) or max(scores) or 1.0


def _shown(card: TokenCard) -> Sequence[tuple[str, float]]:
    return (card.tokens or ())[:_MOST_TOKENS]


def _colours() -> list[tuple[str, str]]:
    """Name the colours from the lowest score to the highest; near 0 there is none."""
    steps = [*range(-LEVELS, 0), *range(1, LEVELS + 1)]
    return [(_name(step), _colour(step)) for step in steps]


def _name(level: int) -> str:
    return f"{'o' if level < 0 else 't'}{abs(level)}"


def _colour(level: int) -> str:
    paint = ORANGE if level < 0 else BLUE
    red, green, blue = (int(paint[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgb({red} {green} {blue} / {100 * _STRONGEST * abs(level) / LEVELS:.0f}%)"


def _card(card: TokenCard, limit: float) -> dict[str, Any]:
    """Prepare what the page shows of one sample."""
    facts = [("score", short(card.score))]
    if card.p_clean is not None:
        facts.append(("p(good)", f"{card.p_clean:.2f}"))
    if card.loss is not None:
        facts.append(("loss", short(card.loss)))
    if card.reference_loss is not None:
        facts.append(("reference’s loss", short(card.reference_loss)))
    rest = ""
    if card.tokens is None:
        rest = shortened(card.response)
    elif (more := len(card.tokens) - _MOST_TOKENS) > 0:
        rest = f" … {more:,} more tokens"
    tokens = []
    for text, score in _shown(card):
        level = round(LEVELS * max(-1.0, min(1.0, score / limit))) if limit else 0
        tokens.append((_name(level) if level else "", _signed(score), text))
    return {
        "id": str(card.sample_id),
        "prompt": shortened(card.prompt),
        "tokens": tokens,
        "rest": rest,
        "facts": facts,
        "kept": card.kept,
        "swapped": card.swapped,
    }


def _signed(score: float) -> str:
    return f"{score:+.3g}".replace("-", "−")
