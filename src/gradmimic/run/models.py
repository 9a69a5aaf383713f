"""The built-in models: a linear probe, an MLP and a small CNN, each ending in a linear ``head``.

A model holds the scaling of its inputs, x ↦ (x − mean) / spread with one spread for all features,
so that a file of its weights says all there is to say.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradmimic.data.scale import Scale
from gradmimic.errors import ConfigError


class Classifier(nn.Module):
    """Scaling, trunk (nothing for a linear probe), and a linear head.

    Args:
        scale: the scaling of the inputs.
        trunk: ``[b, …] -> [b, width]``.
        head: ``[b, width] -> [b, classes]``.
    """

    def __init__(self, scale: Scale, trunk: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.scale, self.trunk, self.head = scale, trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[b, classes]`` logits."""
        logits: Tensor = self.head(self.trunk(self.scale(x)))
        return logits

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return ``[n, width]``, what the head sees of all samples."""
        return torch.cat([self.trunk(self.scale(block)) for block in x.split(1024)])


def build_model(
    kind: str, inputs: npt.NDArray[np.generic], classes: int, *, hidden: int, seed: int
) -> Classifier:
    """Build a classifier.

    Args:
        kind: ``"linear"``, ``"mlp"`` or ``"cnn"``.
        inputs: what the scaling is fitted to, ``[n, d]`` features or ``[n, c, h, w]`` images.
        classes: the number of classes.
        hidden: width of the MLP's layer, or of the CNN's first one.
        seed: fixes the initial weights; the same seed gives the same ones.

    Returns:
        The model, ``[b, …] -> [b, classes]``.

    Raises:
        ConfigError: the model does not take inputs of this shape.

    Example:
        >>> build_model("mlp", np.eye(4), 3, hidden=8, seed=0)(torch.eye(4)).shape
        torch.Size([4, 3])
    """
    if (inputs.ndim == 4) != (kind == "cnn"):
        raise ConfigError(
            f"model={kind!r} does not take inputs of shape {list(inputs.shape[1:])}; linear and "
            "mlp expect features [d], cnn expects images [c, h, w]."
        )
    width = inputs.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "mlp":
            trunk, width = nn.Sequential(nn.Linear(width, hidden), nn.ReLU()), hidden
        elif kind == "cnn":
            widths = width, hidden, 2 * hidden, 4 * hidden
            blocks = [_block(*pair) for pair in pairwise(widths)]
            trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            width = widths[-1]
        else:
            trunk = nn.Sequential()
        return Classifier(Scale(inputs), trunk, nn.Linear(width, classes))


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(1, width),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),  # any size of image, down to one pixel
    )
