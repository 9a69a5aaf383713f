"""What scorers may ask for beside the pass itself, taken anew at every step.

v      = θ_ref − θ                        of the last layer
ḡ      = (1/m) Σ_j ∇ℓ(x_j, y_j)           over m trusted samples, by a pass of their own
P      = 1 / (√v̂ + ε)                     v̂ = exp_avg_sq / (1 − β₂^t), Adam's second moment
ℓ_ref  = ℓ(z_ref,i, y_i)                  looked up by sample id
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.direction import choose
from gradmimic.errors import DataError, ParameterError, UsageError
from gradmimic.outputs import Outputs, evaluating
from gradmimic.reference import Reference
from gradmimic.scorers.head_pass import HeadPass, SampleLoss
from gradmimic.scorers.head_watch import HeadWatch
from gradmimic.scorers.last_layer import LastLayer
from gradmimic.wrapped import unwrapped, whole


@dataclass(frozen=True, eq=False)
class Context:
    """What was given beside the model; each part may be None.

    Args:
        model: the model being trained.
        watch: knows its last layer.
        reference: a better model's weights.
        outputs: what a reference says of each sample id.
        trusted: inputs and labels of clean samples.
        optimizer: Adam or AdamW.
        loss: one loss per sample.
    """

    model: nn.Module
    watch: HeadWatch
    reference: Reference | None
    outputs: Outputs | None
    trusted: tuple[Any, Tensor] | None
    optimizer: torch.optim.Optimizer | None
    loss: SampleLoss

    def direction(self) -> LastLayer:
        """Return v.

        Raises:
            DirectionError: it is zero or not finite.
            ReferenceMismatchError: the reference does not fit.
        """
        assert self.reference is not None  # noqa: S101
        subset = choose(unwrapped(self.model), "head", head=self.watch.name)
        v = subset.toward(self.reference.match(unwrapped(self.model), subset))
        _ = v.norm  # checks it
        by_last = {name.rpartition(".")[2]: tensor for name, tensor in v.tensors.items()}
        wide = {name: _wide(tensor) for name, tensor in by_last.items()}
        return LastLayer(wide["weight"], wide.get("bias"))

    def reference_losses(
        self, ids: Any, labels: Tensor, rows: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        """Return ``[n]`` losses, and ``[n]`` bool, which are known.

        Args:
            ids: ``[b]`` sample ids.
            labels: ``[n]``, of samples and canaries.
            rows: ``[n]``, the sample that each stands for.
            classes: K of the model.
        """
        assert self.outputs is not None  # noqa: S101
        if ids is None:
            raise UsageError(
                "A reference's losses are looked up by sample id: weigh(logits, labels, ids)."
            )
        if self.outputs.kind != "logits" or self.outputs.width != classes:
            raise DataError(
                f"Expected outputs of {classes} logits or probabilities per sample, as the model "
                f"gives, got {self.outputs.width} {self.outputs.kind} of {self.outputs.source}."
            )
        said, known = self.outputs.of(ids)  # [b, K], [b]
        here = rows.to("cpu")
        logits = said[here].to(labels.device)
        return self.loss(logits, labels), known[here].to(labels.device)

    def trusted_gradient(self) -> LastLayer:
        """Return ḡ, by a pass in eval mode and without graph."""
        assert self.trusted is not None  # noqa: S101
        inputs, labels = self.trusted
        model = unwrapped(self.model)
        with torch.no_grad(), evaluating(model), self.watch:
            logits = model(inputs)
        features, _ = self.watch.taken()
        layer = self.watch.layer
        labels = labels.to(logits.device)
        check_labels(labels, logits, "trusted labels")
        weight, bias = whole(layer.weight), None if layer.bias is None else whole(layer.bias)
        return HeadPass.of(features, logits, labels, weight, bias, self.loss).mean_gradient()

    def adam(self) -> LastLayer:
        """Return P; ones before the optimizer's first step.

        Raises:
            ParameterError: the optimizer does not train the last layer, or keeps no second moment.
        """
        layer = self.watch.layer
        parts = [self._preconditioner(layer.weight)]
        if layer.bias is not None:
            parts.append(self._preconditioner(layer.bias))
        return LastLayer(parts[0], parts[1] if len(parts) > 1 else None)

    def _preconditioner(self, parameter: Tensor) -> Tensor:
        assert self.optimizer is not None  # noqa: S101
        groups: Iterable[dict[str, Any]] = self.optimizer.param_groups
        own = [g for g in groups if any(p is parameter for p in g["params"])]
        if not own or "betas" not in own[0]:
            what = "does not train the last layer" if not own else "keeps no second moments"
            raise ParameterError(
                f"optimizer= is a {type(self.optimizer).__name__} that {what}. Expected the Adam "
                "or AdamW that steps on this model."
            )
        state = self.optimizer.state.get(parameter)
        if not state:
            return torch.ones_like(parameter, dtype=_wide(parameter).dtype)
        (_, beta), eps = own[0]["betas"], own[0]["eps"]
        moment = state["max_exp_avg_sq" if "max_exp_avg_sq" in state else "exp_avg_sq"]
        corrected = _wide(whole(moment)) / (1 - beta ** float(state["step"]))
        scale: Tensor = 1 / (corrected.sqrt() + eps)
        return scale


def check_labels(labels: Tensor, logits: Tensor, what: str = "labels") -> None:
    """Raise unless there is one class number for each row of logits.

    Raises:
        DataError: another shape or type, or a number that is no class.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise DataError(
            f"expected logits [b, K] and {what} [b] int64, got {list(logits.shape)} and "
            f"{list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}."
        )
    if len(labels) == 0:
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"expected {what} from 0 to {logits.shape[1] - 1}, got {low} to {high}. Use class "
            "numbers, or leave unlabelled samples out."
        )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
