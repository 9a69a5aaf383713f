"""Features in their principal components, with vectors of mean length one.

    Z = (x − mean) U / s      U: the largest eigenvectors of Σ x xᵀ,   s² = mean ‖(x − mean) U‖²

In them the Hessian of a linear probe is nearly diagonal, so few steps fit it, and a ridge penalty
means the same whatever the number and the units of the features.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradmimic.label_issues.inputs import BLOCK, IntArray
from gradmimic.label_issues.probe import Data

_SIZE = 512  # components, at most: 384 lose 0.002 of average precision, all of 1,280 gain that
_SAMPLES = 4096  # that the eigenvectors are computed from


class Components(NamedTuple):
    """All samples in their principal components."""

    z: Tensor  # [n, r]
    squares: Tensor  # [r], the mean square of each component


def components(data: Data) -> Components:
    """Read the features block by block, and keep what varies most in them.

    Args:
        data: features ``[n, d]``, perhaps in a file.

    Returns:
        Components ``[n, r]`` float32, r ≤ d, of the rows in their order.

    Example:
        >>> x = np.array([[0.0, 1.0], [0.0, 3.0]], dtype=np.float32)
        >>> components(Data(x, torch.tensor([0, 1]), 2, 0)).z.abs()
        tensor([[0., 1.],
                [0., 1.]])
    """
    n, d = data.features.shape
    chosen = np.sort(np.random.default_rng(data.seed).permutation(n)[:_SAMPLES])
    sample = data.inputs(chosen)  # [m, d]
    mean = sample.mean(0)
    sample -= mean
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -min(d, _SIZE) :]  # [d, r]
    z = torch.empty(n, directions.shape[1])
    for start in range(0, n, BLOCK):
        rows: IntArray = np.arange(start, min(start + BLOCK, n))
        torch.matmul(data.inputs(rows).sub_(mean), directions, out=z[start : start + BLOCK])
    squares = torch.stack([part.double().square().sum(0) for part in z.split(BLOCK)]).sum(0) / n
    length = float(squares.sum()) or 1.0
    return Components(z.div_(length**0.5), (squares / length).float())
