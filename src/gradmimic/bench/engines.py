"""Measure engines: error, time and memory, as ratios to a plain training step.

    error  = ‖m − m_oracle‖ / ‖m_oracle‖             m_oracle in float64
    time   = median_t (engine_t / plain_t)           all take turns in one process
    memory = peak bytes with the engine / peak bytes of the plain step

All parameters are scored, toward another initialisation's. The plain step is forward, backward and
AdamW. "scores" is scoring alone; "step" is the re-weighted step.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradmimic.bench.clock import interleave
from gradmimic.bench.memory import peak_bytes
from gradmimic.bench.models import CASES, Batch, Case
from gradmimic.direction import choose
from gradmimic.engines import ENGINES
from gradmimic.errors import GradMimicError, ParameterError
from gradmimic.measure import mimic_scores
from gradmimic.reference import Reference, load_reference
from gradmimic.reweight import GradMimic

CHECKED = 8  # samples whose scores are compared with the oracle's: it is slow


@dataclass(frozen=True)
class Row:
    """One engine on one model.

    Args:
        model: the model's name.
        engine: the engine's.
        batch: b.
        error: in float32, relative to the scores' norm.
        error_bf16: likewise, under bfloat16 autocast.
        scores_time: scoring alone, in plain steps.
        step_time: the re-weighted step, in plain steps.
        scores_memory: peak bytes of scoring alone, in those of a plain step.
        step_memory: peak bytes of the re-weighted step, likewise.
        plain_seconds: the plain step.
        plain_bytes: its peak.
        refused: why the engine cannot do it; then the numbers above are None.
    """

    model: str
    engine: str
    batch: int
    error: float | None = None
    error_bf16: float | None = None
    scores_time: float | None = None
    step_time: float | None = None
    scores_memory: float | None = None
    step_memory: float | None = None
    plain_seconds: float | None = None
    plain_bytes: int | None = None
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Job:
    """A model with all that its step or its scores keep alive, on one fixed batch.

    Args:
        case: the model.
        b: the batch size.
        device: where.

    Example:
        >>> job = Job(CASES["mlp"], 2, torch.device("cpu"))
        >>> job.plain_step()
        >>> job.scores("secant").shape
        torch.Size([2])
    """

    def __init__(self, case: Case, b: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model, self.case = case.build().to(device), case
        self.reference: Reference = load_reference(case.build().to(device))
        self.batch: Batch = tuple(t.to(device) for t in case.draw(b))  # type: ignore[assignment]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self._wait: Callable[[], object] = (
            torch.cuda.synchronize if device.type == "cuda" else lambda: None
        )

    def plain_step(self) -> None:
        """Train on the plain mean."""
        self._step(self.case.losses(self.model, self.batch).mean())

    def step(self, engine: str, params: str = "all") -> Callable[[], None]:
        """Return a step that re-weights with this engine."""
        mimic = GradMimic(self.model, self._scored(params), params=params, engine=engine)

        def weighed() -> None:
            with mimic:
                losses = self.case.losses(self.model, self.batch)
            self._step(mimic.weigh(losses))

        return weighed

    def scores(self, engine: str) -> Tensor:
        """Score the batch, without training."""
        scores = mimic_scores(
            self.model, self.reference, self.batch, self.case.losses,
            params="all", engine=engine,
        )  # fmt: skip
        self._wait()
        return scores

    def _scored(self, params: str) -> dict[str, Tensor]:
        """Return the part of the reference that a step with these parameters keeps."""
        return self.reference.match(self.model, choose(self.model, params))

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()

    def held(self, *, training: bool, scoring: bool, params: str = "all") -> int:
        """Return the bytes that live between steps: weights, AdamW's state, the reference's."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if training:
            for state in self.optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        if scoring:
            tensors += list(self._scored(params).values())
        return sum(t.nbytes for t in {id(t): t for t in tensors}.values())

    def peak(self, step: Callable[[], object], *, params: str = "all", **kept: bool) -> int:
        """Return the peak bytes of a step and of all that it keeps alive, as ``held`` does."""
        self.optimizer.zero_grad()
        return peak_bytes(step) + self.held(params=params, **kept)


def error(job: Job, engine: str, *, bf16: bool = False) -> float:
    """Return how far an engine's scores are from the oracle's in float64, as a part of their norm.

    Example:
        >>> error(Job(CASES["mlp"], 2, torch.device("cpu")), "oracle") < 1e-4
        True
    """
    exact = copy.copy(job)
    exact.model = copy.deepcopy(job.model).double()
    x, y = (t[:CHECKED] for t in job.batch)
    exact.batch = (x.double() if x.is_floating_point() else x, y)
    expected = exact.scores("oracle")
    few = copy.copy(job)
    few.batch = (x, y)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        scores = few.scores(engine)
    return float(((scores - expected).norm() / expected.norm()).item())


def measure(
    models: Iterable[str] = CASES,
    engines: Iterable[str] = ENGINES,
    *,
    b: int = 32,
    turns: int = 10,
    device: torch.device | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Measure engines on models.

    Args:
        models: names in ``CASES``.
        engines: names in ``ENGINES``.
        b: the batch size, at least 2.
        turns: how many turns each timing is the median of.
        device: where; the GPU where there is one.
        told: called with each model's name as its turn comes.

    Yields:
        A row for each model and engine; those of one model together, when they are measured.

    Raises:
        ParameterError: there is no such model, or no turn or batch to measure.
    """
    models, engines = list(models), list(engines)
    for name in models:
        if name not in CASES:
            raise ParameterError(f"model {name!r} is unknown; expected one of {', '.join(CASES)}.")
    if b < 2 or turns < 1:
        raise ParameterError(f"Expected a batch of 2 or more and 1 turn or more, got {b}, {turns}.")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in models:
        told(name)
        yield from _measure_model(name, engines, b, turns, device)


def _measure_model(
    name: str, engines: list[str], b: int, turns: int, device: torch.device
) -> Iterator[Row]:
    case = CASES[name]
    plain = Job(case, b, device)
    candidates: dict[str, Callable[[], object]] = {"plain": plain.plain_step}
    peaks: dict[str, int] = {}
    errors: dict[str, tuple[float, float]] = {}
    refused: dict[str, str] = {}
    plain.plain_step()  # AdamW's state is there from now on
    peaks["plain"] = plain.peak(plain.plain_step, training=True, scoring=False)
    for engine in engines:
        job = Job(case, b, device)
        try:
            errors[engine] = error(job, engine), error(job, engine, bf16=True)
            scores, step = partial(job.scores, engine), job.step(engine)
            scores()
            peaks[f"{engine} scores"] = job.peak(scores, training=False, scoring=True)
            step()
            peaks[f"{engine} step"] = job.peak(step, training=True, scoring=True)
        except GradMimicError as why:
            refused[engine] = str(why)
            continue
        candidates |= {f"{engine} scores": scores, f"{engine} step": step}
    timing = interleave(candidates, turns=turns, warmup=1)
    for engine in engines:
        if engine in refused:
            yield Row(name, engine, b, refused=refused[engine])
            continue
        yield Row(
            name,
            engine,
            b,
            *errors[engine],
            scores_time=timing[f"{engine} scores"].ratio,
            step_time=timing[f"{engine} step"].ratio,
            scores_memory=peaks[f"{engine} scores"] / peaks["plain"],
            step_memory=peaks[f"{engine} step"] / peaks["plain"],
            plain_seconds=timing["plain"].seconds,
            plain_bytes=peaks["plain"],
        )
