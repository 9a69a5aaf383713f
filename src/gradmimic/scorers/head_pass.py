"""What one forward pass says at a model's last layer: all that the scorers ask for.

    z_i = W h_i + b                          logits
    ℓ_i = ℓ(z_i, y_i)                        losses
    δ_i = ∂ℓ_i / ∂z_i                        slopes: for cross-entropy softmax(z_i) − onehot(y_i)
    g_i = ∂ℓ_i / ∂(W, b) = δ_i ⊗ [h_i, 1]    the last layer's gradient, never formed

Inner products of such gradients are cheap:

    ‖g_i‖² = ‖δ_i‖² (‖h_i‖² + 1),  ⟨g_i, g_j⟩ = ⟨δ_i, δ_j⟩ (⟨h_i, h_j⟩ + 1)
    ⟨g_i, (V, c)⟩ = ⟨δ_i, V h_i + c⟩         with a direction (V, c) of the layer

Without a bias the 1 and the c are not there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.scorers.last_layer import LastLayer

SampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits [n, K], labels [n] -> losses [n]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y of each sample, ``[n]``."""
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True, eq=False)
class HeadPass:
    """A batch at the last layer; without graph, in float32 at least.

    The first b rows are samples, the others canaries: scored like samples, and part of no mean.
    What not every scorer asks for is None where it was not given.

    Attributes:
        features: h ``[n, d]``, what the last layer sees.
        logits: z ``[n, K]``.
        labels: y ``[n]``.
        losses: ℓ ``[n]``.
        slopes: δ ``[n, K]``.
        weight: W ``[K, d]``.
        bias: b ``[K]``, or None.
        loss: what made the losses.
        samples: b ≤ n.
        rows: ``[n]``, the sample that each row is, or that a canary is made from.
        direction: v = θ_ref − θ of the last layer.
        reference_losses: ``[n]``, ℓ of the reference's logits, under the same labels.
        known: ``[n]`` bool, of which rows the reference's losses are known; None stands for all.
        trusted: the mean gradient of samples that are known to be clean.
        adam: 1/(√v̂ + ε), by which Adam multiplies every step.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    losses: Tensor
    slopes: Tensor
    weight: Tensor
    bias: Tensor | None
    loss: SampleLoss
    samples: int
    rows: Tensor
    direction: LastLayer | None = None
    reference_losses: Tensor | None = None
    known: Tensor | None = None
    trusted: LastLayer | None = None
    adam: LastLayer | None = None

    @classmethod
    def of(
        cls,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: SampleLoss = cross_entropy,
        samples: int | None = None,
        rows: Tensor | None = None,
    ) -> "HeadPass":
        """Take losses and slopes of logits.

        Args:
            features: ``[n, d]``.
            logits: ``[n, K]``.
            labels: ``[n]``.
            weight: ``[K, d]``.
            bias: ``[K]`` or None.
            loss: one loss per sample.
            samples: how many of the first rows are samples; None: all.
            rows: ``[n]``, the sample that each row stands for; None where there are no canaries.

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
        if rows is None:
            rows = torch.arange(len(labels), device=z.device)
        m = len(labels) if samples is None else samples
        return cls(h, z.detach(), labels, losses.detach(), slopes, w, b, loss, m, rows)

    @property
    def layer(self) -> LastLayer:
        """θ: the last layer's weights."""
        return LastLayer(self.weight, self.bias)

    def gradient_norms(self) -> Tensor:
        """Return ``[n]``, ‖g_i‖ = ‖δ_i‖ √(‖h_i‖² + 1)."""
        squares = self.features.square().sum(1) + self._one  # [n]
        norms: Tensor = torch.linalg.vector_norm(self.slopes, dim=1) * squares.sqrt()
        return norms

    def along(self, layer: LastLayer) -> Tensor:
        """Return ``[n]``, ⟨g_i, (V, c)⟩ = ⟨δ_i, V h_i + c⟩, the derivative of ℓ_i along it."""
        return (self.slopes * F.linear(self.features, layer.weight, layer.bias)).sum(1)

    def products(self) -> Tensor:
        """Return ``[b, b]``, ⟨g_i, g_j⟩ of the samples."""
        slopes, h = self.slopes[: self.samples], self.features[: self.samples]
        return (slopes @ slopes.T) * (h @ h.T + self._one)

    def along_others(self) -> Tensor:
        """Return ``[n]``, ⟨g_i, (1/(b−1)) Σ_{j≠i} g_j⟩; a canary stands in its sample's place."""
        mean = self.mean_gradient()
        slopes, h = self.slopes[self.rows], self.features[self.rows]
        own = (self.slopes * slopes).sum(1) * ((self.features * h).sum(1) + self._one)  # [n]
        return (self.samples * self.along(mean) - own) / max(self.samples - 1, 1)

    def mean_gradient(self) -> LastLayer:
        """Return ḡ = (1/b) Σ_i g_i over the samples."""
        slopes, h = self.slopes[: self.samples], self.features[: self.samples]
        bias = None if self.bias is None else slopes.mean(0)
        return LastLayer(slopes.T @ h / self.samples, bias)  # [K, d]

    @property
    def _one(self) -> float:
        return 0.0 if self.bias is None else 1.0
