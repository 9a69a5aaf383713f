"""What one forward pass says at a model's last layer: all that the scorers ask for.

    z_i = W h_i + b                          logits
    ℓ_i = ℓ(z_i, y_i)                        losses
    δ_i = ∂ℓ_i / ∂z_i                        slopes: for cross-entropy softmax(z_i) − onehot(y_i)
    g_i = ∂ℓ_i / ∂(W, b) = δ_i ⊗ [h_i, 1]    the last layer's gradient, never formed

Inner products of such gradients are cheap: ⟨g_i, g_j⟩ = ⟨δ_i, δ_j⟩ (⟨h_i, h_j⟩ + 1),
and with a direction (V, c) of the layer ⟨g_i, (V, c)⟩ = ⟨δ_i, V h_i + c⟩.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits [n, K], labels [n] -> losses [n]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y of each sample, ``[n]``."""
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True, eq=False)
class HeadPass:
    """A batch at the last layer; without graph, in float32 at least.

    Attributes:
        features: h ``[n, d]``, what the last layer sees.
        logits: z ``[n, K]``.
        labels: y ``[n]``.
        losses: ℓ ``[n]``.
        slopes: δ ``[n, K]``.
        weight: W ``[K, d]``.
        bias: b ``[K]``, or None.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    losses: Tensor
    slopes: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(
        cls,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: SampleLoss = cross_entropy,
    ) -> "HeadPass":
        """Take losses and slopes of logits.

        Args:
            features: ``[n, d]``.
            logits: ``[n, K]``.
            labels: ``[n]``.
            weight: ``[K, d]``.
            bias: ``[K]`` or None.
            loss: one loss per sample.

        Example:
            >>> h, W = torch.eye(2), torch.zeros(2, 2)
            >>> HeadPass.of(h, h @ W.T, torch.tensor([0, 1]), W, None).slopes
            tensor([[-0.5000,  0.5000],
                    [ 0.5000, -0.5000]])
        """
        wide = torch.promote_types(logits.dtype, torch.float32)
        with torch.enable_grad():
            z = logits.detach().to(wide).requires_grad_()
            losses = loss(z, labels)
            (slopes,) = torch.autograd.grad(losses.sum(), z)
        h, w = features.detach().to(wide), weight.detach().to(wide)
        b = None if bias is None else bias.detach().to(wide)
        return cls(h, z.detach(), labels, losses.detach(), slopes, w, b)
