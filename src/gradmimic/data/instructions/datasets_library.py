"""Instructions in a data set of Hugging Face's ``datasets``: a saved folder, or one on the hub.

hf://datasets/<owner>/<name>[@<revision>][:<split>]        downloaded, and mapped into memory
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradmimic.data.instructions.source import InstructionSource, Masks, Row
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

_ON_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?/?")


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
    on_hub = _ON_HUB.fullmatch(data)
    if on_hub is None:
        return None
    datasets = import_extra("datasets", "sft")
    name, revision, split = on_hub.groups()
    try:
        return DatasetSource(
            data, datasets.load_dataset(name, revision=revision, split=split or "train")
        )
    except Exception as error:  # whatever the hub and the network raise
        raise DataError(
            f"cannot open {data}: {error}. Expected hf://datasets/owner/name:split"
        ) from error


def open_saved(data: str) -> DatasetSource:
    """Open a folder that ``save_to_disk`` of the ``datasets`` library wrote.

    Raises:
        DataError: it cannot be read, or has several splits.
    """
    datasets = import_extra("datasets", "sft")
    try:
        dataset = datasets.load_from_disk(data)
    except Exception as error:
        raise DataError(f"cannot open {data} as a Hugging Face data set: {error}") from error
    if isinstance(dataset, dict):
        if len(dataset) > 1 and "train" not in dataset:
            raise DataError(f"{data} has the splits {', '.join(dataset)}. Name one: {data}/<split>")
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    return DatasetSource(data, dataset)
