"""A mimicking Trainer's checkpoints: what was learned beside the weights, and where the log stood.

    checkpoint-<step>/gradmimic.pt     GradMimic.state_dict(), and how many events the log had
    log                                flushed at every checkpoint, cut back to it on resuming

Written by rank 0, once every rank has flushed its rows; tensors and plain data only.

Needs the extra ``trainer``.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from gradmimic.atomic import atomic_write
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.log import ScoreLog
from gradmimic.reweight import GradMimic

FILE = "gradmimic.pt"


class MimicState(TrainerCallback):
    """Save with every checkpoint what a mimicking Trainer goes on with.

    Args:
        log: the score log, or None.
    """

    def __init__(self, log: ScoreLog | None) -> None:
        self._log = log
        self._mimic: GradMimic | None = None
        self._resumed: dict[str, Any] | None = None

    def begin(self, resume_from: str | bool | None, args: Any) -> None:
        """Before a training: read the checkpoint that it resumes from, and cut the log back to it.

        Args:
            resume_from: what ``Trainer.train`` was given as ``resume_from_checkpoint``.
            args: the Trainer's ``TrainingArguments``.

        Raises:
            ConfigError: the checkpoint does not say where the log stood.
            LogError: the log cannot be cut.
        """
        self._mimic = self._resumed = None
        last = import_extra("transformers.trainer_utils", "trainer").get_last_checkpoint
        folder = last(args.output_dir) if resume_from is True else resume_from
        if not folder:
            return
        file = Path(folder) / FILE
        if file.exists():
            self._resumed = torch.load(file, map_location="cpu", weights_only=True)
            if self._log is not None:
                step, events = self._resumed["mimic"]["step"], self._resumed["events"]
                self._log.cut(step, events=events, ranks=args.world_size)
        elif self._log is not None and self._log.parts:
            raise ConfigError(
                f"{folder} holds no {FILE}: it was saved without MimicMixin, or the program ended "
                f"while it was being saved. Which rows of {self._log.path} came after it is not "
                "known: resume from an earlier checkpoint, or log to another folder."
            )

    def attach(self, mimic: GradMimic) -> None:
        """Take the GradMimic of this training, and let it go on from the checkpoint, if any."""
        self._mimic = mimic
        if self._resumed is not None:
            mimic.load_state_dict(self._resumed["mimic"])
            self._resumed = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the rows that are left, of all ranks."""
        if self._log is not None:
            self._log.flush()
            import_extra("accelerate", "trainer").PartialState().wait_for_everyone()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the checkpoint that the Trainer has just written."""
        if self._mimic is None:
            return
        if self._log is not None:
            self._log.flush()
        import_extra("accelerate", "trainer").PartialState().wait_for_everyone()
        prefix = import_extra("transformers.trainer_utils", "trainer").PREFIX_CHECKPOINT_DIR
        folder = Path(args.output_dir) / f"{prefix}-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        events = 0 if self._log is None else len(self._log.events)
        with atomic_write(folder / FILE) as file:
            torch.save({"mimic": self._mimic.state_dict(), "events": events}, file)
