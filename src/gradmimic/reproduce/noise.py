"""The wrong labels of a cell, by the text that names them.

0.4              symmetric: ⌊ρN⌋ labels move to any other class
pair:0.4         ⌊ρN⌋ labels move to the next class
confusable:0.4   ⌊ρN⌋ labels move to the class that a probe of the clean labels takes them for next
column:NAME      all labels are those of another column of the set, such as what people said
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.data import pair_flip, symmetric
from gradmimic.errors import ConfigError, DataError

Labels = npt.NDArray[np.int64]
_TEXT = re.compile(r"(?:(pair|confusable):)?(0|1|0?\.\d+)|column:(.+)")


class Noise(NamedTuple):
    """What a text names.

    Attributes:
        kind: ``"symmetric"``, ``"pair"``, ``"confusable"`` or ``"column"``.
        rate: ρ in [0, 1], of the first three.
        column: of the last.
    """

    kind: str
    rate: float = 0.0
    column: str = ""


def parse_noise(text: str) -> Noise:
    """Read what names wrong labels.

    Raises:
        ConfigError: it names none.

    Example:
        >>> parse_noise("0.4"), parse_noise("pair:0.2").kind, parse_noise("column:said").column
        (Noise(kind='symmetric', rate=0.4, column=''), 'pair', 'said')
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"expected noise as 0.4, pair:0.4 or confusable:0.4 with a rate in [0, 1], or as "
            f"column:NAME; got {text!r}."
        )
    kind, rate, column = found.groups()
    if column is not None:
        return Noise("column", column=column)
    return Noise(kind or "symmetric", float(rate))


def corrupt(
    clean: Labels, noise: Noise, classes: int, seed: int, likely: npt.NDArray[np.floating] | None
) -> Labels:
    """Make labels wrong, as all kinds of noise but ``"column"`` do.

    Args:
        clean: ``[n]``.
        noise: which kind, and how much.
        classes: K.
        seed: which labels; the same ones for the symmetric and the confusable kind.
        likely: ``[n, K]``, what a probe says of each sample, for the confusable kind.

    Raises:
        DataError: labels are no class numbers, or the confusable kind has no probe.

    Example:
        >>> likely = np.array([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3]])
        >>> corrupt(np.array([0, 1]), Noise("confusable", 1.0), 3, 0, likely)
        array([2, 2])
    """
    if noise.kind == "pair":
        return pair_flip(clean, noise.rate, classes, seed)
    moved = symmetric(clean, noise.rate, classes, seed)
    if noise.kind != "confusable":
        return moved
    if likely is None or likely.shape != (len(clean), classes):
        raise DataError(f"confusable noise needs what a probe says, [{len(clean)}, {classes}].")
    others = likely.copy()
    others[np.arange(len(clean)), clean] = -np.inf
    return np.where(moved != clean, others.argmax(1), clean)
