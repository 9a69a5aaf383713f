"""Every sample's gradient, a few at a time, for the cosine variant of the score.

One vector-Jacobian product for each row of the identity, batched:  e_iᵀ · ∂ℓ/∂θ_S = ∇ℓ_i
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

ROWS = 16  # gradients held at a time: memory is ROWS × the scored parameters


def per_sample_gradients(
    losses: Tensor, parameters: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Take the gradients of the losses, sample by sample, in blocks of rows.

    Args:
        losses: ``[b]``, with their graph, which is kept.
        parameters: tensors of that graph, by name.

    Yields:
        For each block of r samples, ``[r, *shape]`` for each parameter; zero where it is unused.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> losses = torch.stack([w.sum(), w.square().sum() / 2])
        >>> next(per_sample_gradients(losses, {"w": w}))["w"]
        tensor([[1., 1.],
                [3., 4.]])
    """
    for rows in torch.eye(len(losses), dtype=losses.dtype, device=losses.device).split(ROWS):
        if len(rows) == 0:
            return  # an empty batch
        gradients = torch.autograd.grad(
            losses,
            list(parameters.values()),
            rows,
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        yield dict(zip(parameters, gradients, strict=True))
