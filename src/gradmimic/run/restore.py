"""From a file of weights to the built-in model that they are of: its architecture is read off them.

trunk.0.weight  [hidden, d]            an MLP
trunk.0.0.weight  [hidden, c, 3, 3]    a CNN
neither                                a linear probe
"""

from typing import Any

import numpy.typing as npt
import torch

from gradmimic.errors import ReferenceMismatchError
from gradmimic.reference import load_reference
from gradmimic.run.models import Classifier, build_model
from gradmimic.run.prepare import fill


def restore(
    source: str,
    inputs: npt.NDArray[Any],
    what: str,
    *,
    kind: str = "auto",
    hidden: int | None = None,
    device: torch.device | None = None,
) -> Classifier:
    """Build the model that the weights are of; without a scaling it takes inputs as they are.

    Args:
        source: a file, a folder or a hub id, as :func:`load_reference` takes them.
        inputs: what the model is to take, ``[n, …]``; one row is enough.
        what: the weights' part in it, ``"reference"`` or ``"checkpoint"``, for messages.
        kind: the architecture; ``"auto"`` reads it off the weights.
        hidden: its width, likewise.
        device: where to; left out, a GPU where there is one.

    Raises:
        ReferenceMismatchError: the file cannot be read, or its weights are not those of such a
            model on such inputs.
    """
    tensors = dict(load_reference(source).tensors)
    first = tensors.get("trunk.0.weight", tensors.get("trunk.0.0.weight"))  # of an MLP, of a CNN
    if "head.weight" not in tensors:
        raise ReferenceMismatchError(
            f"The {what} {source} holds no head.weight; expected the reference.pt of a run, or "
            "a linear probe's head.weight and head.bias. For any other model call "
            + (
                "gradmimic.scoring.score(models, reference, batches, losses, log) in Python."
                if what == "checkpoint"
                else "gradmimic.outputs.cache_outputs(model, batches, path) in Python."
            )
        )
    if kind == "auto":
        kind = "linear" if first is None else "mlp" if first.ndim == 2 else "cnn"
    width = hidden or (1 if first is None else len(first))
    classes = len(tensors["head.weight"])
    # The scaling comes with the weights: one row is enough to build it.
    model = build_model(kind, inputs[:1], classes, hidden=width, seed=0)
    fill(
        model,
        tensors,
        f"The {what} {source} is not a {kind} for inputs of shape {list(inputs.shape[1:])}",
        "Check --model and --hidden, and that it was trained on such inputs."
        if what == "reference"
        else "Check that it was trained on such inputs.",
    )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
