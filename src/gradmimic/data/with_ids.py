"""A name for every sample of a PyTorch data set, which comes out of the loader beside it.

(x, y)              becomes  (x, y, id)
{"x": x, "y": y}    becomes  {"x": x, "y": y, "sample_id": id}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, IterableDataset

from gradmimic.errors import DataError, listed
from gradmimic.ids import as_ids

KEY = "sample_id"


class WithIds(Dataset[Any]):
    """A map-style data set whose items tell which sample they are.

    Wrap the whole data set before you cut it: a ``Subset`` or ``random_split`` of it keeps the ids.
    The loader's own collating makes ``[b]`` integers a tensor and strings a list, which is what
    ``GradMimic.weigh`` takes.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; left as it is.
        ids: ``[n]`` integers or strings, each once; None numbers the rows from 0.

    Attributes:
        dataset: what was passed.
        ids: ``[n]``, for ``Selection.sampler(dataset.ids)``.

    Raises:
        DataError: the data set has no rows to number, or there is not one id for each.

    Example:
        >>> data = WithIds([(0.5, 1), (0.25, 0)], ids=["a", "b"])
        >>> data[1]
        (0.25, 0, 'b')
        >>> WithIds([{"x": 0.5}])[0]
        {'x': 0.5, 'sample_id': 0}
    """

    def __init__(self, dataset: Any, ids: Any = None) -> None:
        rows = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if isinstance(dataset, IterableDataset) or not rows:
            raise DataError(
                f"expected a data set with __len__ and __getitem__, got {type(dataset).__name__}, "
                "whose samples have no lasting numbers. Let it yield each sample's own id: as the "
                f"last item of a tuple, or as {KEY!r} of a dictionary."
            )
        self.dataset = dataset
        self.ids = np.arange(len(dataset)) if ids is None else _checked(ids, len(dataset))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        return _named(self.dataset[row], self._id(row))

    def __getitems__(self, rows: Sequence[Any]) -> list[Any]:
        """Return several items, which a ``DataLoader`` asks for where a data set knows how."""
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(rows)
        else:
            items = [self.dataset[row] for row in rows]
        return [_named(item, self._id(row)) for item, row in zip(items, rows, strict=True)]

    def _id(self, row: Any) -> int | str:
        value: int | str = self.ids[row].item()
        return value


def _named(item: Any, sample_id: int | str) -> Any:
    """Return an item with its id."""
    if isinstance(item, Mapping):
        if KEY in item:
            raise DataError(
                f"the items have {KEY!r} already, {item[KEY]!r} here. Use the data set without "
                "WithIds, or rename that entry."
            )
        return {**item, KEY: sample_id}
    parts = item if isinstance(item, tuple) else (item,)
    return (*parts, sample_id)


def _checked(ids: Any, n: int) -> npt.NDArray[Any]:
    """Return ids as an array that workers share, int64 or fixed-width strings."""
    array: npt.NDArray[Any] = np.asarray(as_ids(ids))
    if len(array) != n:
        raise DataError(f"expected one id per sample, got {len(array)} ids for {n} samples.")
    known, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            "two samples share an id: "
            f"{listed(repr(name.item()) for name in known[counts > 1])}. "
            "Leave ids= out to number the rows."
        )
    return array
