"""One cell of label_issues.py, measured in a process of its own: quality, seconds, memory.

    ratio = median over turns of CPU seconds of cleanlab / CPU seconds of ours

CPU seconds are those of all threads, of which there is one. Memory is the peak of the resident set
while the method runs, less what the process held before: interpreter, libraries and features. A
small case comes first, so that imports count for nothing.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from label_issues_data import SOURCES, Case, Rows, Source, case, clouds, dealt
from label_issues_methods import Found, Method, methods

from gradmimic.reproduce.cells import Cell, Values
from gradmimic.run.metrics import detection
from gradmimic.separation import auroc

T = TypeVar("T")
BIG = "50,000 × 1,280"  # clouds, for speed
IN_TURNS = "ours and cleanlab in turns"
LIBRARIES = (
    "cleanlab.datalab.datalab", "cleanlab.filter", "ibis", "sklearn.linear_model",
    "sklearn.metrics", "sklearn.mixture", "sklearn.model_selection", "sklearn.neighbors",
)  # fmt: skip


def workplace() -> ProcessPoolExecutor:
    """Start the process whose copies measure cells: it imports and reads, and runs no method."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the new process is born with it
    return ProcessPoolExecutor(1, get_context("spawn"))


def measure(cell: Cell, data: Path, features: Path | None) -> Values:
    """Measure a cell in a copy of this process, which holds the last case."""
    for library in LIBRARIES:
        importlib.import_module(library)
    case_of(cell["data"], cell["noise"], cell["rate"], cell["seed"], data, features)
    with ProcessPoolExecutor(1, get_context("fork")) as copy:
        return copy.submit(measure_here, cell, data, features).result()


@lru_cache(1)
def case_of(
    name: str, noise: str, rate: float, seed: int, data: Path, features: Path | None
) -> Case:
    """Return the case of a cell."""
    if name == BIG:
        return clouds(50_000, 1280, rate)
    return case(name, noise, rate, seed, data, features)


def measure_here(cell: Cell, data: Path, features: Path | None) -> Values:
    """Return the rows of a method on a case, by name."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    name, seed = cell["data"], cell["seed"]
    own = case_of(name, cell["noise"], cell["rate"], seed, data, features)
    with threadpool_limits(1):
        if cell["method"] == IN_TURNS:
            return in_turns(own, cell["turns"])
        method = methods(SOURCES[name].trusted)[cell["method"]]
        run(method, small(), 0)
        return run(method, own, seed)


def in_turns(own: Case, turns: int) -> Values:
    """Let ours and cleanlab's cross-validation with its default filter take turns."""
    known = methods(())
    validated = known["cleanlab, cross-validated"]
    both = {
        "ours": known["ours"],
        "cleanlab": validated._replace(rows={"": validated.rows["default"]}),
    }
    for method in both.values():
        run(method, small(), 0)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(turns):
        for name in both if turn % 2 else reversed(both):
            seconds[name].append(run(both[name], own, turn)[""]["cpu_seconds"])
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["cleanlab"], strict=True)]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {"cpu_seconds": middle, "ratio": statistics.median(ratios), "turns": turns}


def small() -> Case:
    """Return a case that takes no time."""
    toy = clouds(600, 16, 0.0)
    return dealt(Rows(toy.features, toy.true, None), Source(300, (200,), ()), "symmetric", 0.2, 0)


def run(method: Method, own: Case, seed: int) -> dict[str, dict[str, Any]]:
    """Measure the rows of a method; each counts what was prepared for it."""
    prepared, *cost = costing(partial(method.prepare, own, seed))
    rows = {}
    for name, row in method.rows.items():
        found, *more = costing(partial(row, own, prepared))
        rows[name] = judged(found, own) | {
            "cpu_seconds": cost[0] + more[0],
            "seconds": cost[1] + more[1],
            "peak_mib": max(cost[2], cost[3] + more[2]),
        }
    return rows


def costing(work: Callable[[], T]) -> tuple[T, float, float, float, float]:
    """Run; also return CPU seconds, seconds, and MiB above the start: the peak's, the end's."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return result, cpu, wall, resident("VmHWM") - before, resident("VmRSS") - before


def resident(key: str) -> float:
    """Return the resident set of this process, now or at its peak, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def judged(found: Found, own: Case) -> dict[str, Any]:
    """Compare what is flagged and how rows are ranked with what is wrong."""
    from sklearn.metrics import average_precision_score

    wrong = own.given != own.true
    mask, score = np.asarray(found.mask), np.asarray(found.score, dtype=np.float64)
    finite = np.where(np.isposinf(score), np.finfo(np.float64).max, score)
    ranked = float(average_precision_score(wrong, -finite)) if wrong.any() else None
    return {
        "wrong": float(wrong.mean()),
        "flagged": float(mask.mean()),
        **detection(mask, wrong),
        "auroc": auroc(score, wrong),
        "average_precision": ranked,
        "estimate": found.estimate,
    }
