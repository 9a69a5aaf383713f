"""One micro-batch of a mimicking Trainer: score, weigh, and leave the Trainer's own factors to it.

    with mimic: outputs = model(…); ℓ = losses(outputs, labels)       [b]
    loss = Σ_i b w_i s_i ℓ_i

The Trainer calls the model and then its public attribute ``compute_loss_func``, which is this for
the length of the call alone; what it makes of the returned loss, over accumulation and processes,
is what it makes of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any

from torch import Tensor, nn

from gradmimic.errors import LossError, UsageError, listed
from gradmimic.extras import import_extra
from gradmimic.integrations.trainer_ids import prepares
from gradmimic.integrations.trainer_losses import (
    complete,
    heeds_items,
    inside_peft,
    kind_of,
    sample_losses,
)
from gradmimic.integrations.trainer_numbers import Numbers
from gradmimic.integrations.trl_metrics import OncePerBatch
from gradmimic.log import ScoreLog
from gradmimic.record import Ids
from gradmimic.reweight import GradMimic
from gradmimic.wrapped import unwrapped

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "seq_lengths", "shift_labels")
_UNPACK = (
    "several sequences lie in one row, and a row has one weight. Switch packing and padding-free "
    "batches off: packing=False, padding_free=False, or a collator that pads."
)


OPTIONS = (
    "params", "temperature", "align", "engine", "reweight", "warmup", "batch", "backward"
)  # fmt: skip


class Mimicking:
    """What a Trainer needs to weigh its batches, apart from what it has.

    Args:
        trainer: the Trainer.
        reference: a better model's weights.
        log: receives every score; a log, its folder, or None.
        id_column: of the batches.
        options: of ``GradMimic``.

    Raises:
        UsageError: an option is unknown.
    """

    def __init__(
        self,
        trainer: Any,
        reference: Any,
        log: ScoreLog | str | PathLike[str] | None,
        id_column: str,
        options: Mapping[str, Any],
    ) -> None:
        if unknown := set(options) - set(OPTIONS):
            raise UsageError(f"{listed(sorted(unknown))} is none of {', '.join(OPTIONS)}.")
        self._trainer, self._reference, self._options = trainer, reference, dict(options)
        self.log = log if log is None or isinstance(log, ScoreLog) else ScoreLog(log)
        self.id_column = id_column
        import_extra("transformers", "trainer")
        from gradmimic.integrations.trainer_state import MimicState

        self.numbers, self.state = Numbers(), MimicState(self.log)
        trainer.remove_callback(MimicState)
        trainer.add_callback(self.state)
        self.mimic: GradMimic | None = None
        self._wrapped: nn.Module | None = None
        self._heeds: bool | None = None  # unknown as yet

    def begin(self) -> None:
        """Refuse what cannot be weighed, before a training; forget the last one's model."""
        trainer = self._trainer
        self.mimic, self._heeds, self.numbers = None, None, Numbers()
        refuse_packing(trainer.args)
        if getattr(trainer.args, "loss_type", "nll") == "dft":
            raise UsageError("loss_type='dft' has no losses of single sequences here. Use 'nll'.")
        if trainer.is_deepspeed_enabled:
            raise UsageError("DeepSpeed keeps parameters where they cannot be read. Use DDP.")
        if trainer.args.n_gpu > 1:
            raise UsageError(
                "Without a launcher, the Trainer spreads each batch over all GPUs by DataParallel, "
                "which hides the losses of single samples. Start it by torchrun or accelerate "
                "launch, or show it one GPU by CUDA_VISIBLE_DEVICES=0."
            )
        if max(trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()) > 1:
            raise UsageError("Tensor, context and sequence parallelism are not supported. Use DDP.")
        if trainer.compute_loss_func is None:
            kind_of(unwrapped(trainer.model))

    def built(self, model: nn.Module) -> GradMimic:
        """Return the GradMimic of a model as Accelerate has wrapped it, made at its first step."""
        if self.mimic is None or self._wrapped is not model:
            reference, options, inner = self._reference, dict(self._options), unwrapped(model)
            if inside_peft(inner) is not inner:
                from gradmimic.integrations.peft import lora_reference

                reference, options["params"] = lora_reference(
                    inner, reference, options.get("params", "weights")
                )
            self.mimic = GradMimic(model, reference, log=self.log, **options)
            self._wrapped = model
            self.state.attach(self.mimic)
        return self.mimic

    def loss(
        self, plain: Callable[..., Any], model: nn.Module, inputs: Any, ids: Ids, **more: Any
    ) -> Any:
        """Call the Trainer's own ``compute_loss`` so that it returns the weighted loss.

        Args:
            plain: it.
            model: as Accelerate has wrapped it.
            inputs: the batch, without ids.
            ids: ``[b]``.
            **more: what else it takes.

        Returns:
            What it returns.
        """
        trainer, mimic, inner = self._trainer, self.built(model), unwrapped(model)
        _refuse_packed(inputs)
        complete(inner, inputs)
        own, weighed = trainer.compute_loss_func, False
        if own is None and self._heeds is None:
            self._heeds = self._asked(inner, inputs)

        def weigh(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
            nonlocal weighed
            weighed = True
            shares, scale = None, 1.0
            if own is None:
                found = sample_losses(inner, outputs, labels, label_smoothing=self._smoothing)
                losses = found.losses
                shares = found.shares(num_items_in_batch if self._heeds else None)
            else:
                losses = own(outputs, labels, num_items_in_batch=num_items_in_batch)
                _check_own(losses, ids)
                scale = self._scale(num_items_in_batch)
            scored.close()
            loss = mimic.weigh(losses, ids, epoch=self._epoch, shares=shares) * scale
            self.numbers.see(mimic.scores, mimic.weights, mimic.batch_size)
            return loss

        with ExitStack() as scored, _taken_by(trainer, weigh):
            scored.enter_context(mimic)
            called: Any = OncePerBatch(model) if prepares(trainer) else model
            result = plain(called, inputs, **more)
        if not weighed:
            raise UsageError(
                f"{type(trainer).__name__}.compute_loss takes a loss of its own, of the whole "
                "batch, without asking compute_loss_func. Leave that method out, and pass "
                "compute_loss_func=, which returns one loss per sample, [b]."
            )
        return result

    @property
    def _epoch(self) -> int | None:
        """The pass over the data; None where processes pad their batches with samples seen in it.

        Visits are then told apart by their steps.
        """
        trainer = self._trainer
        ranks, own = trainer.accelerator.num_processes, trainer.args
        if ranks > 1 and not own.dataloader_drop_last:
            data, together = trainer.train_dataset, ranks * own.train_batch_size
            if not hasattr(data, "__len__") or len(data) % together:
                return None
        return int(trainer.state.epoch or 0)

    @property
    def _smoothing(self) -> float:
        smoother = self._trainer.label_smoother
        return 0.0 if smoother is None else float(smoother.epsilon)

    def _asked(self, model: nn.Module, inputs: Mapping[str, Any]) -> bool | None:
        """Tell whether the plain loss is over all terms of the accumulated step."""
        trainer = self._trainer
        if trainer.label_smoother is not None or hasattr(trainer.args, "loss_type"):
            return True  # the smoother's loss, or TRL's, is, whatever the model's own
        if "labels" not in inputs:
            return None
        return heeds_items(model, inputs, takes=trainer.model_accepts_loss_kwargs)

    def _scale(self, items: Any) -> float:
        """Undo what the Trainer makes of the loss of a ``compute_loss_func``, which is of a step.

        The losses that it returns here are of single samples, and their mean is that of a batch.
        """
        trainer = self._trainer
        scale = 1.0
        if trainer.loss_is_scaled_for_ga is not False:
            scale /= trainer.current_gradient_accumulation_steps
        if trainer.args.average_tokens_across_devices and items is not None:
            scale /= trainer.accelerator.num_processes
        return scale


@contextmanager
def _taken_by(trainer: Any, function: Callable[..., Tensor]) -> Iterator[None]:
    """Let the Trainer take its loss by a function, and by its own afterwards."""
    own, trainer.compute_loss_func = trainer.compute_loss_func, function
    try:
        yield
    finally:
        trainer.compute_loss_func = own


def _check_own(losses: Any, ids: Ids) -> None:
    found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if found != [len(ids)]:
        raise LossError(
            f"compute_loss_func returned {found}, and there are {len(ids)} samples. Expected one "
            "loss per sample, [b]: with reduction='none', and over tokens their mean."
        )


def refuse_packing(args: Any) -> None:
    """Refuse the arguments of a Trainer that would put several sequences into one row.

    Raises:
        UsageError: they do.
    """
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        raise UsageError(f"Packed sequences cannot be weighed one by one: {_UNPACK}")


def _refuse_packed(inputs: Mapping[str, Any]) -> None:
    found = [name for name in _PACKED if inputs.get(name) is not None]
    places = inputs.get("position_ids")
    if isinstance(places, Tensor) and places.ndim == 2 and places.shape[1] > 2:
        before, here, after = places[:, :-2], places[:, 1:-1], places[:, 2:]
        if bool(((before > 0) & (here == 0) & (after == 1)).any()):
            found.append("position_ids that begin anew")
    if found:
        raise UsageError(f"The batch is packed, it holds {', '.join(found)}: {_UNPACK}")
