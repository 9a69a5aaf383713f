"""Time, as ratios that survive a busy machine.

    ratio = median_t (candidate_t / baseline_t)       t: the turns, in which all run once

Timings on a shared machine drift, so candidates take turns in one process, and the ratio to the
baseline is formed within each turn.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Median seconds per call, and the median ratio to the baseline of the same turn."""

    seconds: float
    ratio: float


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    turns: int = 30,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time candidates in turns; the first one named is the baseline.

    Every other turn runs in reverse order, so that none always follows the same neighbour.

    Args:
        candidates: what to call, by name; on a GPU each call must end by waiting for it.
        turns: how many turns count.
        warmup: how many run before them.
        clock: ``time.process_time`` counts what this process computes, however busy the machine.

    Returns:
        Each one's timing; the baseline's ratio is 1.

    Example:
        >>> interleave({"plain": lambda: None}, turns=2)["plain"].ratio
        1.0
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for turn in range(-warmup, turns):
        for name in order if turn % 2 else reversed(order):
            start = clock()
            candidates[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    baseline = seconds[order[0]]
    return {
        name: Timing(
            statistics.median(own),
            statistics.median(a / b for a, b in zip(own, baseline, strict=True)),
        )
        for name, own in seconds.items()
    }
