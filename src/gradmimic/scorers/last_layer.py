"""A vector in the space of the last layer's weights: θ itself, a direction, a mean gradient.

⟨A, B⟩ = ⟨A_W, B_W⟩ + ⟨A_b, B_b⟩,   ‖A‖² = ⟨A, A⟩
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LastLayer:
    """A number for each weight of a linear layer with d inputs and K outputs.

    Args:
        weight: ``[K, d]``.
        bias: ``[K]``, or None where the layer has no bias.

    Example:
        >>> LastLayer(torch.tensor([[3.0]]), torch.tensor([4.0])).norm
        5.0
    """

    weight: Tensor
    bias: Tensor | None

    @cached_property
    def norm(self) -> float:
        """‖·‖ over weight and bias together."""
        parts = [self.weight.flatten(), *([] if self.bias is None else [self.bias])]
        return float(torch.linalg.vector_norm(torch.cat(parts)))

    def times(self, other: "LastLayer") -> "LastLayer":
        """Return the product, element by element."""
        if self.bias is None or other.bias is None:
            return LastLayer(self.weight * other.weight, None)
        return LastLayer(self.weight * other.weight, self.bias * other.bias)
