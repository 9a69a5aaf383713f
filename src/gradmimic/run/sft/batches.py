"""Batches of samples of about the same length, the longest first, each a unit of scoring.

Padding costs next to nothing so, and what does not fit into memory shows in the first minute. The
canaries are dealt out evenly, likewise by length.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradmimic.run.sft.batch import SftBatch
from gradmimic.run.sft.samples import Sequences
from gradmimic.token_losses import IGNORED
from gradmimic.units import Piece


class SftUnits:
    """Batches by their number.

    Args:
        samples: all of them.
        canaries: that are scored beside them; may be none.
        size: samples of a batch.
        padding: the token behind the end of shorter ones; it is attended to by none.
        device: where batches go.
    """

    def __init__(
        self,
        samples: Sequences,
        canaries: Sequences | None,
        size: int,
        padding: int,
        device: torch.device,
    ) -> None:
        self._samples, self._canaries = samples, canaries
        self._padding, self._device = padding, device
        order = np.argsort(-samples.lengths, kind="stable")
        self._rows = [order[start : start + size] for start in range(0, len(order), size)]
        later = np.array([], dtype=np.int64)
        if canaries is not None:
            later = np.argsort(-canaries.lengths, kind="stable")
        self._beside = np.array_split(later, len(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def size(self, number: int) -> int:
        """Return how many samples a batch has."""
        return len(self._rows[number])

    def batch(self, number: int) -> SftBatch:
        """Put a batch together."""
        rows, beside = self._rows[number], self._beside[number]
        parts = [self._samples.of(row) for row in rows]
        ids = [self._samples.ids[row] for row in rows]
        canary_ids: list[str] = []
        if self._canaries is not None:
            parts += [self._canaries.of(row) for row in beside]
            canary_ids = [self._canaries.ids[row] for row in beside]
        shape = len(parts), max(len(tokens) for tokens, _ in parts)
        input_ids = np.full(shape, self._padding, dtype=np.int64)  # [b + c, t]
        attention, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for row, (tokens, counted) in enumerate(parts):
            input_ids[row, : len(tokens)] = tokens
            attention[row, : len(tokens)] = 1
            labels[row, : len(tokens)][counted] = tokens[counted]
        moved = [self._moved(torch.from_numpy(own)) for own in (input_ids, attention, labels)]
        return SftBatch(moved[0], moved[1], moved[2], ids, canary_ids)

    def read(self, wanted: Sequence[int]) -> Iterator[Piece]:
        """Yield some batches."""
        for number in wanted:
            yield Piece(number, self.batch(number), True)

    def shown(self) -> list[SftBatch]:
        """Return the first batch."""
        return [self.batch(0)]

    def ended(self, number: int) -> None:
        """Keep no books: a batch has rows, and these are enough."""

    def called(self, number: int) -> str:
        """Name a batch."""
        return f"batch {number}"

    def _moved(self, tensor: Tensor) -> Tensor:
        """Bring a tensor to the device; to a GPU it goes by pinned memory, and nobody waits."""
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
