"""What TRL logs of a training step, out of the logits that the step has anyway.

    entropy_t = −Σ_v p_tv log p_tv        is_top1_t = [argmax_v p_tv = y_t]        0 where masked

``SFTTrainer``, where the loss is not its own, runs the model once more without gradient for these
two. A step is a forward and a backward pass, so that would be a third on top.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.token_losses import IGNORED


class OncePerBatch:
    """A model as TRL calls it, whose second call of a batch, for metrics, does not run it again.

    Args:
        model: as Accelerate has wrapped it; all else is asked of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._logits: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, or return the metrics of its last call."""
        if kwargs.get("fused_lm_head") and "labels" in kwargs and self._logits is not None:
            return Metrics(self._logits, kwargs["labels"], lambda: self._model(*args, **kwargs))
        outputs = self._model(*args, **kwargs)
        self._logits = getattr(outputs, "logits", None)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Metrics:
    """What ``model(…, labels=labels, fused_lm_head=True)`` of TRL returns, as far as it is logged.

    Args:
        logits: ``[b, t, V]``.
        labels: ``[b, t]``; the logits at a place are of the next place's label.
        otherwise: runs the model after all, for anything else that is asked for.

    Example:
        >>> found = Metrics(torch.zeros(1, 3, 4), torch.tensor([[-100, 0, -100]]), lambda: None)
        >>> found.label_mask.tolist(), found.is_top1.tolist(), found.entropy.exp().round().tolist()
        ([[True, False]], [[True, False]], [[4.0, 1.0]])
    """

    def __init__(self, logits: Tensor, labels: Tensor, otherwise: Callable[[], Any]) -> None:
        self._logits, self._labels = logits.detach()[:, :-1], labels[:, 1:].to(logits.device)
        self._otherwise = otherwise

    @cached_property
    def label_mask(self) -> Tensor:
        """Which labels count, ``[b, t − 1]``."""
        return self._labels != IGNORED

    @cached_property
    def is_top1(self) -> Tensor:
        """Whether the label is the likeliest next token, ``[b, t − 1]``."""
        return (self._logits.argmax(-1) == self._labels) & self.label_mask

    @cached_property
    def entropy(self) -> Tensor:
        """Of the next token, in nats, ``[b, t − 1]``."""
        found = torch.zeros(self._labels.shape, device=self._logits.device)
        for row, mask, out in zip(self._logits, self.label_mask, found, strict=True):
            log_p = row[mask].float().log_softmax(-1)  # [n, V], of one sample at a time
            out[mask] = -(log_p.exp() * log_p).sum(-1)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if "_whole" not in self.__dict__:
            with torch.no_grad():
                self._whole = self._otherwise()
        return getattr(self._whole, name)
