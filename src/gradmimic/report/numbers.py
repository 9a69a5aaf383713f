"""Numbers and texts of a report as people read them: nothing here knows of HTML or of charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_LONGEST_TEXT = 400


class Interval(NamedTuple):
    """A number with a 95 % interval that holds the true one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Args:
        name: what was measured.
        value: the number, or a text; None stands for "not measured".
        meaning: the range, and which end is good.
        percent: print the number, a share in [0, 1], as a percentage.
    """

    name: str
    value: float | int | str | None
    meaning: str = ""
    percent: bool = False

    @property
    def printed(self) -> str:
        """The value as people read it."""
        if self.value is None:
            return "–"
        if isinstance(self.value, str):
            return self.value
        if self.percent:
            return percent(float(self.value))
        if isinstance(self.value, int):
            return f"{self.value:,}"
        return f"{self.value:.4g}".replace("-", "−")


def percent(share: float) -> str:
    """Print a share in [0, 1] as a percentage.

    Example:
        >>> percent(0.125) == "12.5\N{NO-BREAK SPACE}%"
        True
    """
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def short(value: float) -> str:
    """Print a score with three digits, and a proper minus."""
    return f"{value:.3g}".replace("-", "−")


def signed(points: float) -> str:
    """Print a difference with its sign."""
    return f"{points:+.1f}".replace("-", "−")


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
