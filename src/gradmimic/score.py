"""The mimic score: does learning from this sample move the weights toward a better model's?

With ℓ_i the loss of sample i, θ the weights being trained, θ_ref better ones, and S the parameters
that are scored,

    v   = θ_ref,S − θ_S                   the direction
    m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖         the mimic score
    w   = softmax(m / τ)                  the batch weights: the step is Σ_i w_i ∇ℓ_i
    vote_i = [w_i > 1/b]                  better than an equal share of a batch of b samples?

The inner product is a directional derivative, so no per-sample gradient is ever needed:

    m_i = −d/dε ℓ_i(θ + ε v) / ‖v‖   at ε = 0

and one forward-mode pass gives it for the whole batch (``engines/forward.py``).

Source: Huang, Bilkhu, Cooper, Sala, Movellan, "Evaluating Sample Utility for Efficient Data
Selection by Mimicking Model Weights", arXiv 2501.06708, section 3.
"""

import torch
from torch import Tensor


def projection(derivative: Tensor, direction_norm: float) -> Tensor:
    """Project each sample's descent step on the direction to the reference.

    m_i = −(d/dε ℓ_i(θ + ε v)) / ‖v‖

    Args:
        derivative: ``[b]``, the derivative of each loss along v.
        direction_norm: ‖v‖ > 0.

    Returns:
        ``[b]`` scores in loss per unit of weight distance, any real number, in single precision at
        least. Higher is better: a positive score means that learning from the sample moves the
        weights toward the reference.

    Source: arXiv 2501.06708, section 3.1.

    Example:
        >>> projection(torch.tensor([-3.0, 1.0]), 2.0)
        tensor([ 1.5000, -0.5000])
    """
    wide = torch.promote_types(derivative.dtype, torch.float32)  # for bf16 and fp16 losses
    return derivative.to(wide) / -direction_norm


def cosine(derivative: Tensor, direction_norm: float, gradient_norms: Tensor) -> Tensor:
    """Take the cosine between each sample's descent step and the direction.

    cos_i = m_i / ‖∇ℓ_i‖

    Args:
        derivative: ``[b]``, the derivative of each loss along v.
        direction_norm: ‖v‖ > 0.
        gradient_norms: ``[b]``, ‖∇_{θ_S} ℓ_i‖ ≥ 0.

    Returns:
        ``[b]`` in [−1, 1]; higher is better. A sample without a gradient gets 0.

    Example:
        >>> cosine(torch.tensor([-3.0, 0.0]), 2.0, torch.tensor([3.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    scores = projection(derivative, direction_norm)
    return torch.where(gradient_norms > 0, scores / gradient_norms, 0.0)


def batch_weights(scores: Tensor, temperature: float | Tensor) -> Tensor:
    """Turn the scores of one batch into the weights of its samples.

    w = softmax(m / τ)

    Args:
        scores: ``[b]`` mimic scores.
        temperature: τ > 0 in the scores' unit; small trusts the scores, infinite ignores them.

    Returns:
        ``[b]`` in [0, 1], summing to 1; higher is better, and 1/b is an equal share.

    Source: arXiv 2501.06708, section 3.2.

    Example:
        >>> batch_weights(torch.tensor([0.0, 0.0]), temperature=1.0)
        tensor([0.5000, 0.5000])
    """
    return torch.softmax(scores / temperature, dim=0)
