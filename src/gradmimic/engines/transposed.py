"""The derivative of losses whose graph is there already, for a pass that another engine gave up.

    u ↦ ∂⟨u, ℓ⟩/∂θ_S · v = ⟨u, dℓ⟩        so  dℓ = ∂/∂u of it

The inner product is linear in u, so the gradient by u, at any u, is the derivative of every loss:
two backward passes for a whole batch, whatever the samples share. Where an operation cannot be
differentiated twice, one backward pass per sample.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradmimic.direction import Direction, Subset
from gradmimic.engines.oracle import OracleEngine
from gradmimic.errors import UnsupportedOperationError


def transposed_derivative(
    losses: Tensor, stand_ins: Mapping[str, Tensor], direction: Direction
) -> Tensor:
    """Take the derivative along v by the reverse mode alone.

    Args:
        losses: ``[b]``, with their graph, which is kept.
        stand_ins: what the model read for the scored parameters, by name.
        direction: v, over the same names.

    Returns:
        ``[b]``.

    Raises:
        RuntimeError: an operation cannot be differentiated twice.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> v = Direction({"w": torch.tensor([3.0, 4.0])})
        >>> transposed_derivative(w.square(), {"w": w}, v)
        tensor([ 6., 16.])
    """
    with torch.enable_grad():
        u = torch.zeros_like(losses, requires_grad=True)
        gradients = torch.autograd.grad(
            losses, list(stand_ins.values()), u, create_graph=True, materialize_grads=True,
            allow_unused=True,
        )  # fmt: skip
        along = [
            (g * direction.tensors[name]).sum()
            for name, g in zip(stand_ins, gradients, strict=True)
        ]
        (derivative,) = torch.autograd.grad(
            torch.stack(along).sum(), u, materialize_grads=True, allow_unused=True
        )
    return derivative.detach()


MOST = 256
"""Samples of a batch up to which one backward pass each is still a way out."""


class TransposedEngine(OracleEngine):
    """What ``auto`` turns to last: two backward passes, or one per sample where that fails.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.
    """

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, ⟨∇ℓ_i, v⟩."""
        if not losses.requires_grad or len(losses) == 0:
            return super().derivative(losses)
        try:
            return transposed_derivative(losses, self.stand_ins, self._direction)
        except (RuntimeError, NotImplementedError) as error:
            if len(losses) > MOST:
                raise UnsupportedOperationError(
                    f"engine='auto' is left with one backward pass for each of {len(losses)} "
                    f"samples, since the model cannot be differentiated twice: {error} Pass "
                    "engine='forward'; engine='secant', which needs no derivative and is not "
                    "exact; or engine='oracle' if that many passes are all right."
                ) from error
            return super().derivative(losses)

    @classmethod
    def taking_over(
        cls, subset: Subset, direction: Direction, stand_ins: dict[str, Tensor]
    ) -> "TransposedEngine":
        """Go on with a pass that another engine began."""
        engine = cls(subset, direction)
        engine.stand_ins = stand_ins
        return engine
