"""All parameters scored: what every engine costs, beside the other ways to the same scores.

    time   = median_t (way_t / plain_t)        all ways take turns in one process
    memory = peak bytes of the way / peak bytes of a plain step, tensors alone
    error  = ‖m − m_oracle‖ / ‖m_oracle‖       at batch 8
    batch at which a way passes 16 GiB, on the line through its peaks at two batch sizes

"scores" is scoring alone, "step" the re-weighted step of all parameters, "head step" of the head's
scores alone. The plain step is forward, backward and AdamW. Images have 64 pixels, not 224, and
texts 32 words, so that two cores can do it (--image-size, --length). Ways that hold per-sample
gradients score 32 samples at a time; their memory is that of the whole batch.

Run: python benchmarks/engines.py [--models ViT-S/16 CLIP] [--batches 32 128] [--turns 3]
     [--bf16] [--compile]; without Opacus (pip install -c constraints.txt opacus) its rows say so.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch reads it once; its profiler prints else

import torch
from engine_models import Case, cases
from engine_peers import (
    HOLDING,
    PIECE,
    first_of_shared,
    holding_scores,
    holding_step,
    one_backward_each,
)
from harness import interleave, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gradmimic.bench.engines import Job
from gradmimic.bench.models import Batch
from gradmimic.direction import choose, direction
from gradmimic.engines import ENGINES
from gradmimic.score import batch_weights

Key = tuple[str, str]  # a way's name, and what it does
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FITTED = (8, 16)  # the batch sizes whose peaks the line goes through, of ways that hold gradients
FULL = 16 * 2**30
ONE_EACH = "one backward each"


@dataclass
class Row:
    model: str
    batch: int
    way: str
    what: str
    time_ratio: float | None = None
    memory_ratio: float | None = None
    error: float | None = None
    full_at: int | None = None  # the largest batch whose peak stays below FULL
    note: str = ""


class Line(NamedTuple):
    """Peak bytes at batch size b: ``base + slope · b``."""

    base: float
    slope: float

    def at(self, b: int) -> float:
        return self.base + self.slope * b

    def full(self) -> int | None:
        """Return the batch size that fills ``FULL``; None where the peak hardly grows."""
        return int((FULL - self.base) / self.slope) if self.slope > 1024 else None


def line(peaks: Mapping[int, float]) -> Line:
    """Put a line through the peaks at the last two batch sizes."""
    (few, first), (more, second) = list(peaks.items())[-2:]
    slope = (second - first) / (more - few)
    return Line(first - slope * few, slope)


class Way(NamedTuple):
    """``run`` is timed and weighed; ``training`` tells whether AdamW's state lives beside it."""

    run: Callable[[], object]
    training: bool
    params: str = "all"
    scoring: bool = True


class Work(Job):
    """One model with every way to score it, on one batch."""

    def __init__(self, case: Case, b: int, options: argparse.Namespace) -> None:
        if options.bf16:
            case = replace(case, losses=partial(_in_bf16, case.losses))
        super().__init__(case, b, DEVICE)
        self.own: Case = case
        self.unheld = PIECE
        if options.compile:
            self.model.compile()
        self.plain_step()  # AdamW's state is there from now on

    def ways(self) -> Iterator[tuple[str, str, Callable[[], Way] | str]]:
        """Yield each way's name, what it does, and how to make it, or why it cannot be."""
        yield "plain", "step", lambda: Way(self.plain_step, training=True, scoring=False)
        head = self.own.head
        yield "auto", "head step", lambda: Way(self.step("auto", head), True, head)
        for name in ENGINES:
            if name != "oracle":
                yield name, "scores", partial(self._scores_of, name)
                yield name, "step", partial(self._step_of, name)
        for name in HOLDING:
            if self.own.shared:
                yield name, "scores", self.own.shared
                yield name, "step", self.own.shared
                continue
            yield name, "scores", partial(Way, partial(self._holding_scores, name), False)
            yield name, "step", partial(Way, partial(self._holding_step, name), True)
        if not self.own.shared:
            yield ONE_EACH, "scores", partial(Way, self._one_each, False)
            yield ONE_EACH, "step", partial(Way, self._one_each_step, True)

    def some_of_shared(self, n: int) -> None:
        first_of_shared(self.model, self.batch, self.own, self.v(), n)
        self._wait()

    def v(self) -> dict[str, Tensor]:
        subset = choose(self.model, "all")
        return dict(direction(subset, self.reference.match(self.model, subset)).tensors)

    def _scores_of(self, engine: str) -> Way:
        return Way(partial(self.scores, engine), training=False)

    def _step_of(self, engine: str) -> Way:
        return Way(self.step(engine), training=True)

    def _holding_scores(self, name: str) -> Tensor:
        way = HOLDING[name]
        scores = holding_scores(way, self.model, self.batch, self.own, self.v(), self.unheld)
        self._wait()
        return scores

    def _holding_step(self, name: str) -> None:
        self.optimizer.zero_grad()
        holding_step(HOLDING[name], self.model, self.batch, self.own, self.v())
        self.optimizer.step()
        self._wait()

    def _one_each(self) -> Tensor:
        scores = one_backward_each(self.model, self.batch, self.own, self.v())
        self._wait()
        return scores

    def _one_each_step(self) -> None:
        weights = batch_weights(self._one_each(), 1.0)
        self._step((weights * self.own.losses(self.model, self.batch)).sum())

    def weigh(self, way: Way) -> int:
        return self.peak(way.run, training=way.training, scoring=way.scoring, params=way.params)


def _in_bf16(
    losses: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch
) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return losses(model, batch)


def why(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def errors(work: Work) -> dict[Key, float]:
    """Return how far each way's scores are from the oracle's, where it can run."""
    found: dict[Key, float] = {}
    with torch.compiler.set_stance("force_eager"):
        expected = work.scores("oracle")
    for name, what, make in work.ways():
        if what == "scores" and not isinstance(make, str):
            with suppress(Exception):  # told when its bytes are counted
                scores = make().run()
                assert isinstance(scores, Tensor)  # noqa: S101
                found[name, what] = float((scores - expected).norm() / expected.norm())
    return found


class Known(NamedTuple):
    """What small batches tell of the ways: the error, the line of peak bytes, why one cannot."""

    errors: dict[Key, float]
    lines: dict[Key, Line]
    refused: dict[Key, str]


def try_out(case: Case, options: argparse.Namespace) -> Known:
    """Run every way on small batches."""
    known, peaks = Known({}, {}, {}), defaultdict[Key, dict[int, float]](dict)
    for b in FITTED:
        work = Work(case, b, options)
        work.unheld = b
        if b == FITTED[0]:  # before any step moves the weights
            known.errors.update(errors(work))
        for name, what, make in work.ways():
            if isinstance(make, str):
                known.refused[name, what] = make
                continue
            try:
                way = make()
                way.run()
                if name in HOLDING:
                    peaks[name, what][b] = work.weigh(way)
            except Exception as error:  # a peer's own, of any kind: the row says it
                known.refused[name, what] = why(error)
    for key, own in peaks.items():
        if key not in known.refused:
            known.lines[key] = line(own)
    return known


def measure(
    name: str,
    case: Case,
    b: int,
    known: Known,
    peaks: dict[Key, dict[int, float]],
    options: argparse.Namespace,
) -> list[Row]:
    """Time every way at one batch size; ``peaks`` gathers those of all sizes."""
    work = Work(case, b, options)
    rows: dict[Key, Row] = {}
    timed: dict[str, Callable[[], object]] = {}
    for way_name, what, make in work.ways():
        key = (way_name, what)
        row = rows[key] = Row(name, b, *key, error=known.errors.get(key))
        if isinstance(make, str) or key in known.refused:
            row.note = known.refused[key]
            continue
        way = make()
        held = known.lines.get(key)
        peaks[key][b] = work.weigh(way) if held is None else held.at(b)
        row.memory_ratio = peaks[key][b] / peaks["plain", "step"][b]
        if held is not None or len(peaks[key]) > 1:
            row.full_at = (held or line(peaks[key])).full()
        if held is not None and what == "step" and held.at(b) > options.limit * 2**30:
            row.note = f"not run: it would hold {held.at(b) / 2**30:.1f} GiB (--limit)"
            continue
        timed[" ".join(key)] = way.run
    few, more = "1 of shared", "3 of shared"
    if case.shared:
        timed |= {few: partial(work.some_of_shared, 1), more: partial(work.some_of_shared, 3)}
    timing = interleave(timed, turns=max(1, options.turns * 32 // max(b, 32)), warmup=0)
    for key, row in rows.items():
        if " ".join(key) in timed:
            row.time_ratio = timing[" ".join(key)].ratio
    rows["plain", "step"].note = f"{timing['plain step'].seconds:.3f} s"
    if case.shared:
        slope = (timing[more].ratio - timing[few].ratio) / 2
        note = f"each through the whole batch: {case.shared}; from 1 and 3 of {b}"
        ratio = timing[few].ratio + slope * (b - 1)
        rows[ONE_EACH, "scores"] = Row(name, b, ONE_EACH, "scores", time_ratio=ratio, note=note)
    return list(rows.values())


def show(rows: list[Row]) -> None:
    table = Table("way", "what", "time ×", "memory ×", "error", "16 GiB at", "note")
    table.title = f"{rows[0].model}, batch {rows[0].batch}"
    for row in rows:
        table.add_row(
            row.way, row.what,
            "" if row.time_ratio is None else f"{row.time_ratio:.2f}",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
            "" if row.error is None else f"{row.error:.0e}",
            "" if row.full_at is None else f"{row.full_at:,}",
            row.note,
        )  # fmt: skip
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", help="some of them; default: all")
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--turns", type=int, default=3, help="at batch 32; fewer at larger ones")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--length", type=int, default=32, help="words per text")
    parser.add_argument("--limit", type=float, default=4, help="GiB that a peer's step may hold")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    every = cases(options.image_size, options.length)
    unknown = set(options.models or ()) - every.keys()
    if unknown:
        parser.error(f"unknown models {sorted(unknown)}; expected some of {list(every)}")
    own = "-".join(
        ["engines", *(n for n in ("bf16", "compile") if getattr(options, n)),
         *(["cuda"] if DEVICE.type == "cuda" else [])]
    )  # fmt: skip
    asked = {key: value for key, value in vars(options).items() if key != "no_save"}
    results: list[dict[str, Any]] = []
    for name in options.models or every:
        known = try_out(every[name], options)
        peaks = defaultdict[Key, dict[int, float]](dict)
        for b in sorted(options.batches):
            rows = measure(name, every[name], b, known, peaks, options)
            show(rows)
            results += [asdict(row) for row in rows]
            if not options.no_save:  # after each: a stop loses nothing
                save(own, {"options": asked, "rows": results}, "python benchmarks/engines.py")


if __name__ == "__main__":
    main()
