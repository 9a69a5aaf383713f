"""The whole way to the reference: how much lower is each sample's loss there?

    dℓ_i = ℓ_i(θ_ref) − ℓ_i(θ)           m_i = −dℓ_i / ‖v‖, in the mimic score's own unit

The difference that ``secant`` takes, with ε = 1: no derivative, so no engine for training, but a
scorer that needs two passes of anything that runs. With all parameters scored it is the loss less
the reference's own, by the length of the way.
"""

from collections.abc import Callable

from torch import Tensor

from gradmimic.direction import Direction, Subset
from gradmimic.engines.elsewhere import holds_storages, moved, without_trace


def segment(subset: Subset, direction: Direction, losses: Callable[[], Tensor]) -> Tensor:
    """Return ``[b]``, what the losses change by on the way to the reference.

    Args:
        subset: the scored parameters θ.
        direction: v = θ_ref − θ.
        losses: runs the model and returns ``[b]``, without gradients; both passes draw the same
            random numbers.

    Returns:
        ℓ(θ_ref) − ℓ(θ); negative where the reference fits the sample better.

    Example:
        >>> import torch
        >>> from gradmimic.direction import choose, direction
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> change = segment(subset, v, lambda: layer(torch.tensor([[1.0, 2.0]])).squeeze(1))
        >>> round(change.item(), 4)
        3.0
    """
    in_place = holds_storages(subset)
    with without_trace(subset.model), moved(subset, direction, 1.0, in_place=in_place):
        there = losses()
    return (there - losses()).detach()
