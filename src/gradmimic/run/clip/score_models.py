"""What a pool of pairs is scored with: checkpoints of one architecture, and a reference."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gradmimic.direction import Params, choose
from gradmimic.errors import AlignmentError, ConfigError, listed
from gradmimic.pair_model import PairModel
from gradmimic.reference import Reference
from gradmimic.run.checkpoints import digest, find_checkpoints
from gradmimic.run.clip.models import (
    load_weights,
    open_pair_model,
    pick_pair_alignment,
    read_pair_reference,
)
from gradmimic.run.clip.prepare import Better, fed_alike, not_transported, open_whole
from gradmimic.run.keys import CONFIG, read_keys
from gradmimic.run.score_config import PairScoreConfig

TOWERS = ("image", "text", "both")
_FORMS = ("hf:", "open_clip:")


class Models(NamedTuple):
    """Everything with weights, on the device."""

    pair: PairModel  # how to feed them; its module is the first checkpoint
    checkpoints: dict[str, nn.Module]
    reference: Reference
    whole: PairModel | None  # the reference with both towers, where it takes the same inputs
    device: torch.device


def open_models(config: PairScoreConfig, device: torch.device) -> Models:
    """Open the checkpoints and the reference.

    Args:
        config: of the scoring.
        device: where they are to be.

    Raises:
        ConfigError: a checkpoint is not there, its architecture is not told, or differs.
        ReferenceMismatchError: weights are damaged, or do not fit.
    """
    pairs = [own for given in config.checkpoints for own in _checkpoints(given, config)]
    if not pairs:
        raise ConfigError(
            "There is no checkpoint: name the weights to score with, one for each visit."
        )
    pair = pairs[0]
    for other in pairs[1:]:
        _check_alike(pair, other)
    checkpoints = {own.name: own.model.to(device) for own in pairs}
    reference = read_pair_reference(config.reference, pair, scored_params(config, pair))
    whole = open_whole(config.reference, pair)
    if whole is not None and not fed_alike(pair, whole):
        whole = None
    if whole is not None:
        whole.model.eval()
    return Models(pair, checkpoints, reference, whole, device)


def scored_params(config: PairScoreConfig, pair: PairModel) -> Params:
    """Return the scored parameters: those of a tower's last projection, or as they are named.

    Raises:
        ParameterError: nothing is named so.
        ConfigError: the engine would leave some of them out without a word.
    """
    if config.params in TOWERS:
        return pair.scored(config.params)  # type: ignore[arg-type]
    params: Params = "all" if config.params == "all" else [config.params]
    beside = {"logit_scale", "logit_bias"} & choose(pair.model, params).parameters.keys()
    if config.engine == "secant" and pair.name.startswith("hf:") and beside:
        raise ConfigError(
            f"engine secant compares two calls of the model, but {listed(sorted(beside))} of "
            f"{pair.name} are read beside them. Use engine forward, which is exact, or score other "
            "parameters."
        )
    return params


def settle_alignment(
    config: PairScoreConfig, models: Models, params: Params
) -> tuple[str, list[str]]:
    """Settle how the reference is brought near, one way for all checkpoints: visits are compared.

    none where it is near to each; else rotation where the layers below the projections are the
    reference's own, since then it says the same of their outputs; else transport where it can be.

    Args:
        config: of the scoring.
        models: the checkpoints and the reference.
        params: the scored parameters.

    Returns:
        The alignment's name, and what to say of it.

    Raises:
        AlignmentError: transport is asked for, and cannot be.
    """
    better = Better(models.reference, models.whole)
    pairs = [replace(models.pair, model=model) for model in models.checkpoints.values()]
    why_not = not_transported(models.pair, params, better)
    if config.align == "transport" and why_not is not None:
        raise AlignmentError(
            f"align='transport' is not possible: {why_not}. Leave align out, or give align "
            "rotation."
        )
    if config.align != "auto":
        return config.align, []
    found = [pick_pair_alignment(models.reference, pair, params) for pair in pairs]
    align: str
    align, note = next((each for each in found if each[0] == "rotation"), found[0])
    if align == "rotation" and not _same_below(models):
        align = "rotation" if why_not else "transport"
        what = "not those of the checkpoints"
        note = f"align: {align}, since the reference's layers below the projections are {what}"
        if why_not:
            note += f", which rotation cannot mend, but transport is not possible: {why_not}"
    return align, [f"{note[0].upper()}{note[1:]}."]


def _same_below(models: Models) -> bool:
    """Tell whether the reference's towers are those of every checkpoint but for the projections."""
    if models.whole is None:
        return True  # there is nothing to compare
    ends = {*models.pair.scored(), "logit_scale", "log_scale", "logit_bias"}

    def below(module: nn.Module) -> str:
        state = module.state_dict()
        return digest({name: state[name] for name in state if name not in ends})

    theirs = below(models.whole.model)
    return all(below(model) == theirs for model in models.checkpoints.values())


def _checkpoints(given: str, config: PairScoreConfig) -> list[PairModel]:
    """Open what one argument names: a model by its form, or files of weights."""
    if given.startswith(_FORMS):
        return [open_pair_model(given, image_size=config.image_size)]
    if (Path(given) / "config.json").exists():
        return [open_pair_model(f"hf:{given}", image_size=config.image_size)]
    found = []
    for file in find_checkpoints([given]):
        spec, size = _told(file, config)
        pair = replace(open_pair_model(spec, weights=False, image_size=size), name=str(file))
        load_weights(pair, str(file))
        found.append(pair)
    return found


def _told(file: Path, config: PairScoreConfig) -> tuple[str, int | None]:
    """Return the model that a file's weights are of, and its image size."""
    beside = file.parent / CONFIG
    keys = read_keys(beside) if beside.is_file() else {}
    of_run = keys.get("task") == "clip"
    spec = config.model or (str(keys.get("model", "")) if of_run else "")
    if not spec:
        raise ConfigError(
            f"{file} is a file of weights, which does not say what model they are of, and there is "
            f"no {CONFIG} of a run on pairs beside it. Give --model: small, hf:… or open_clip:…"
        )
    size = config.image_size or (keys.get("image_size") if of_run else None)
    return spec, size if isinstance(size, int) else None


def _check_alike(first: PairModel, other: PairModel) -> None:
    """Refuse checkpoints of two architectures: one training has one."""
    shapes, others = (
        {name: own.shape for name, own in pair.model.state_dict().items()}
        for pair in (first, other)
    )
    if shapes != others:
        differ = sorted(
            name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)
        )
        raise ConfigError(
            f"{other.name} is of another architecture than {first.name}: {listed(differ)} differ. "
            "Expected the checkpoints of one training; score others into a folder of their own."
        )
