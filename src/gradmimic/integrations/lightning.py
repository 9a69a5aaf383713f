"""Lightning: a callback that re-weighs what ``training_step`` returns.

training_step(batch) -> ℓ [b]        becomes        Σ_i w_i ℓ_i,  w = softmax(m / τ)

Optimisation stays automatic: Lightning accumulates, clips, scales, saves and resumes as ever.
Trainers of ``pytorch_lightning`` take the callback too.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradmimic.errors import LogError, UsageError
from gradmimic.extras import import_extra
from gradmimic.integrations.torchmetrics import MimicSummary
from gradmimic.log import ScoreLog
from gradmimic.record import Ids
from gradmimic.reweight import GradMimic
from gradmimic.trial import Given
from gradmimic.wrapped import unwrapped

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = import_extra("lightning.pytorch", "lightning").Callback

KEY = "sample_id"


class MimicCallback(Callback):
    """Re-weigh every batch of a Lightning training by its mimic scores, and log them.

    ``training_step`` returns the unreduced losses ``[b]``, or a dictionary with them as ``"loss"``.
    While ``fit`` runs, the callback turns them into the one loss that Lightning steps on.

    The ids are ``"sample_id"`` of that dictionary, or of a batch that is a dictionary, or the last
    of three or more entries of a batch: where ``gradmimic.data.WithIds`` puts them. The dictionary
    may hold ``"canaries"`` too, what ``Canaries`` drew.

    Logs ``mimic/score``, ``mimic/kept`` and ``mimic/effective_batch_size`` of the steps, and with
    ``_epoch`` behind the name of each epoch over all ranks; see :class:`MimicSummary`.

    Args:
        reference: as of :class:`GradMimic`; a Lightning checkpoint of a better model, say.
        log: the folder of the score log. Where ``fit`` resumes from a checkpoint, what was logged
            after it is cut off.
        options: more arguments of :class:`GradMimic`, such as ``params`` or ``temperature``.

    Attributes:
        mimic: the ``GradMimic`` of the last ``fit``; None before.

    Raises:
        UsageError, LogError: when ``fit`` starts: optimisation is manual, the optimizer calls
            ``training_step`` more than once a step, or the log is of another training.

    Example:
        >>> callback = MimicCallback("better.ckpt", log="runs/scores", temperature=0.5)
        >>> callback.mimic is None
        True
    """

    def __init__(
        self, reference: Given, *, log: str | PathLike[str] | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.mimic: GradMimic | None = None
        self._reference, self._options = reference, options
        self._folder = None if log is None else Path(log)
        self._log: ScoreLog | None = None
        self._state: dict[str, Any] | None = None
        self._summary: MimicSummary | None = None
        self._put_back: Callable[[], None] = _nothing

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Build the mimic, now that the strategy has placed and wrapped the model."""
        _check(trainer, pl_module)
        if self._folder is not None:
            self._log = _opened(self._folder, self._state, trainer.world_size)
        self.mimic = GradMimic(pl_module, self._reference, log=self._log, **self._options)
        if self._state is not None:
            self.mimic.load_state_dict(self._state["mimic"])
        self._summary = MimicSummary().to(pl_module.device)
        self._take_over(trainer, pl_module)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log what the epoch came to, over all ranks."""
        if self._summary is not None and self._summary.update_called:
            values = self._summary.compute()
            if not trainer.barebones:
                pl_module.log_dict({f"{name}_epoch": value for name, value in values.items()})
            self._summary.reset()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write the log, and leave the module as it was."""
        self._state = self.state_dict()
        self._end()

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        """Do so, too, where the training is cut off."""
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, with everything scored so far on disk."""
        if self.mimic is None:
            return {}
        events = None
        if self._log is not None:
            self._log.flush()
            events = len(self._log.events)
        return {"mimic": self.mimic.state_dict(), "events": events}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the training starts."""
        self._state = state_dict or None

    def _take_over(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Put the weighing around ``training_step``, on this instance and until the end."""
        own = vars(pl_module).get("training_step")  # a compiled module has one
        plain = pl_module.training_step

        @wraps(plain)
        def training_step(*arguments: Any, **named: Any) -> Any:
            return self._step(trainer, pl_module, plain, arguments, named)

        def put_back() -> None:
            del pl_module.training_step
            if own is not None:
                pl_module.training_step = own  # type: ignore[method-assign]

        pl_module.training_step = training_step  # type: ignore[method-assign]
        self._put_back = put_back

    def _step(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        plain: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """Run the user's step inside the mimic, and weigh what it returns."""
        mimic = self.mimic
        assert mimic is not None  # noqa: S101 - built before the step was taken over
        with mimic:
            output = plain(*arguments, **named)
        if output is None:  # Lightning skips such a batch
            return None
        told = output if isinstance(output, Mapping) else {"loss": output}
        if not isinstance(told.get("loss"), Tensor):
            raise UsageError(
                "training_step must return its losses [b], or a dictionary with them as 'loss'; "
                f"got {type(output).__name__}"
                + (f" with {sorted(map(str, told))}." if told is output else ".")
            )
        ids = told[KEY] if KEY in told else _ids(arguments[0] if arguments else named.get("batch"))
        if ids is None and self._log is not None:
            raise UsageError(
                "the scores are logged, but no sample ids came. Wrap the data set: "
                "gradmimic.data.WithIds(dataset), whose ids come last in a batch; or return "
                f"{{'loss': losses, {KEY!r}: ids}} from training_step."
            )
        seen = mimic.scores
        # A sampler that cuts the data for several ranks repeats a few samples to make ends meet:
        # visits are then told apart by their steps.
        epoch = trainer.current_epoch if trainer.world_size == 1 else None
        with torch.autocast(pl_module.device.type, enabled=False):
            loss = mimic.weigh(told["loss"], ids, epoch=epoch, canaries=told.get("canaries"))
        if mimic.scores is not seen:
            self._tell(trainer, pl_module, mimic)
        if told is not output:
            return loss
        rest = {k: v for k, v in told.items() if k not in ("loss", "canaries", KEY)}
        return {"loss": loss, **rest}

    def _tell(self, trainer: "Trainer", pl_module: "LightningModule", mimic: GradMimic) -> None:
        """Log a step's numbers."""
        assert self._summary is not None and mimic.scores is not None  # noqa: S101, PT018
        values = self._summary(mimic.scores, mimic.weights, mimic.batch_size)
        if not trainer.barebones:
            pl_module.log_dict(values, batch_size=len(mimic.scores))

    def _end(self) -> None:
        put_back, self._put_back = self._put_back, _nothing
        put_back()
        if self._log is not None:
            self._log.close()
            self._log = None


def _check(trainer: "Trainer", pl_module: "LightningModule") -> None:
    """Refuse trainings in which weighing would go wrong."""
    unwrapped(trainer.strategy.model or pl_module)  # says what it cannot see into
    if not pl_module.automatic_optimization:
        raise UsageError(
            "optimisation is manual here, so the loss that training_step returns is not stepped "
            "on. Use GradMimic itself in training_step: `with mimic:` around the forward pass, "
            "mimic.weigh(losses, ids) before manual_backward; or automatic_optimization=True."
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise UsageError(
            "LBFGS runs training_step several times a step, so a batch would be weighed anew each "
            "time. Expected an optimizer that runs it once, such as AdamW."
        )


def _opened(folder: Path, state: Mapping[str, Any] | None, ranks: int) -> ScoreLog:
    """Open the log where a checkpoint left it, or refuse one of another training."""
    log = ScoreLog(folder)
    if state is not None:
        log.cut(state["mimic"]["step"], events=state["events"], ranks=ranks)
    elif own := [part for part in log.parts if part.name.startswith(f"part-{log.rank:05d}-")]:
        log.close()
        raise LogError(
            f"the log at {folder} holds {len(own)} parts of another training, but this one starts "
            "at its first step. Choose another folder, or go on with fit(ckpt_path=…)."
        )
    return log


def _ids(batch: Any) -> Ids | None:
    """Find the ids that ``WithIds`` added to a batch."""
    if isinstance(batch, Mapping):
        return batch.get(KEY)
    found: Ids | None = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    return found


def _nothing() -> None: ...
