"""x ↦ (x − mean) / spread, with the statistics of the training inputs.

One spread for all features: dividing each by its own makes weaker references.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Centre inputs, and divide all of them by one number.

    Args:
        inputs: features ``[n, d]``, which get a mean each; or images ``[n, c, h, w]``, which get
            one for each channel.

    Example:
        >>> Scale(np.array([[1.0, 4.0], [3.0, 4.0]]))(torch.tensor([[3.0, 4.0]])).round(decimals=3)
        tensor([[1.4140, 0.0000]])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, inputs: npt.NDArray[np.generic]) -> None:
        super().__init__()
        rest = tuple(axis for axis in range(inputs.ndim) if axis != 1)
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean = inputs.mean(axis=rest, dtype=np.float64).reshape(shape)
        squares = sum(float(((block - mean) ** 2).sum()) for block in np.array_split(inputs, 64))
        spread = (squares / inputs.size) ** 0.5
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(spread or 1.0, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``[b, …]`` inputs of any dtype."""
        return (x.float() - self.mean) / self.spread
