"""The three trainings of a run: the reference, plain, and re-weighted.

All start from the same initial weights. With a frozen trunk the layers below the head are the
reference's; what they make of each sample is computed once, and the head alone is trained. With a
trained one the reference is transported: its outputs, computed once, are all that is used.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradmimic.atomic import atomic_write
from gradmimic.canaries import Canaries, enough
from gradmimic.data import Samples
from gradmimic.direction import choose
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.log import ScoreLog
from gradmimic.outputs import Outputs
from gradmimic.reference import load_reference
from gradmimic.reweight import GradMimic
from gradmimic.run.config import SELF, RunConfig
from gradmimic.run.inputs import Inputs
from gradmimic.run.models import Classifier, build_model
from gradmimic.run.self_reference import Kind, Recipe, self_reference
from gradmimic.run.train import Curve, Rows, accuracy, logits, train

Progress = Callable[[str, int], Callable[[], None]]
"""``progress(what, steps)`` announces a training and returns what to call after each step."""


_SELF: dict[str, Kind] = {
    "self": "cross_fit",
    "self-early": "early",
    "self-average": "average",
}


@dataclass(frozen=True, eq=False)
class Trained:
    """What the three trainings left to measure."""

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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = _rows(inputs.train, device)
    test = None if inputs.test is None else _rows(inputs.test, device)
    initial = _initial(config, inputs.train).to(device)

    def fit(what: str, model: nn.Module, rows: Rows, epochs: int, seed: int, **more: Any) -> Curve:
        on_step = progress(what, epochs * ceil(len(rows) / config.batch_size))
        return train(
            model,
            rows,
            epochs=epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=seed,
            on_step=on_step,
            **more,
        )

    unaligned = config.trunk == "trained" and config.aligned == "none"
    params = config.params or ("all" if unaligned else "head")
    choose(initial, params)  # an unmatched pattern is better found now than after two trainings
    reference, said = deepcopy(initial), None
    trusted = None if inputs.trusted is None else _rows(inputs.trusted, device)
    if config.gives_outputs_only:
        said = _read_outputs(config, inputs)
    elif config.reference in SELF:
        made = self_reference(
            _SELF[str(config.reference)],
            initial,
            data,
            Recipe(
                config.epochs, config.batch_size, config.lr, config.weight_decay, config.seed + 1
            ),
            trusted=trusted,
            progress=progress,
        )
        reference = made.model
        said = Outputs(inputs.train.ids, made.outputs, source=str(config.reference))
    elif trusted is not None:
        epochs = config.reference_epochs or ceil(config.epochs * len(data) / len(trusted))
        fit("reference", reference, trusted, epochs, config.seed + 1)
    else:
        _fill(reference, str(config.reference))
    reference_accuracy = None
    if not config.gives_outputs_only:
        _save(reference, out / "reference.pt")
        reference_accuracy = None if test is None else accuracy(reference, test)
        if said is None:
            said = Outputs(inputs.train.ids, logits(reference, data.inputs), source="reference.pt")
    assert said is not None  # noqa: S101
    rows, known = said.of(inputs.train.ids)
    suggested = np.where(known, rows.argmax(1), inputs.train.labels)

    if config.trunk == "frozen":
        data = Rows(reference.encode(data.inputs), data.labels)
        test = test and Rows(reference.encode(test.inputs), test.labels)

    def start() -> tuple[Classifier, nn.Module]:
        """Return a model at its initial weights, and the part of it that is trained."""
        model = deepcopy(initial)
        model.scale.load_state_dict(reference.scale.state_dict())
        if config.trunk == "trained":
            return model, model
        model.trunk.load_state_dict(reference.trunk.state_dict())
        return model, model.head

    model, part = start()
    plain = fit("plain", part, data, config.epochs, config.seed, test=test)
    _save(model, out / "plain.pt")

    canaries = None
    if config.canaries != "off":
        trained = config.canaries == "trained"
        rate = config.canary_rate or enough(len(data))
        canaries = Canaries(rate, seed=config.seed, trained=trained)
    model, part = start()
    with ScoreLog(out / "log", config=config.as_dict(), seed=config.seed) as log:
        by_outputs = config.aligned in ("transport", "outputs")
        mimic = GradMimic(
            part,
            said if by_outputs else reference if part is model else reference.head,
            params=params,
            align=config.aligned,
            temperature=config.tau,
            weighting=config.weights,
            log=log,
            reweight=config.reweight,
            warmup=config.warmup,
        )
        reweighted = fit(
            "re-weighted",
            part,
            data,
            config.epochs,
            config.seed,
            test=test,
            mimic=mimic,
            canaries=canaries,
            ids=inputs.train.ids.tolist(),
        )
    _save(model, out / "reweighted.pt")
    return Trained(plain, reweighted, reference_accuracy, suggested, mimic.aligned, mimic.overtaken)


def _read_outputs(config: RunConfig, inputs: Inputs) -> Outputs:
    """Read a table of outputs, and check that it is of these samples and classes."""
    outputs = Outputs.read(str(config.reference))
    classes = len(inputs.train.classes)
    if outputs.width != classes:
        raise ReferenceMismatchError(
            f"The outputs {config.reference} have {outputs.width} columns, but the labels have "
            f"{classes} classes. Expected one for each class, in this order: "
            f"{listed(inputs.train.classes)}."
        )
    known = int(outputs.of(inputs.train.ids)[1].sum())
    if known == 0:
        theirs, ours = np.asarray(outputs.ids[:1]).tolist()[0], inputs.train.ids[0].item()
        raise ReferenceMismatchError(
            f"The outputs {config.reference} know none of the {len(inputs.train)} samples: their "
            f"ids are such as {theirs!r}, those of the data such as {ours!r}. Give both the same "
            "--ids."
        )
    return outputs


def _initial(config: RunConfig, samples: Samples) -> Classifier:
    """Build the model that all three trainings start from."""
    kind = config.model
    if kind == "auto":
        kind = "linear" if samples.inputs.ndim == 2 else "cnn"
    classes = len(samples.classes)
    return build_model(kind, samples.inputs, classes, hidden=config.hidden, seed=config.seed)


def _rows(samples: Samples, device: torch.device) -> Rows:
    """Copy to the device: the arrays may be files that are mapped read-only."""
    return Rows(
        torch.tensor(samples.inputs, device=device), torch.tensor(samples.labels).to(device)
    )


def _fill(model: Classifier, source: str) -> None:
    """Load a reference's file; one without a scaling was trained on the inputs as they are."""
    tensors: dict[str, Tensor] = dict(load_reference(source).tensors)
    if not any(name.startswith("scale.") for name in tensors):
        tensors["scale.mean"] = torch.zeros_like(model.scale.mean)
        tensors["scale.spread"] = torch.ones_like(model.scale.spread)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ReferenceMismatchError(
            f"The reference {source} does not fit this run's model: {' '.join(str(error).split())} "
            "Expected the weights of another run's reference.pt with the same model, classes and "
            "inputs, or a linear probe's head.weight and head.bias."
        ) from error


def _save(model: nn.Module, path: Path) -> None:
    with atomic_write(path) as file:
        torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, file)
