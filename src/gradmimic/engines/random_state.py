"""The same random numbers again, for an operation that runs twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomState:
    """The random numbers' state at one moment, on the CPU and on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if self._device else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers again, and leave no trace of it."""
        devices = [self._device] if self._device else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self._cpu)
            if self._gpu is not None and self._device is not None:
                torch.cuda.set_rng_state(self._gpu, self._device)
            yield
