"""From labels to class numbers: one numbering, made once and handed to every further table.

number(label) = position of its name in ``classes``; integers are ordered as numbers, names as text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError, listed


def make_classes(values: npt.NDArray[Any]) -> tuple[str, ...]:
    """Name the classes that occur: integers in number order, names in alphabetical order.

    Args:
        values: labels as they were read, ``[n]``, int64 or str.

    Returns:
        The name of each class number.

    Example:
        >>> make_classes(np.array([10, 9, 10]))
        ('9', '10')
    """
    return tuple(str(value) for value in np.unique(values))


def number_labels(
    values: npt.NDArray[Any],
    classes: tuple[str, ...],
    where: str,
    class_names: Sequence[str] | None = None,
) -> npt.NDArray[np.int64]:
    """Replace each label by the number of its class.

    Args:
        values: labels as they were read, ``[n]``, int64 or str.
        classes: the name of each class number.
        where: file and column, for messages.
        class_names: the name of the integer label 0, 1, 2, …; None where labels name themselves.

    Returns:
        Class numbers, ``[n]`` int64, in ``0 … len(classes) − 1``.

    Raises:
        DataError: labels that are none of the classes.

    Example:
        >>> number_labels(np.array(["dog", "cat"]), ("cat", "dog"), "labels.txt")
        array([1, 0])
    """
    present, inverse = np.unique(values, return_inverse=True)  # [u], [n]
    names = [_name(value, class_names) for value in present.tolist()]
    number = {name: position for position, name in enumerate(classes)}
    unknown = [str(value) for value, name in zip(present, names, strict=True) if name not in number]
    if unknown:
        row = int(np.flatnonzero(values == present[names.index(_first(names, number))])[0])
        raise DataError(
            f"{where} holds labels that are none of the {len(classes)} classes: "
            f"{listed(map(repr, unknown))} "
            f"(first in row {row}); the classes are {listed(map(repr, classes))}"
        )
    return np.array([number[name] for name in names], dtype=np.int64)[inverse]


def _name(value: int | str, class_names: Sequence[str] | None) -> str:
    """Name a label: an integer by its position in the given names, anything else by itself."""
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return str(value)


def _first(names: list[str], number: dict[str, int]) -> str:
    """Return the first name without a number."""
    return next(name for name in names if name not in number)
