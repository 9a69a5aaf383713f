"""Engine ``oracle``: one backward pass per sample. Slow and obviously correct.

    d/dε ℓ_i(θ + ε v) = ⟨∇_{θ_S} ℓ_i, v⟩

Works wherever autograd does; every other engine is tested against it.
"""

from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from gradmimic.direction import Direction, Subset
from gradmimic.engines.base import Pass
from gradmimic.errors import LossError


class OracleEngine(Pass):
    """Per-sample gradients, one after the other, each multiplied with the direction.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.

    Example:
        >>> from gradmimic.direction import choose, direction
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> with OracleEngine(subset, v) as engine:
        ...     losses = layer(torch.tensor([[1.0, 2.0]])).squeeze(1)
        >>> engine.derivative(losses)
        tensor([3.])
    """

    def __init__(self, subset: Subset, direction: Direction) -> None:
        self._subset, self._direction = subset, direction
        self._restore = ExitStack()
        self.stand_ins: dict[str, Tensor] = {}

    def __enter__(self) -> "OracleEngine":
        self._restore.enter_context(torch.enable_grad())
        # A frozen parameter is scored through a copy that asks for gradients in its place.
        self.stand_ins = {
            name: parameter.view_as(parameter)
            if parameter.requires_grad
            else parameter.detach().requires_grad_()
            for name, parameter in self._subset.parameters.items()
        }
        self._restore.enter_context(self._subset.swapped(self.stand_ins))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore.close()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Return ∇ℓ_i of one loss, a tensor for each scored parameter; zero where it is unused."""
        return list(
            torch.autograd.grad(
                loss,
                list(self.stand_ins.values()),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, ⟨∇ℓ_i, v⟩."""
        if not losses.requires_grad:
            raise LossError(
                "The losses do not depend on the scored parameters. Expected losses computed from "
                "the output of this model in this `with` block, not detached."
            )
        v = list(self._direction.tensors.values())
        derivative = losses.detach().clone()
        with torch.enable_grad():  # for the indexing
            for i in range(len(losses)):
                gradients = self.gradients(losses[i])
                derivative[i] = sum((g * d).sum() for g, d in zip(gradients, v, strict=True))
        return derivative

    def along(self, values: Tensor) -> Tensor:
        """Return the derivative of each number of a tensor, one backward pass each."""
        with torch.enable_grad():
            return self.derivative(values.flatten()).view_as(values)

    def close(self) -> None:
        """Drop the stand-ins."""
        self.stand_ins = {}
