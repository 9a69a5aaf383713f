"""Sample ids: integers that fit int64, or strings; one kind per batch and per log."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError

Ids = npt.NDArray[np.int64] | list[str]


def as_ids(sample_ids: Any) -> Ids:
    """Copy a batch of ids into an int64 array or a list of strings.

    Floats, booleans, None and mixtures are refused rather than converted: an id that changes on
    its way into the log cannot be found again in the data.

    Args:
        sample_ids: list, tuple, array or CPU tensor of ids ``[b]``, integers or strings.

    Returns:
        int64 array ``[b]``, or a list of ``b`` strings.

    Raises:
        DataError: an id is neither integer nor string, does not fit int64 or UTF-8, or kinds mix.

    Example:
        >>> as_ids((3, 1))
        array([3, 1])
        >>> as_ids(np.array(["cat.png", "dog.png"]))
        ['cat.png', 'dog.png']
    """
    if isinstance(sample_ids, list | tuple):
        return _from_list(sample_ids)
    array = np.asarray(sample_ids)
    if array.ndim != 1:
        raise DataError(
            f"sample ids must be a one-dimensional sequence of ints or strings, but came as "
            f"{type(sample_ids).__name__} of shape {array.shape}. Pass one id per sample."
        )
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    return _from_list(array.tolist())


def _from_list(values: Sequence[Any]) -> Ids:
    """Check ids one by one, by their exact types first because that is fast."""
    kinds = set(map(type, values))
    if not kinds <= {int} and not kinds <= {str}:
        values = [_plain(value, position) for position, value in enumerate(values)]
        kinds = set(map(type, values))
    if len(kinds) > 1:
        raise DataError(
            "sample ids mix integers and strings. Use one kind throughout, e.g. str(id) for all."
        )
    if kinds == {str}:
        return _encodable(list(values))
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise DataError(
            f"sample id {max(values, key=abs)} does not fit int64. Use strings: str(id)."
        ) from error


def _plain(value: Any, position: int) -> int | str:
    """Turn a NumPy integer, a 0-d tensor or a subclass of str into a plain int or str."""
    if isinstance(value, str):
        return str(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise DataError(
            f"sample ids must be ints or strings, but the one at position {position} is "
            f"{value!r} ({type(value).__name__}). Give every sample an id that never changes."
        ) from error


def _encodable(values: list[str]) -> list[str]:
    """Refuse lone surrogates (file names that are not UTF-8): Parquet could not store them."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        culprit = next(value for value in values if not _is_utf8(value))
        raise DataError(
            f"sample id {culprit!r} cannot be written as UTF-8. Rename it, or use integer ids."
        ) from error
    return values


def _is_utf8(value: str) -> bool:
    """Tell whether a string can be encoded; adjacent surrogates never join to a valid pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
