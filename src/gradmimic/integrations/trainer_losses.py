"""The loss of every sample, from what one of Hugging Face's models returns and the labels.

ℓ_i = Σ_t ℓ_{i,t} / n_i        n_i terms: unmasked tokens; 1 for a class; 0 where the label is −100
L = Σ_i s_i ℓ_i                s_i = n_i / N, the plain Trainer's own loss

N is the number of terms of the whole accumulated step, over all processes, where the model's own
loss takes ``num_items_in_batch``, and of the batch at hand where it leaves that out, as classifiers
of many architectures do. Which of the two is seen by asking the model once (:func:`heeds_items`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.errors import LossError, UsageError
from gradmimic.measure import buffers_kept
from gradmimic.token_losses import IGNORED, token_losses

_CLASSES = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)
_ALIGNED = ("ForTokenClassification", "ForMaskedLM")
_SHIFTED = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_INSTEAD = (
    "Pass compute_loss_func=, a function (outputs, labels, num_items_in_batch) -> [b] that returns "
    "one loss per sample."
)


class SampleLosses(NamedTuple):
    """The losses of a batch, and how many terms each is the mean of."""

    losses: Tensor  # [b]
    counts: Tensor  # [b], n_i

    def shares(self, items: Tensor | int | None = None) -> Tensor:
        """Return s_i = n_i / N ``[b]``, with N the terms of this batch where ``items`` is None."""
        counts = self.counts.to(self.losses.dtype)
        if items is None:
            return counts / counts.sum().clamp(min=1)
        return counts / torch.as_tensor(items, device=counts.device).clamp(min=1)


def sample_losses(
    model: nn.Module, outputs: Any, labels: Tensor | None, *, label_smoothing: float = 0.0
) -> SampleLosses:
    """Return one loss per sample, as the model itself, or the Trainer's smoother, would sum it.

    Args:
        model: the model, unwrapped; its class says of which kind its loss is.
        outputs: what it returned; its ``logits`` are ``[b, c]`` or ``[b, t, c]``.
        labels: ``[b]`` classes, ``[b, c]`` of several labels or of a regression, or ``[b, t]``.
        label_smoothing: how much of the target is spread over all classes.

    Returns:
        Losses ``[b]``, at least 0, lower is better; 0 for a sample without terms.

    Raises:
        UsageError: nothing is known of the loss of such a model.
        LossError: there are no labels or no logits, or they do not fit.

    Example:
        >>> class LMHeadModel(nn.Module): ...
        >>> out = {"logits": torch.zeros(1, 3, 4)}
        >>> found = sample_losses(LMHeadModel(), out, torch.tensor([[2, 1, -100]]))
        >>> found.counts.tolist(), round(found.losses.item(), 3)
        ([1], 1.386)
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
    if labels is None or not isinstance(logits, Tensor):
        lacking = "labels" if labels is None else "logits"
        raise LossError(
            f"There are no {lacking} to take losses of: expected the column 'labels' in every "
            f"batch, and a model that returns its 'logits'. {_INSTEAD}"
        )
    model = inside_peft(model)
    kind = kind_of(model)
    if kind == "classes":
        return _of_classes(model, logits, labels, label_smoothing)
    labels = labels.to(logits.device)  # where layers lie on several
    found = token_losses(logits, labels, causal=kind == "shifted", label_smoothing=label_smoothing)
    return SampleLosses(found.means, found.counts)


def kind_of(model: nn.Module) -> str:
    """Return of which kind a model's loss is: ``"classes"``, ``"aligned"`` or ``"shifted"``.

    Raises:
        UsageError: nothing is known of it.
    """
    model = inside_peft(model)
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise UsageError(
            f"{name} adds a loss of its router to the loss of its samples, which is of the batch, "
            "not of any sample. Set model.config.output_router_logits = False."
        )
    kinds = {"classes": _CLASSES, "aligned": _ALIGNED, "shifted": _SHIFTED}
    for kind, endings in kinds.items():
        if name.endswith(endings):
            encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
            return "aligned" if kind == "shifted" and encodes else kind
    known = ", ".join(name for names in kinds.values() for name in names)
    raise UsageError(
        f"Nothing is known of the loss of single samples of a {name}; known are models whose names "
        f"end with {known}. {_INSTEAD}"
    )


def _of_classes(
    model: nn.Module, logits: Tensor, labels: Tensor, label_smoothing: float
) -> SampleLosses:
    config: Any = model.config
    labels = labels.to(logits.device)
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    problem = config.problem_type
    if problem is None:  # as transformers guesses it
        whole = labels.dtype in (torch.long, torch.int)
        several = "single_label_classification" if whole else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else several
    if problem == "single_label_classification":
        if logits.ndim != 2 or labels.numel() != len(logits):
            raise LossError(
                f"Expected logits [b, c] and one label per sample, got {list(logits.shape)} and "
                f"{list(labels.shape)}."
            )
        classes = labels.view(-1)
        losses = F.cross_entropy(
            wide, classes, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
        )
        return SampleLosses(losses, (classes != IGNORED).long())
    if labels.numel() != logits.numel():
        raise LossError(
            f"Expected as many labels as logits for the problem type {problem!r}, got "
            f"{list(labels.shape)} and {list(logits.shape)}."
        )
    targets = labels.view(logits.shape).to(wide.dtype)
    if problem == "regression":
        terms = F.mse_loss(wide, targets, reduction="none")
    else:
        terms = F.binary_cross_entropy_with_logits(wide, targets, reduction="none")
    losses = terms.flatten(1).mean(1)  # [b]
    return SampleLosses(losses, torch.ones(len(losses), dtype=torch.long, device=losses.device))


def heeds_items(model: nn.Module, inputs: Mapping[str, Any], *, takes: bool) -> bool | None:
    """Ask a model whether its own loss is over ``num_items_in_batch``, by one pass without grad.

    The pass also proves that the samples' losses add up to the model's own, whatever that is.
    Random numbers and buffers are left as they were.

    Args:
        model: the model, unwrapped.
        inputs: one batch with its labels.
        takes: whether its forward pass takes ``num_items_in_batch`` at all.

    Returns:
        Whether it is; None where this batch does not tell, without labels or with losses of 0.

    Raises:
        UsageError: the model's own loss is another one.
    """
    labels = inputs["labels"]
    devices = [labels.device] if labels.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), buffers_kept(model):
        many = 3 * labels.numel()  # no batch has as many terms
        items = {"num_items_in_batch": torch.tensor(many, device=labels.device)} if takes else {}
        out = model(**inputs, **items)
        loss, said = (out["loss"], out) if isinstance(out, Mapping) else (out[0], out[1:])
        found = sample_losses(model, said, labels)
    own = float(loss.float())
    if int(found.counts.sum()) == 0:
        return None
    rounding = 2e-2 if loss.dtype in (torch.float16, torch.bfloat16) else 1e-3
    expected = {
        heeds: float((found.shares(over).float() * found.losses.float()).sum())
        for heeds, over in ((False, None), (True, many))
    }
    fitting = [h for h, v in expected.items() if math.isclose(own, v, rel_tol=rounding)]
    if fitting:
        return fitting[0] if len(fitting) == 1 else None  # all losses are 0
    raise UsageError(
        f"The loss of a {type(model).__name__} is not the mean of what its samples' losses are "
        f"taken to be: on the first batch it says {own:.6g}, and their mean is "
        f"{expected[False]:.6g}. {_INSTEAD}"
    )


def complete(model: nn.Module, inputs: Any) -> None:
    """Give a decoder with an encoder its inputs, which it would make of labels given to it itself.

    Args:
        model: the model, unwrapped.
        inputs: one batch; ``decoder_input_ids`` are added where they are missing.
    """
    model, given = inside_peft(model), ("decoder_input_ids", "decoder_inputs_embeds")
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    labels = inputs.get("labels")
    if encodes and shift is not None and labels is not None and not any(n in inputs for n in given):
        inputs["decoder_input_ids"] = shift(labels=labels)


def inside_peft(model: nn.Module) -> nn.Module:
    """Return the model inside one of peft's."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner
