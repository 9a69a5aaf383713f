"""The ranks whose batches make one batch, and what they tell each other.

    sizes   n_r of every rank                  [R]
    rows    the columns of every rank, padded  [R, k, max n_r]

Two small collectives a step, on a gloo group of our own: scores are a few numbers, which come to
the CPU for the log anyway, and a rank that has run out of batches answers from a thread of its own
while the model's own collectives go on (``gradmimic.joining``). Where there is one rank, there is
no collective at all.
"""

from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from gradmimic.errors import ParameterError, RankError, UsageError


class Ranks:
    """The ranks of a training, or this one alone.

    Args:
        batch: ``"global"``, the batches of all ranks are one, where ``torch.distributed`` is
            initialised; ``"local"``, each rank is by itself. To make one is then a collective:
            every rank makes its own, in the same order as its other groups.

    Attributes:
        size: how many ranks share a batch.

    Raises:
        ParameterError: there is no such batch.

    Example:
        >>> Ranks("local").size
        1
    """

    def __init__(self, batch: Literal["global", "local"] = "global") -> None:
        if batch not in ("global", "local"):
            raise ParameterError(f"batch={batch!r} is unknown; expected 'global' or 'local'.")
        shared = batch == "global" and dist.is_available() and dist.is_initialized()
        self._alone_by_choice = batch == "local"
        self.size = dist.get_world_size() if shared else 1
        self.rank = dist.get_rank() if self.size > 1 else 0
        self._group: Any = None
        if self.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=_timeout())

    def check(self) -> None:
        """Raise where ranks have come since this was made, and would be left out.

        Raises:
            UsageError: ``init_process_group`` came too late.
        """
        if self.size > 1 or self._alone_by_choice or not dist.is_available():
            return
        if dist.is_initialized() and (size := dist.get_world_size()) > 1:
            raise UsageError(
                f"init_process_group came after GradMimic was built, so the batches of {size} "
                "ranks would not be weighed together. Build GradMimic after it, or pass "
                "batch='local'."
            )

    def gather(self, columns: Tensor) -> list[Tensor]:
        """Return the columns of every rank.

        Args:
            columns: ``[k, n]`` of this rank; k is the same everywhere, n may be any number.

        Returns:
            ``[k, n_r]`` of each rank r, float64 on the CPU, which holds what came exactly.

        Raises:
            RankError: another rank is gone, or did not answer in time.
        """
        columns = columns.detach().to("cpu", torch.float64)
        if self.size == 1:
            return [columns]
        k, n = columns.shape
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._call(dist.all_gather, sizes, torch.tensor([n]))
        most = int(torch.cat(sizes).max())
        padded = torch.zeros(k, most, dtype=torch.float64)
        padded[:, :n] = columns
        rows = [torch.empty_like(padded) for _ in range(self.size)]
        if most:
            self._call(dist.all_gather, rows, padded)
        return [row[:, : int(size)] for row, size in zip(rows, sizes, strict=True)]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, on the CPU where there are several."""
        if self.size == 1:
            return values
        summed = values.detach().to("cpu", copy=True)
        self._call(dist.all_reduce, summed)
        return summed

    def anywhere(self, here: bool) -> bool:
        """Tell whether something holds on any rank."""
        return here if self.size == 1 else bool(self.total(torch.tensor([float(here)])) > 0)

    def _call(self, collective: Any, *tensors: Any) -> None:
        try:
            collective(*tensors, group=self._group)
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} could not exchange its scores: another rank "
                "ended, raised, weighed fewer batches, or did not come within the timeout of "
                f"init_process_group ({error}). Look at the other ranks' output first. For ranks "
                "with fewer batches than others use Join([mimic, model]), or batch='local'."
            ) from error


ALONE = Ranks("local")


def _timeout() -> timedelta | None:
    """Return the timeout that the user gave to init_process_group; torch has no public way."""
    for device in ("cpu", "cuda"):
        try:
            backend: Any = dist.group.WORLD._get_backend(torch.device(device))  # type: ignore[union-attr]
            found: timedelta = backend.options._timeout
        except (AttributeError, RuntimeError):
            continue
        return found
    return None
