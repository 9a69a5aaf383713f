"""``reweight="scored"``: the scored parameters follow the weights, all others the plain mean.

loss = mean(ℓ) + ⟨θ_S, δ⟩ − const  with δ = ∇_{θ_S} Σ_i (w_i − 1/b) ℓ_i held constant
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradmimic.direction import Subset


def reweight_scored(
    losses: Tensor,
    weights: Tensor,
    mean: Tensor,
    subset: Subset,
    stand_ins: Mapping[str, Tensor],
) -> Tensor:
    """Return the loss whose gradient is the weighted sum's for θ_S, and the mean's for the rest.

    δ costs the backward pass of the scored layers and of those above them.

    Args:
        losses: ``[b]``, with their graph.
        weights: ``[b]``, without one.
        mean: their plain mean, or this rank's part of it.
        subset: the scored parameters θ_S.
        stand_ins: what the model read for each of them in the pass.

    Returns:
        A scalar whose value is the plain mean.
    """
    trained = {
        name: parameter for name, parameter in subset.parameters.items() if parameter.requires_grad
    }
    if not trained:
        return mean
    deltas = torch.autograd.grad(
        (weights * losses).sum() - mean,
        [stand_ins[name] for name in trained],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    pairs = zip(trained.values(), deltas, strict=True)
    linear = torch.stack([(p * d).sum() for p, d in pairs]).sum()
    return mean + linear - linear.detach()
