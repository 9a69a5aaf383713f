"""The batches of a table, cut in order: number j holds the rows j·b … (j + 1)·b − 1."""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradmimic.data import Samples


class Labelled(NamedTuple):
    """One batch, on the device."""

    inputs: Tensor  # [b, …]
    labels: Tensor  # [b]
    ids: Any  # [b]


class RowBatches(Sequence[Labelled]):
    """Batches that are read when they are asked for: features may be a file mapped into memory.

    Args:
        samples: the table.
        size: b; the last batch may have fewer.
        device: where to; to a GPU the copy goes by pinned memory, and nobody waits for it.
    """

    def __init__(self, samples: Samples, size: int, device: torch.device) -> None:
        self.samples, self.size, self._device = samples, size, device

    def __len__(self) -> int:
        return ceil(len(self.samples) / self.size)

    def __getitem__(self, number: Any) -> Any:
        rows = slice(number * self.size, (number + 1) * self.size)
        inputs = self._moved(torch.tensor(self.samples.inputs[rows]))  # a copy: reads the file
        labels = self._moved(torch.tensor(self.samples.labels[rows]))
        return Labelled(inputs, labels, self.samples.ids[rows])

    def rows_of(self, number: int) -> int:
        """Return how many samples a batch has, without reading it."""
        return min(self.size, len(self.samples) - number * self.size)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
