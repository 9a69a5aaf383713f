"""The direction in the space of outputs: toward what the reference says of this very sample.

    t_i = κ z_ref,i − z_i                    κ = SHARPNESS · ‖z‖ / ‖z_ref‖ over the batch
    m_i = −(d/dε ℓ_i(z + ε t)) / t̄           t̄² = (1/b) Σ_i ‖t_i‖²

A step on the weights moves the outputs, and the mimic score asks how fast they travel toward the
reference's. ``gradmimic.transport`` takes the travel that the scored layer alone can make, with the
features as they are; here the features are free to follow. So nothing has to be learned first, weak
features of the first epochs hide no class, and outputs that were made without a sample's own label
(``gradmimic.cross_fit``) stay so. z and t are centred over the classes: a softmax never sees the
mean.

The derivative of all losses comes from two backward passes through what lies above z, which is the
loss alone: u ↦ ∂⟨u, ℓ⟩/∂z is linear in u, and its own derivative along t is dℓ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from gradmimic.align import scored_linear
from gradmimic.direction import Direction, Subset
from gradmimic.engines.base import Pass
from gradmimic.engines.forward import ForwardEngine
from gradmimic.errors import DataError, DirectionError, LossError, UsageError
from gradmimic.outputs import Outputs
from gradmimic.ranks import ALONE, Ranks
from gradmimic.transport import SHARPNESS, Transport


class TowardOutputs(Transport):
    """v in the space of outputs, known once the batch's ids are.

    Args:
        model: the model being trained.
        subset: its scored parameters, one linear layer.
        outputs: a module that takes what the model takes, or :class:`Outputs`.
        ranks: whose samples share κ and t̄.

    Attributes:
        output: z ``[b, …, K]`` of the last pass, with its graph.
        tangent: t ``[b, …, K]``.
        norm: t̄ > 0.

    Raises:
        AlignmentError: the scored parameters are no whole linear layer.
    """

    name = "outputs"
    first = 1  # a pass shows whether the outputs fit

    def __init__(
        self,
        model: nn.Module,
        subset: Subset,
        outputs: nn.Module | Outputs,
        ranks: Ranks = ALONE,
    ) -> None:
        self._layer = scored_linear(subset, self.name)
        super().__init__(model, subset, outputs, ranks)
        self.output: Tensor | None = None
        self.tangent: Tensor | None = None
        self.norm = 0.0

    def direction(self) -> "TowardOutputs":  # type: ignore[override]
        """Return itself: the direction is another one for each sample."""
        self.output = self.tangent = None
        return self

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the inputs of the model and the output of its scored layer."""
        hook = self._layer.register_forward_hook(self._keep_output)
        try:
            with super().watching():
                yield
        finally:
            hook.remove()

    def observe(self, ids: Any | None) -> Tensor | None:
        """Take the directions of the batch that was watched."""
        said, known = self._said(ids)
        ((name, _),) = self._layers.items()
        z, there = self.output, said[name]
        if z is None:
            raise UsageError(
                f"the scored layer {name!r} did not run in the `with` block. Run the model's "
                "forward pass inside it."
            )
        if z.shape != there.shape:
            raise DataError(
                f"the scored layer {name!r} gives outputs {list(z.shape)}, the reference "
                f"{list(there.shape)}. Expected one number for each sample and class, in the same "
                "order."
            )
        if not there.isfinite().all():
            raise DataError("the reference's outputs are NaN or infinite. Check the reference.")
        here = _centred(z.detach().float())
        there = _centred(there.to(z.device).float())
        if known is not None:
            there[~known.to(z.device)] = 0.0
        size, length = self._lengths(here, there)
        t = there * (SHARPNESS * size / length if size and length else 1.0) - here
        if known is not None:
            t[~known.to(z.device)] = 0.0
        rows = len(t) if known is None else int(known.sum())
        everywhere = float(self._ranks.total(torch.tensor(float(rows))))
        self.norm = self._lengths(t, t[:0])[0] / max(everywhere, 1.0) ** 0.5 or 1.0
        self.tangent = t.to(z.dtype)
        self._seen, self._answer = {}, None
        return known

    def _lengths(self, a: Tensor, b: Tensor) -> tuple[float, float]:
        """Return ‖a‖ and ‖b‖ over all ranks."""
        if self._ranks.size == 1:
            return float(a.norm()), float(b.norm())
        squares = torch.stack([a.norm(), b.norm()]).double().square()
        first, second = self._ranks.total(squares).sqrt().tolist()
        return first, second

    def _keep_output(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self.output = output


class OutputPass(Pass):
    """The pass of one batch whose losses are differentiated along t.

    Args:
        subset: the scored parameters; the model reads them as they are.
        toward: where the directions come from.
    """

    def __init__(self, subset: Subset, toward: TowardOutputs) -> None:
        self.stand_ins: dict[str, Tensor] = {**subset.parameters}
        self._toward = toward

    def __enter__(self) -> "OutputPass":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, dℓ along t.

        Raises:
            LossError: the losses do not come from the scored layer's output.
            DirectionError: the reference says what the model says.
        """
        z, t = self._toward.output, self._toward.tangent
        if z is None or t is None:
            raise UsageError("This forward pass is over. Call weigh once after each `with` block.")
        if not t.isfinite().all():
            raise DirectionError("The outputs of the model are NaN or infinite. Check its inputs.")
        if len(losses) == 0:
            return losses.detach()
        with torch.enable_grad():
            u = torch.zeros_like(losses, requires_grad=True)
            try:
                (slope,) = torch.autograd.grad(losses, z, u, create_graph=True)
                (derivative,) = torch.autograd.grad(slope, u, t)
            except RuntimeError as error:
                raise LossError(
                    "The losses cannot be differentiated by the output of the scored layer: "
                    f"{error} Expected losses computed from the output of this model in this "
                    "`with` block, with gradients on."
                ) from error
        found: Tensor = derivative.detach()
        return found

    def close(self) -> None:
        """Let go of the graph."""
        self._toward.output = self._toward.tangent = None


class OutputForward(ForwardEngine):
    """The same derivative for who only scores: dual numbers z + ε t, and no graph at all.

    Args:
        subset: the scored parameters; the model reads them as they are.
        toward: where the directions come from.
        ids: ``[b]``, of the batch.

    Attributes:
        known: ``[b]``, which samples the reference knows, after the pass; None stands for all.
    """

    def __init__(self, subset: Subset, toward: TowardOutputs, ids: Any) -> None:
        super().__init__(subset, Direction({}))
        self.known: Tensor | None = None
        self._toward, self._ids = toward, ids

    def _stand_in(self) -> None:
        self.stand_ins = {**self._subset.parameters}
        self._restore.enter_context(self._toward.direction().watching())
        (layer,) = self._subset.modules
        hook = layer.register_forward_hook(self._aim)  # after the one that keeps z
        self._restore.callback(hook.remove)

    def _aim(self, _layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Give the output z its tangent t."""
        self.known = self._toward.observe(self._ids)
        tangent = self._toward.tangent
        assert tangent is not None  # noqa: S101  observe has just taken it
        if not tangent.isfinite().all():
            raise DirectionError("The outputs of the model are NaN or infinite. Check its inputs.")
        dual: Tensor = fwAD.make_dual(output, tangent)
        return dual


def _centred(z: Tensor) -> Tensor:
    return z - z.mean(-1, keepdim=True)
