"""What every benchmark here shares: interleaved timing, the machine's description, one JSON each.

Timings on a shared machine drift, so candidates take turns in one process, and the ratio to the
baseline is formed within each turn t: ratio = median_t (candidate_t / baseline_t).
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradmimic.log import library_versions

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Median seconds per call, and the median ratio to the baseline of the same turn."""

    seconds: float
    ratio: float


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, turns: int = 30, warmup: int = 3
) -> dict[str, Timing]:
    """Time candidates in turns; the first one named is the baseline.

    Every other turn runs in reverse order, so that none always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for turn in range(-warmup, turns):
        for name in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            candidates[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    baseline = seconds[order[0]]
    return {
        name: Timing(
            statistics.median(own),
            statistics.median(a / b for a, b in zip(own, baseline, strict=True)),
        )
        for name, own in seconds.items()
    }


def machine() -> dict[str, Any]:
    """Describe versions and hardware: a figure without them cannot be compared."""
    return {
        "versions": library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def save(name: str, results: object, command: str) -> Path:
    """Write results with the machine and the command to ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"command": command, "machine": machine(), "results": results}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _processor() -> str:
    """Return the processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
