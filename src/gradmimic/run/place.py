"""Which of several processes this one is, as torchrun tells by the environment.

    RANK of WORLD_SIZE, LOCAL_RANK on this machine

Processes that score need no process group: what they share is a folder. So they wait for files.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from gradmimic.errors import ConfigError, UsageError

PATIENCE = 600.0  # seconds without any change in what is waited for
_PAUSE = 0.1


class Place(NamedTuple):
    """One process of several."""

    rank: int
    processes: int
    local: int


def find_place() -> Place:
    """Read the environment; without anything there, this is the only process.

    Raises:
        ConfigError: the environment makes no sense.

    Example:
        >>> find_place()
        Place(rank=0, processes=1, local=0)
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        rank, processes = int(told["RANK"] or 0), int(told["WORLD_SIZE"] or 1)
        place = Place(rank, processes, int(told["LOCAL_RANK"] or rank))
        if 0 <= rank < processes and place.local >= 0:
            return place
    except ValueError:
        pass
    given = ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)
    raise ConfigError(
        f"The environment says {given}; expected whole numbers with 0 ≤ RANK < WORLD_SIZE, as "
        "torchrun sets them. Unset all three to score in one process."
    )


def wait_for(ready: Callable[[], bool], change: Callable[[], object], problem: str) -> None:
    """Wait until something is there.

    Args:
        ready: whether it is.
        change: a value that is another one as long as the others are at work.
        problem: what to say after :data:`PATIENCE` seconds without a change.

    Raises:
        UsageError: that.

    Example:
        >>> wait_for(lambda: True, lambda: 0, "never")
    """
    seen, since = change(), time.monotonic()
    while not ready():
        if (now := change()) != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise UsageError(problem)
        time.sleep(_PAUSE)
