"""A training that was cut off is taken up where its last round ended.

    state/<stage>.pt     position, curve, weights, optimizer, random numbers, what the mimic learned
    log/                 what was logged by then; the steps after it are cut off

Tensors, numbers and text only: nothing that could run code is read.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradmimic.atomic import atomic_write
from gradmimic.errors import ConfigError, DataError
from gradmimic.log import ScoreLog
from gradmimic.reweight import GradMimic
from gradmimic.run.clip.train import Curve, Position, Training

FOLDER = "state"
_INPUTS = "inputs.json"


class States:
    """The states of a run's trainings, in its folder until it is done.

    Args:
        out: the run's folder.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, out / FOLDER

    def check_inputs(self, told: Mapping[str, Any]) -> None:
        """Remember what the run reads, or refuse to go on with something else.

        Raises:
            DataError: it is not what was read before.
        """
        file = self._folder / _INPUTS
        if file.exists():
            if json.loads(file.read_text(encoding="utf-8")) != dict(told):
                raise DataError(
                    f"the data are not those that the run in {self._out} began with. Give "
                    "--overwrite to begin anew, or another --out."
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(json.dumps(dict(told)).encode())

    def finished(self, stage: str) -> tuple[Curve, dict[str, Any]] | None:
        """Return what a training came to, and facts about it, where it was done before."""
        state = self._read(stage)
        if state is None or not state["done"]:
            return None
        return Curve(**state["curve"]), state["facts"]

    def finish(self, stage: str, training: Training, **facts: Any) -> None:
        """Save a training's weights for good, and what it came to."""
        weights = {k: own.detach().cpu() for k, own in training.model.state_dict().items()}
        save(self._out / f"{stage}.pt", weights)
        self._write(stage, {"done": True, "curve": vars(training.curve), "facts": facts})

    def weights(self, stage: str, model: nn.Module) -> None:
        """Fill a model with what a finished training left."""
        model.load_state_dict(load(self._out / f"{stage}.pt"))

    def keep(
        self,
        stage: str,
        training: Training,
        mimic: GradMimic | None = None,
        log: ScoreLog | None = None,
    ) -> None:
        """Save where a training stands, and what its log holds by now."""
        state = {
            "done": False,
            "curve": vars(training.curve),
            "at": vars(training.at),
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if mimic is not None:
            state["mimic"] = mimic.state_dict()
        if log is not None:
            log.flush()
            state["events"] = len(log.events)
        self._write(stage, state)

    def resume(self, stage: str, training: Training) -> dict[str, Any]:
        """Put a training back to where it stood; return the state, empty where there is none."""
        state = self._read(stage)
        if state is None:
            return {}
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.curve, training.at = Curve(**state["curve"]), Position(**state["at"])
        torch.set_rng_state(state["random"])
        return state

    def remove(self) -> None:
        """Forget all states: the run is done."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, stage: str) -> dict[str, Any] | None:
        file = self._folder / f"{stage}.pt"
        return load(file) if file.exists() else None

    def _write(self, stage: str, state: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        save(self._folder / f"{stage}.pt", state)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain data, whole or not at all.

    Raises:
        ConfigError: the disk does not take them.
    """
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error}. Make room, and start the same command again: it goes "
            "on where the last round ended."
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; nothing else is unpickled."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
