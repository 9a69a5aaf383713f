"""The two trainings of a run, plain and re-weighted, on what ``prepare`` made ready.

Both start from the same initial weights and see the samples in the same order. Where the reference
is brought near by its outputs, these are computed once and are all that is used.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gradmimic.atomic import atomic_write
from gradmimic.canaries import Canaries, enough
from gradmimic.log import ScoreLog
from gradmimic.outputs import Outputs
from gradmimic.reweight import GradMimic
from gradmimic.run.beside import asked_of
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import Inputs
from gradmimic.run.prepare import Prepared, Progress, prepare, to_rows
from gradmimic.run.train import Curve, Rows, accuracy, few_of_each, logits, train
from gradmimic.scorers import BatchScorer

_FEW = 10  # trusted samples of each class that influence looks at in every step


@dataclass(frozen=True, eq=False)
class Trained:
    """What the trainings left to measure."""

    plain: Curve
    reweighted: Curve
    reference_accuracy: float | None  # on the test set
    suggested: npt.NDArray[np.int64]  # [n], the reference's class for each training sample
    aligned: str  # how the reference was brought near
    overtaken: int | None  # the step from which on the scores know nothing


def train_all(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Trained:
    """Train the reference, then plain, then re-weighted; log every score and save all weights.

    Args:
        config: the run's configuration.
        inputs: the tables.
        out: the folder for ``reference.pt``, ``plain.pt``, ``reweighted.pt`` and the log.
        progress: told of every training and step.

    Returns:
        The curves, and what the reference says.

    Raises:
        ReferenceMismatchError: the reference's file does not fit the model.
        LossError: a loss became NaN or infinite.
    """
    ready = prepare(config, inputs, progress)
    device, reference, said = ready.data.labels.device, ready.reference, ready.said
    test = None if inputs.test is None else to_rows(inputs.test, device)

    reference_accuracy = None
    if not config.gives_outputs_only:
        _save(reference, out / "reference.pt")
        reference_accuracy = None if test is None else accuracy(reference, test)
    if said is None:
        outputs = logits(reference, ready.data.inputs)
        said = Outputs(inputs.train.ids, outputs, source="reference.pt")
    rows, known = said.of(inputs.train.ids)
    suggested = np.where(known, rows.argmax(1), inputs.train.labels)
    data, test = ready.encode(ready.data), test and ready.encode(test)

    def fit(what: str, part: nn.Module, **more: Any) -> Curve:
        return train(
            part,
            data,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=config.seed,
            test=test,
            on_step=progress(what, config.epochs * ceil(len(data) / config.batch_size)),
            **more,
        )

    model, part = ready.start()
    plain = fit("plain", part)
    _save(model, out / "plain.pt")

    model, part = ready.start()
    with ScoreLog(out / "log", config=config.as_dict(), seed=config.seed) as log:
        mimic = GradMimic(
            part,
            said if config.aligned in ("transport", "outputs") else ready.weights,
            params=ready.params,
            align=config.aligned,
            temperature=config.tau,
            weighting=config.weights,
            log=log,
            reweight=config.reweight,
            warmup=config.warmup,
        )
        optimizer = torch.optim.AdamW(
            part.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        reweighted = fit(
            "re-weighted",
            part,
            mimic=mimic,
            scores=_others(config, inputs, ready, part, said, optimizer, log),
            canaries=_canaries(config, data),
            ids=inputs.train.ids.tolist(),
            optimizer=optimizer,
        )
    _save(model, out / "reweighted.pt")
    return Trained(plain, reweighted, reference_accuracy, suggested, mimic.aligned, mimic.overtaken)


def _others(
    config: RunConfig,
    inputs: Inputs,
    ready: Prepared,
    part: nn.Module,
    said: Outputs,
    optimizer: torch.optim.Optimizer,
    log: ScoreLog,
) -> BatchScorer | None:
    """Return what logs other scores beside mimic's; None where none are asked for."""
    if not config.others:
        return None
    needs = asked_of(config.others)
    few = None
    if inputs.trusted is not None and "trusted" in needs:
        trusted = ready.encode(to_rows(inputs.trusted, ready.data.labels.device))
        few = few_of_each(trusted, config.seed, _FEW)
    return BatchScorer(
        part,
        config.others,
        reference=ready.weights if "reference" in needs else None,
        outputs=said,
        trusted=few,
        optimizer=optimizer,
        log=log,
    )


def _canaries(config: RunConfig, data: Rows) -> Canaries | None:
    if config.canaries == "off":
        return None
    rate = config.canary_rate or enough(len(data))
    return Canaries(rate, seed=config.seed, trained=config.canaries == "trained")


def _save(model: nn.Module, path: Path) -> None:
    with atomic_write(path) as file:
        torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, file)
