"""One part of a set: its labels, and its pictures or features when they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.data.classes import make_classes, number_labels
from gradmimic.data.columns import encoded_bytes, whole_or_names
from gradmimic.data.features import Features, read_features
from gradmimic.data.images import Pixels, decode
from gradmimic.errors import DataError, listed


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a set.

    Args:
        labels: ``[n]`` int64 class numbers.
        where: for messages.
        rows: a ``datasets.Dataset`` of n rows; None where there are features alone.
        image: its column of pictures; None where it has none.
        precomputed: the file of features that would belong to it.
        kept: ``[n]``, its rows in that file, where it is one of two parts of it.
    """

    labels: npt.NDArray[np.int64]
    where: str
    rows: Any = None
    image: str | None = None
    precomputed: Path | None = None
    kept: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self) -> Iterator[bytes | None]:
        """Yield the file content of each picture.

        Raises:
            DataError: there are no pictures.
        """
        if self.image is None:
            raise DataError(
                f"{self.where} has no column of pictures (image or img). Expected some, "
                "or features of them: --backbone features."
            )
        for several in self.rows.select_columns([self.image]).iter(256):
            for cell in several[self.image]:
                path = cell.get("path") if isinstance(cell, dict) else None
                content = encoded_bytes(cell)
                yield Path(path).read_bytes() if content is None and path else content

    def pictures(self, size: int) -> Pixels:
        """Return ``[n, 3, size, size]`` uint8, stretched to a square.

        Raises:
            DataError: there are none, or one cannot be decoded: fewer rows are another set.
        """
        found = decode(self.encoded(), len(self), size, 3, self.where)
        if found.failed:
            row, reason = next(iter(found.failed.items()))
            raise DataError(
                f"{len(found.failed)} of the {len(self)} pictures of {self.where} cannot be "
                f"decoded, the first in row {row}: {reason}. Fetch the set again."
            )
        return found.pixels

    def features(self) -> Features:
        """Return ``[n, d]`` float32, which were computed elsewhere.

        Raises:
            DataError: there are none, or not as many as labels.
        """
        if self.precomputed is None or not self.precomputed.is_file():
            name = self.precomputed or "features_train.npy and features_test.npy"
            raise DataError(
                f"{self.where} has no precomputed features. Expected {name}, a row for each "
                "sample, in a folder given as --data NAME=FOLDER."
            )
        found = read_features(self.precomputed)
        expected = len(self) if self.kept is None else int(self.kept.max(initial=-1)) + 1
        if len(found) != expected if self.kept is None else len(found) < expected:
            raise DataError(
                f"{self.precomputed} has {len(found)} rows, but {self.where} has {expected} "
                "labels; expected a row for each, in the same order."
            )
        return found if self.kept is None else found[self.kept]

    def column(self, name: str, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """Return ``[n]``, the class numbers in another column, such as labels that people gave.

        Raises:
            DataError: there is no such column, or it holds no classes.
        """
        held = () if self.rows is None else self.rows.column_names
        if name not in held:
            raise DataError(f"{self.where} has no column {name!r}; it has {listed(held)}.")
        return numbered(self.rows, name, classes, self.where)


def classes_of(rows: Any, column: str) -> tuple[str, ...]:
    """Name the classes of a ``datasets.Dataset``, as its column does or as they occur."""
    names = getattr(rows.features[column], "names", None)  # of a ClassLabel
    return make_classes(_values(rows, column, column)) if names is None else tuple(names)


def numbered(rows: Any, column: str, classes: tuple[str, ...], where: str) -> npt.NDArray[np.int64]:
    """Return ``[n]``, the class numbers in a column of a ``datasets.Dataset``.

    Args:
        rows: it.
        column: of class numbers, or of names.
        classes: the name of each class number.
        where: for messages.

    Raises:
        DataError: a value is none of the classes.
    """
    names = getattr(rows.features[column], "names", None)
    where = f"{where}, {column}"
    return number_labels(_values(rows, column, where), classes, where, names)


def _values(rows: Any, column: str, where: str) -> npt.NDArray[Any]:
    return whole_or_names(rows.with_format("numpy")[column][:], where)
