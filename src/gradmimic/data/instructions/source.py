"""Where instructions lie: rows in files or a data set, read from start to end.

What is kept of them is written as it came, in the same format, row by row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any] | str  # the cells by column, or why they cannot be read
Masks = Sequence[npt.NDArray[np.bool_]]


class InstructionSource(ABC):
    """Rows, in parts such as files.

    Attributes:
        name: as the user wrote it.
        parts: the parts' names.
        kept_name: what a file of kept rows is called.
    """

    name: str
    parts: Sequence[str]
    kept_name: str

    @abstractmethod
    def rows(self, part: int) -> Iterator[Row]:
        """Yield all rows of a part; what a damaged one raises is the library's own."""

    def expected(self, part: int) -> int | None:
        """Return how many rows a part should hold, where something tells."""
        return None

    @abstractmethod
    def write(self, path: Path, keep: Masks) -> None:
        """Write some rows as they are, whole or not at all.

        Args:
            path: of the new file or folder.
            keep: for each part, which of its rows; a row behind the mask's end is left out.

        Raises:
            OSError: the disk does not take it; what stood there before stays.
        """
