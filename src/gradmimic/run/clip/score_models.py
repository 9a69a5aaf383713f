"""What a pool of pairs is scored with: checkpoints of one architecture, and a reference."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gradmimic.direction import Params
from gradmimic.errors import ConfigError, ReferenceMismatchError, listed
from gradmimic.pair_model import PairModel
from gradmimic.reference import Reference
from gradmimic.run.checkpoints import find_checkpoints
from gradmimic.run.clip.models import (
    load_weights,
    open_pair_model,
    pick_pair_alignment,
    read_pair_reference,
)
from gradmimic.run.keys import read_keys
from gradmimic.run.score_config import PairScoreConfig

TOWERS = ("image", "text", "both")
_FORMS = ("hf:", "open_clip:")
_CONFIG = "config.yaml"  # which a run saves beside its weights


class Models(NamedTuple):
    """Everything with weights, on the device."""

    pair: PairModel  # how to feed them; its module is the first checkpoint
    checkpoints: dict[str, nn.Module]
    reference: Reference
    whole: nn.Module | None  # the reference with both towers, where it is of this architecture
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
    whole = _whole(config.reference, pair) if config.clip_score else None
    whole = None if whole is None else whole.to(device).eval()
    return Models(pair, checkpoints, reference, whole, device)


def scored_params(config: PairScoreConfig, pair: PairModel) -> Params:
    """Return the scored parameters: those of a tower's last projection, or as they are named."""
    if config.params in TOWERS:
        return pair.scored(config.params)  # type: ignore[arg-type]
    return "all" if config.params == "all" else [config.params]


def settle_alignment(
    config: PairScoreConfig, models: Models, params: Params
) -> tuple[str, list[str]]:
    """Settle how the reference is brought near: as it is where it is near to every checkpoint.

    Args:
        config: of the scoring.
        models: the checkpoints and the reference.
        params: the scored parameters.

    Returns:
        ``"none"`` or ``"rotation"``, and what to say of it.
    """
    if config.align != "auto":
        return config.align, []
    found = [
        pick_pair_alignment(models.reference, replace(models.pair, model=model), params)
        for model in models.checkpoints.values()
    ]
    # one rule for all of them: visits of one log are compared
    align, note = next((each for each in found if each[0] == "rotation"), found[0])
    return align, [f"{note[0].upper()}{note[1:]}."]


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
    beside = file.parent / _CONFIG
    keys = read_keys(beside) if beside.is_file() else {}
    of_run = keys.get("task") == "clip"
    spec = config.model or (str(keys.get("model", "")) if of_run else "")
    if not spec:
        raise ConfigError(
            f"{file} is a file of weights, which does not say what model they are of, and there is "
            f"no {_CONFIG} of a run on pairs beside it. Give --model: small, hf:… or open_clip:…"
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


def _whole(source: str, pair: PairModel) -> nn.Module | None:
    """Return the reference as a model, where the same pictures and tokens can go into it."""
    there = replace(pair, model=deepcopy(pair.model))
    try:
        load_weights(there, source)
    except ReferenceMismatchError:
        return None
    return there.model
