"""Hugging Face's ``Trainer``, and whatever derives from it, as one that re-weights every batch.

    class MyTrainer(MimicMixin, Trainer): ...
    MyTrainer(model=model, args=args, train_dataset=data, reference="better").train()

    mimic_trainer(trainer, reference="better").train()      # one that is there already

loss = Σ_i b w_i s_i ℓ_i, and for τ = ∞ the plain Trainer's own loss Σ_i s_i ℓ_i

with the shares s_i of ``trainer_losses.py``. Only public methods are overridden. Evaluation and
prediction are the plain Trainer's.

Needs the extra ``trainer``.
"""

import inspect
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradmimic.errors import UsageError
from gradmimic.integrations.trainer_ids import COLUMN, loader_with_ids, prepares, take_ids, with_ids
from gradmimic.integrations.trainer_step import OPTIONS, Mimicking, refuse_packing
from gradmimic.log import ScoreLog
from gradmimic.reweight import GradMimic

T = TypeVar("T")


class MimicMixin:
    """Turn a ``Trainer`` class into one that re-weights its batches by mimic scores.

    Put it first: ``class MyTrainer(MimicMixin, Trainer)``. All the rest is the Trainer's own. What
    each sample's loss is, the model's class tells (sequence, image and token classification, causal
    and masked language models); for any other, pass a ``compute_loss_func`` that returns ``[b]``.

    Args:
        *args: of the Trainer.
        reference: a better model's weights, or anything :class:`GradMimic` takes for them.
        score_log: a :class:`ScoreLog`, or the folder of one, which receives every score.
        id_column: the column with the samples' ids; row numbers where there is none.
        **kwargs: ``params``, ``temperature``, ``align``, ``engine``, ``reweight``, ``warmup``,
            ``batch`` and ``backward`` as of :class:`GradMimic`, for which a batch is a micro-batch,
            of all processes; all others are the Trainer's. For a LoRA model ``params`` is
            ``"weights"`` where it is left out, see :func:`lora_reference`.

    Raises:
        UsageError: what cannot be weighed sample by sample, once training begins: packed
            sequences, DeepSpeed, ``DataParallel``, a model of whose loss nothing is known.
        LossError: a ``compute_loss_func`` that does not return ``[b]``.

    Source: arXiv 2501.06708, section 3.2.
    """

    _mimicking: Mimicking

    def __init__(
        self,
        *args: Any,
        reference: Any,
        score_log: ScoreLog | str | PathLike[str] | None = None,
        id_column: str = COLUMN,
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        refuse_packing(kwargs.get("args", args[1] if len(args) > 1 else None))
        if prepares(self):
            takes = inspect.signature(super().__init__).parameters.values()
            names = [own.name for own in takes if own.kind is own.POSITIONAL_OR_KEYWORD]
            kwargs |= dict(zip(names, args, strict=False))
            args = args[len(names) :]
            if "train_dataset" in kwargs:
                kwargs["train_dataset"] = with_ids(kwargs["train_dataset"], id_column)
        super().__init__(*args, **kwargs)
        self._mimicking = Mimicking(self, reference, score_log, id_column, options)

    @property
    def mimic(self) -> GradMimic | None:
        """The GradMimic at work, with the last batch's scores and weights; None before it."""
        return self._mimicking.mimic

    @property
    def score_log(self) -> ScoreLog | None:
        """The log of every score, if there is one."""
        return self._mimicking.log

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as the Trainer does; on resuming, scores and log go on where they stood too."""
        self._mimicking.begin()
        self._mimicking.state.begin(resume_from_checkpoint, self.args)  # type: ignore[attr-defined]
        plain: Any = super().train  # type: ignore[misc]
        return plain(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; beside the training loss, what ``trainer_numbers`` says too."""
        if "loss" in logs:
            logs.update(self._mimicking.numbers.read())
        plain: Any = super().log  # type: ignore[misc]
        plain(logs, *args, **kwargs)

    def add_scores(self, dataset: Any = None) -> Any:
        """Return a ``datasets.Dataset`` with every sample's mean score, kept share and visits.

        Args:
            dataset: whose ids are those of the training data; None stands for the latter.

        Raises:
            UsageError: there is no score log.
        """
        from gradmimic.integrations.hf_datasets import add_scores

        if self.score_log is None:
            raise UsageError("No scores were logged. Pass score_log=, a folder for them.")
        dataset = self.train_dataset if dataset is None else dataset  # type: ignore[attr-defined]
        named = self._mimicking.id_column != COLUMN
        return add_scores(dataset, self.score_log, self._mimicking.id_column if named else None)

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's own, whose batches hold the samples' ids too."""
        plain: Any = super().get_train_dataloader  # type: ignore[misc]
        return loader_with_ids(self, plain, self._mimicking.id_column)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the weighted loss of a training step; of an evaluation, the Trainer's own."""
        plain: Any = super().compute_loss  # type: ignore[misc]
        more = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not (model.training and torch.is_grad_enabled()):
            return plain(model, inputs, **more)
        ids = take_ids(inputs, self._mimicking.id_column)
        return self._mimicking.loss(plain, model, inputs, ids, **more)


def mimic_trainer(
    trainer: T,
    reference: Any,
    *,
    score_log: ScoreLog | str | PathLike[str] | None = None,
    id_column: str = COLUMN,
    **options: Any,
) -> T:
    """Turn a Trainer that is there already into one that re-weights its batches.

    Args:
        trainer: a ``Trainer``, of any class derived from it; it is changed, not copied.
        reference: a better model's weights, or anything :class:`GradMimic` takes for them.
        score_log: as of :class:`MimicMixin`, like all that follow.
        id_column: likewise.
        **options: likewise; ``params``, ``temperature``, ``align``, ``engine``, ``reweight``,
            ``warmup``, ``batch``, ``backward``.

    Returns:
        The same Trainer.

    Raises:
        UsageError: an option is unknown.

    Example:
        >>> import tempfile, transformers
        >>> small = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
        >>> config = transformers.LlamaConfig(**small, num_attention_heads=1, intermediate_size=8)
        >>> model, better = (transformers.LlamaForCausalLM(config) for _ in range(2))
        >>> args = transformers.TrainingArguments(tempfile.mkdtemp(), use_cpu=True)
        >>> rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}]
        >>> trainer = transformers.Trainer(model=model, args=args, train_dataset=rows)
        >>> type(mimic_trainer(trainer, better, temperature=0.5)).__name__
        'MimicTrainer'
    """
    mimicking = Mimicking(trainer, reference, score_log, id_column, options)
    kind = type(trainer)
    if not isinstance(trainer, MimicMixin):
        trainer.__class__ = type(f"Mimic{kind.__name__}", (MimicMixin, kind), {})
    trainer._mimicking = mimicking  # type: ignore[attr-defined]
    return trainer
