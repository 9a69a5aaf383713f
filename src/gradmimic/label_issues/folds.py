"""The probes of all folds at once: one pass over the samples gives every gradient.

    θ_f = argmin_θ Σ_{i not in fold f} w_i ℓ_i(θ) + ¼ ‖θ‖²      w_i: how likely the label is right
    z_i = θ_{f(i)} x_i                                          logits of a probe that never saw i

By L-BFGS in coordinates that the diagonal of the Hessian's bound makes alike. Since the samples
have length one on average, the penalty weighs as much as half a sample.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradmimic.label_issues.components import Components
from gradmimic.label_issues.inputs import IntArray

_PENALTY = 0.5
_CURVATURE = 0.1  # of the softmax, p (1 − p) on average: it is at most 1/4
_CELLS = 2**18  # logits in memory at a time: they stay in the cache


class Folds:
    """Linear probes, one for each fold, that can be fitted again from where they stand.

    Args:
        inputs: the samples, in components ``[n, r]``.
        labels: ``[n]`` int64 in 0 … K−1.
        classes: K.
        fold: ``[n]``, the fold of each sample; −1 for those that all probes may learn from.
    """

    def __init__(self, inputs: Components, labels: Tensor, classes: int, fold: IntArray) -> None:
        self.z, self.labels, self.classes = inputs.z, labels, classes
        self.fold = torch.from_numpy(fold)
        self.folds = int(fold.max()) + 1
        curvature = _CURVATURE * len(labels) * inputs.squares + _PENALTY  # [r]
        self.scale = torch.cat([curvature, torch.tensor([_CURVATURE * len(labels)])]).rsqrt()
        # The weights [folds · K, r + 1], the bias last, each divided by its scale.
        self.theta = torch.zeros(self.folds * classes, len(self.scale), requires_grad=True)

    def fit(self, weights: npt.NDArray[np.float32], steps: int) -> None:
        """Take some steps down, each sample's loss weighted; a fold's own samples count nothing.

        Args:
            weights: ``[n]``, 0 or more.
            steps: of L-BFGS.
        """
        learned = torch.from_numpy(weights)[:, None].repeat(1, self.folds)  # [n, folds]
        learned[self.fold[:, None] == torch.arange(self.folds)] = 0.0
        optimizer = torch.optim.LBFGS(
            [self.theta], max_iter=steps, max_eval=steps + 2, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            total, self.theta.grad = self._objective(learned)
            return total

        with torch.no_grad():
            optimizer.step(objective)

    def logits(self) -> Tensor:
        """Return ``[n, K]``, of each sample by the probe of its fold; NaN where it lies in none."""
        theta = (self.theta.detach() * self.scale).view(self.folds, self.classes, -1)
        logits = torch.full((len(self.labels), self.classes), torch.nan)
        for k in range(self.folds):
            own = (self.fold == k).nonzero()[:, 0]
            for rows in own.split(max(1, _CELLS // self.classes)):
                logits[rows] = torch.addmm(theta[k, :, -1], self.z[rows], theta[k, :, :-1].T)
        return logits

    def _objective(self, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ w_i ℓ_i + ¼ ‖θ‖² over all folds, and its gradient, block by block."""
        theta = self.theta * self.scale
        slope = _PENALTY * theta
        slope[:, -1] = 0.0  # the bias is not penalised
        total = 0.5 * (slope * theta).sum()
        block = max(1, _CELLS // len(theta))
        for start in range(0, len(learned), block):
            z, w = self.z[start : start + block], learned[start : start + block]  # [b, r], [b, f]
            labels = self.labels[start : start + block, None, None].expand(-1, self.folds, 1)
            logits = torch.addmm(theta[:, -1], z, theta[:, :-1].T)  # [b, folds · K]
            logp = logits.view(len(z), self.folds, self.classes).log_softmax(2)
            total -= (w * logp.gather(2, labels)[..., 0]).sum()
            down = logp.exp_().scatter_add_(2, labels, torch.full_like(w, -1.0)[..., None])
            down = (down * w[..., None]).view(len(z), -1)  # [b, folds · K]
            slope[:, :-1] += down.T @ z
            slope[:, -1] += down.sum(0)
        return total, slope * self.scale
