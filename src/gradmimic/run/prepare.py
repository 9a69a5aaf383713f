"""What every training of a run starts from: rows on the device, initial weights, a reference.

With a frozen trunk the layers below the head are the reference's; what they make of each sample is
computed once, and the head alone is trained. With a trained one the whole model is.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from gradmimic.data import Samples
from gradmimic.direction import Params, choose
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.outputs import Outputs
from gradmimic.reference import load_reference
from gradmimic.run.config import SELF, RunConfig
from gradmimic.run.inputs import Inputs
from gradmimic.run.models import Classifier, build_model
from gradmimic.run.self_reference import Kind, Recipe, self_reference
from gradmimic.run.train import Rows, train

Progress: TypeAlias = Callable[[str, int], Callable[[], None]]
"""``progress(what, steps)`` announces a training and returns what to call after each step."""

_SELF: dict[str, Kind] = {
    "self": "cross_fit",
    "self-early": "early",
    "self-average": "average",
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first own step.

    Args:
        data: the samples to train on.
        initial: the model at the weights that every training starts from.
        reference: the better model; the initial one where a table of outputs is all there is.
        said: what the reference says of the samples, where that is not what its weights give: a
            table's outputs, or those of models that never saw the sample.
        params: the scored parameters.
        trunk: whether the layers below the head are trained or the reference's.
    """

    data: Rows
    initial: Classifier
    reference: Classifier
    said: Outputs | None
    params: Params
    trunk: str

    def encode(self, rows: Rows) -> Rows:
        """Return what the trained part sees of these rows."""
        if self.trunk == "trained":
            return rows
        return Rows(self.reference.encode(rows.inputs), rows.labels)

    def start(self) -> tuple[Classifier, nn.Module]:
        """Return a fresh model at its initial weights, and the part of it that is trained."""
        model = deepcopy(self.initial)
        model.scale.load_state_dict(self.reference.scale.state_dict())
        if self.trunk == "trained":
            return model, model
        model.trunk.load_state_dict(self.reference.trunk.state_dict())
        return model, model.head

    @property
    def weights(self) -> nn.Module:
        """The part of the reference that matches the trained part."""
        return self.reference if self.trunk == "trained" else self.reference.head


def prepare(config: RunConfig, inputs: Inputs, progress: Progress) -> Prepared:
    """Copy the rows to the device, build the model, and make or read the reference.

    Args:
        config: the run's configuration.
        inputs: the tables.
        progress: told of every training and step.

    Raises:
        ParameterError: ``params`` selects nothing.
        ReferenceMismatchError: the reference does not fit the model, or a table of outputs not the
            samples.
        LossError: a loss became NaN or infinite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, initial = to_rows(inputs.train, device), _initial(config, inputs.train).to(device)
    unaligned = config.trunk == "trained" and config.aligned == "none"
    params: Params = config.params or ("all" if unaligned else "head")
    choose(initial, params)  # an unmatched pattern is better found now than after a training
    reference, said = _reference(config, inputs, initial, data, progress)
    return Prepared(data, initial, reference, said, params, config.trunk)


def to_rows(samples: Samples, device: torch.device) -> Rows:
    """Copy to the device: the arrays may be files that are mapped read-only."""
    return Rows(
        torch.tensor(samples.inputs, device=device), torch.tensor(samples.labels).to(device)
    )


def fill(model: Classifier, tensors: dict[str, Tensor], problem: str, advice: str) -> None:
    """Load a reference's weights; those without a scaling were trained on inputs as they are.

    Args:
        model: what to fill.
        tensors: the weights by name.
        problem: how the error begins, where they do not fit.
        advice: how it ends: what was expected.

    Raises:
        ReferenceMismatchError: they are not the weights of such a model.
    """
    if not any(name.startswith("scale.") for name in tensors):
        scale = {
            "scale.mean": torch.zeros_like(model.scale.mean),
            "scale.spread": torch.ones_like(model.scale.spread),
        }
        tensors = {**tensors, **scale}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ReferenceMismatchError(
            f"{problem}: {' '.join(str(error).split())} {advice}"
        ) from error


def _reference(
    config: RunConfig, inputs: Inputs, initial: Classifier, data: Rows, progress: Progress
) -> tuple[Classifier, Outputs | None]:
    reference = deepcopy(initial)
    if config.gives_outputs_only:
        return reference, read_outputs(str(config.reference), inputs.train)
    trusted = None if inputs.trusted is None else to_rows(inputs.trusted, data.labels.device)
    recipe = Recipe(
        config.epochs, config.batch_size, config.lr, config.weight_decay, config.seed + 1
    )
    if config.reference in SELF:
        kind = _SELF[str(config.reference)]
        made = self_reference(kind, initial, data, recipe, trusted=trusted, progress=progress)
        said = Outputs(inputs.train.ids, made.outputs, source=str(config.reference))
        return made.model, said
    if trusted is None:
        fill(
            reference,
            dict(load_reference(str(config.reference)).tensors),
            f"The reference {config.reference} does not fit this run's model",
            "Expected the weights of another run's reference.pt with the same model, classes and "
            "inputs, or a linear probe's head.weight and head.bias.",
        )
        return reference, None
    epochs = config.reference_epochs or ceil(config.epochs * len(data) / len(trusted))
    on_step = progress("reference", epochs * ceil(len(trusted) / config.batch_size))
    train(reference, trusted, **recipe._replace(epochs=epochs)._asdict(), on_step=on_step)
    return reference, None


def read_outputs(path: str, samples: Samples) -> Outputs:
    """Read a table of outputs, and check that it is of these samples and classes.

    Args:
        path: a Parquet of outputs.
        samples: those that it is to be of.

    Raises:
        DataError: the table cannot be read.
        ReferenceMismatchError: it has other classes, or knows none of the samples.
    """
    outputs = Outputs.read(path)
    classes = len(samples.classes)
    if outputs.width != classes:
        raise ReferenceMismatchError(
            f"The outputs {path} have {outputs.width} columns, but the labels have "
            f"{classes} classes. Expected one for each class, in this order: "
            f"{listed(samples.classes)}."
        )
    known = int(outputs.of(samples.ids)[1].sum())
    if known == 0:
        theirs, ours = np.asarray(outputs.ids[:1]).tolist()[0], samples.ids[0].item()
        raise ReferenceMismatchError(
            f"The outputs {path} know none of the {len(samples)} samples: their "
            f"ids are such as {theirs!r}, those of the data such as {ours!r}. Give both the same "
            "--ids."
        )
    return outputs


def _initial(config: RunConfig, samples: Samples) -> Classifier:
    """Build the model that all trainings start from."""
    kind = config.model
    if kind == "auto":
        kind = "linear" if samples.inputs.ndim == 2 else "cnn"
    classes = len(samples.classes)
    return build_model(kind, samples.inputs, classes, hidden=config.hidden, seed=config.seed)
