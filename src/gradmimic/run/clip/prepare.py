"""What every training of a run on pairs starts from: initial weights, and a better model's.

reference     trained on the trusted pairs, or read
align         transport where the layers below the projections are trained from scratch,
              else none where turning it would gain little, else rotation
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch

from gradmimic.direction import Params, choose
from gradmimic.errors import AlignmentError, ConfigError, ReferenceMismatchError
from gradmimic.pair_model import PairModel
from gradmimic.projection import scored_projections
from gradmimic.reference import Reference, load_reference
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.models import (
    load_weights,
    open_pair_model,
    pick_pair_alignment,
    read_pair_reference,
)

_OTHER = 7_919  # added to the seed, for other initial weights than the model's
_CAPTIONS = ["Two dogs on a beach, 1987.", "naïve façade – 漢字 🙂", "the " * 100]
Align = Literal["none", "rotation", "transport"]
Tower = Literal["image", "text"]


@dataclass(frozen=True, eq=False)
class Better:
    """The reference.

    Args:
        weights: those that are scored.
        whole: the whole model, where it is known, to be measured beside the others.
    """

    weights: Reference
    whole: PairModel | None


def open_initial(config: ClipConfig, device: torch.device) -> PairModel:
    """Open the model at the weights that every training starts from.

    Raises:
        ConfigError: there is no such model.
        ReferenceMismatchError: the weights to start from do not fit.
        MissingExtraError: the library it comes from is not installed.
    """
    pair = open_pair_model(
        config.model,
        weights=config.start == "pretrained",
        seed=config.seed,
        image_size=config.image_size,
    )
    if config.start not in ("scratch", "pretrained"):
        load_weights(pair, config.start)
    pair.model.to(device)
    if config.lock is not None:
        lock(pair, config.lock)
    return pair


def scored(config: ClipConfig, pair: PairModel) -> Params:
    """Return the scored parameters, having checked that there are such.

    Raises:
        ParameterError: the pattern selects nothing.
    """
    params: Params = config.scored
    if params in ("image", "text", "both"):
        params = pair.scored(params)  # type: ignore[arg-type]
    elif params == "all":
        params = lambda _name, parameter: parameter.requires_grad
    choose(pair.model, params)
    return params


def read_better(config: ClipConfig, pair: PairModel, params: Params) -> Better:
    """Read the reference that the configuration names.

    Raises:
        ReferenceMismatchError: it does not fit the model.
    """
    source = str(config.reference)
    weights = read_pair_reference(source, pair, params)
    return Better(weights, open_whole(source, pair))


def other_start(config: ClipConfig, pair: PairModel) -> PairModel:
    """Return a copy of the model, at the weights that the reference's training starts from."""
    if config.reference_start == "same":
        return replace(pair, model=deepcopy(pair.model))
    other = open_pair_model(
        config.model,
        weights=False,
        seed=config.seed + _OTHER,
        image_size=config.image_size,
    )
    other.model.to(next(pair.model.parameters()).device)
    return other


def as_better(trained: PairModel) -> Better:
    """Take a model that was trained on the trusted pairs for the reference."""
    weights = load_reference(trained.model)
    projections = tuple(trained.scored())
    return Better(replace(weights, projections=projections, fixed=trained.fixed), trained)


def picked_alignment(config: ClipConfig, pair: PairModel, params: Params, better: Better) -> Align:
    """Decide how the reference is brought near.

    Args:
        config: the run's configuration; what it names is taken.
        pair: the model at its initial weights.
        params: the scored parameters.
        better: the reference.

    Raises:
        ReferenceMismatchError: it does not fit the model.
        AlignmentError: what is asked for cannot be.
    """
    if config.align == "transport" and (why := not_transported(pair, params, better)):
        raise AlignmentError(
            f"align='transport' is not possible: {why}. Leave align out, or give align: rotation."
        )
    if config.align != "auto":
        return config.align
    if config.start == "scratch" and not_transported(pair, params, better) is None:
        return "transport"
    return pick_pair_alignment(better.weights, pair, params)[0]


def not_transported(pair: PairModel, params: Params, better: Better) -> str | None:
    """Say why a reference cannot be transported; None where it can."""
    if pair.fixed:
        return pair.fixed
    if better.whole is None:
        return "the reference has no towers of its own that could be asked about the pairs"
    if not fed_alike(pair, better.whole):
        return "the reference takes other pictures or tokens than the model"
    subset = choose(pair.model, params)
    if pair.forward is None or set(subset.parameters) != set(pair.scored()):
        return "it takes both last projections, and nothing else, as the scored parameters"
    try:
        scored_projections(subset, "transport")
    except AlignmentError as error:
        return str(error)
    return None


def lock(pair: PairModel, tower: Tower) -> None:
    """Let a tower keep its weights: all that its embeddings depend on.

    Args:
        pair: the model.
        tower: which.
    """
    from PIL import Image

    model = pair.model.eval()
    device = next(model.parameters()).device
    if tower == "image":
        one = pair.transform(Image.new("RGB", (64, 64)))[None].to(device)
        said = pair.encode_images(model, one)
    else:
        tokens = {name: own.to(device) for name, own in pair.tokenize(["a picture"]).items()}
        said = pair.encode_texts(model, tokens)
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(said.sum(), parameters, allow_unused=True)
    for parameter, part in zip(parameters, parts, strict=True):
        if part is not None:
            parameter.requires_grad_(False)


def fed_alike(one: PairModel, other: PairModel) -> bool:
    """Tell whether two models make the same of pictures and captions, by what they make of some."""
    if one.transform == other.transform and one.tokenize == other.tokenize:
        return True
    from PIL import Image

    picture = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
    prepared = one.transform(picture), other.transform(picture)
    tokens = one.tokenize(_CAPTIONS), other.tokenize(_CAPTIONS)
    return (
        torch.equal(*prepared)
        and tokens[0].keys() == tokens[1].keys()
        and all(torch.equal(own, tokens[1][name]) for name, own in tokens[0].items())
    )


def open_whole(source: str, pair: PairModel) -> PairModel | None:
    """Open a reference as a whole model; None where there are projections alone."""
    device = next(pair.model.parameters()).device
    try:
        if source.startswith(("hf:", "open_clip:")):
            whole = open_pair_model(source)
        else:
            whole = replace(pair, model=deepcopy(pair.model))
            load_weights(whole, source)
    except (ReferenceMismatchError, ConfigError):
        return None
    whole.model.to(device)
    return whole
