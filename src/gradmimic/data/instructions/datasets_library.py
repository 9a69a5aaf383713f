"""Instructions in a data set of Hugging Face's ``datasets``: a saved folder, or one on the hub.

What is on the hub is downloaded, and mapped into memory.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradmimic.data.datasets_library import load_hub, load_saved
from gradmimic.data.instructions.source import InstructionSource, Masks, Row


class DatasetSource(InstructionSource):
    """A ``datasets.Dataset``; what is kept of it is saved as one."""

    kept_name = "kept"

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset, self.parts = name, dataset, [""]

    def rows(self, part: int) -> Iterator[Row]:
        """Yield the rows."""
        for row in self._dataset:
            yield dict(row)

    def expected(self, part: int) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def write(self, path: Path, keep: Masks) -> None:
        """Save the rows as a folder that ``load_from_disk`` opens."""
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            self._dataset.select(np.flatnonzero(keep[0])).save_to_disk(beside)
            shutil.rmtree(path, ignore_errors=True)
            beside.replace(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def open_hub(data: str) -> DatasetSource | None:
    """Open a data set on the hub; None where the text is no such URL.

    Raises:
        DataError: there is none of that name, or it cannot be reached.
    """
    dataset = load_hub(data, extra="sft", streaming=False)
    return None if dataset is None else DatasetSource(data, dataset)


def open_saved(data: str) -> DatasetSource:
    """Open a folder that ``save_to_disk`` of the ``datasets`` library wrote.

    Raises:
        DataError: it cannot be read, or has several splits.
    """
    return DatasetSource(data, load_saved(data, extra="sft"))
