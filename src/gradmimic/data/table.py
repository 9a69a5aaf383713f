"""The one record that every reader returns: inputs, labels and names, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read, and why; it is in no array of its :class:`Samples`."""

    sample_id: int | str
    reason: str


@dataclass(frozen=True, eq=False)
class Shown:
    """What a person is shown of each sample: its text, or the encoded bytes of its picture.

    Nothing is read before it is asked for: a report shows fifty samples of a million.

    Args:
        kind: ``"text"`` or ``"image"``.
        read: gives the text (``str``) or the file content (``bytes``) of one row of the source.
        rows: the row of the source that each sample comes from, ``[n]``.

    Example:
        >>> shown = Shown("text", ["red", "green", "blue"].__getitem__, np.arange(3))
        >>> shown.take(np.array([2, 0])).text(0)
        'blue'
    """

    kind: Literal["text", "image"]
    read: Callable[[int], str | bytes]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, row: int) -> str | None:
        """Return the text of a sample, or None where pictures are shown."""
        value = self.read(int(self.rows[row])) if self.kind == "text" else None
        return value if isinstance(value, str) else None

    def image(self, row: int) -> bytes | None:
        """Return the encoded picture of a sample as it came, or None where texts are shown."""
        value = self.read(int(self.rows[row])) if self.kind == "image" else None
        return value if isinstance(value, bytes) else None

    def take(self, rows: npt.NDArray[Any]) -> Shown:
        """Return the same for some of the samples."""
        return replace(self, rows=self.rows[rows])


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled samples, checked once when they are made.

    Args:
        inputs: features ``[n, d]`` float32, or pictures ``[n, c, h, w]`` uint8.
        labels: class numbers as given, ``[n]`` int64, each in ``0 … len(classes) − 1``.
        classes: the name of each class number.
        ids: ``[n]``, int64 or str, unique.
        source: where the samples come from, for messages.
        true_labels: class numbers known to be right, ``[n]`` int64; they only ever enter metrics.
        shown: what a report shows of each sample.
        skipped: the samples that could not be read.

    Raises:
        DataError: no samples, parts of different lengths, ids that occur twice, labels outside the
            classes, or features that are NaN or infinite.

    Example:
        >>> samples = Samples(
        ...     inputs=np.eye(3, dtype=np.float32), labels=np.array([0, 1, 1]),
        ...     classes=("cat", "dog"), ids=np.array(["a", "b", "c"]), source="memory")
        >>> samples.take(samples.labels == 1).ids.tolist()
        ['b', 'c']
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    ids: npt.NDArray[Any]
    source: str
    true_labels: npt.NDArray[np.int64] | None = None
    shown: Shown | None = None
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.inputs):
            raise DataError(f"{self.source} holds no samples")
        self._check_lengths()
        self._check_ids()
        self._check_labels("labels", self.labels)
        if self.true_labels is not None:
            self._check_labels("true labels", self.true_labels)
        if self.inputs.dtype.kind == "f":
            self._check_finite()

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: npt.NDArray[Any]) -> Samples:
        """Return some of the samples, in the order asked for.

        Args:
            rows: row numbers, or a mask with one bool per sample.

        Returns:
            The same record with those rows only; ``skipped`` is kept.
        """
        rows = np.asarray(rows)
        if rows.dtype == np.bool_:
            if len(rows) != len(self):
                raise DataError(f"a mask needs one bool per sample: {len(self)}, got {len(rows)}")
            rows = np.flatnonzero(rows)
        return replace(
            self,
            inputs=self.inputs[rows],
            labels=self.labels[rows],
            ids=self.ids[rows],
            true_labels=None if self.true_labels is None else self.true_labels[rows],
            shown=None if self.shown is None else self.shown.take(rows),
        )

    def _check_lengths(self) -> None:
        parts = {
            "labels": self.labels,
            "ids": self.ids,
            "true labels": self.true_labels,
            "things to show": self.shown,
        }
        for name, part in parts.items():
            if part is not None and len(part) != len(self.inputs):
                raise DataError(
                    f"{self.source} has {len(self.inputs)} samples, but {len(part)} {name}; "
                    "give one per sample, in the same order"
                )

    def _check_ids(self) -> None:
        values, counts = np.unique(self.ids, return_counts=True)
        twice = values[counts > 1]
        if twice.size:
            rows = np.flatnonzero(self.ids == twice[0])
            raise DataError(
                f"sample ids must be unique; in {self.source} the id {twice[0].item()!r} stands in "
                f"rows {rows[0]} and {rows[1]} ({twice.size} ids occur more than once)"
            )

    def _check_labels(self, name: str, labels: npt.NDArray[np.int64]) -> None:
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if outside.size:
            raise DataError(
                f"{name} of {self.source} must lie in 0 … {len(self.classes) - 1}, one number per "
                f"class; row {outside[0]} holds {labels[outside[0]]}"
            )

    def _check_finite(self) -> None:
        finite = np.isfinite(self.inputs)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"features must be finite float32 numbers; {self.source} holds "
                f"{self.inputs[row, column]} in row {row} (sample {self.ids[row].item()!r}), "
                f"column {column}; {int((~finite).any(axis=1).sum())} rows have such values; "
                "remove or fill them"
            )
