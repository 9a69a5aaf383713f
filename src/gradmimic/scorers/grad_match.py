"""Gradient matching: the few samples of a batch whose weighted sum is nearest to its gradient.

    E(X, w) = ‖Σ_{i∈X} w_i g_i − Σ_j g_j‖² + λ ‖w‖²,   w ≥ 0,  |X| ≤ k

Without the budget k and the λ the answer would be w = 1. Orthogonal matching pursuit takes one
sample after the other, each time the one along which E falls fastest, and solves for w anew, a
non-negative least squares problem:

    i = argmax_{j∉X} ⟨g_j, Σ_j g_j − Σ_{i∈X} w_i g_i⟩,   w = argmin_{w ≥ 0} E(X, w)

All of it needs the products ⟨g_i, g_j⟩ alone.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradmimic.errors import ParameterError
from gradmimic.extras import import_extra
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax, checked_share, part_of

FloatArray = npt.NDArray[np.float64]


class GradMatch(Scorer):
    """score_i = ⟨g_i, (1/(b−1)) Σ_{j≠i} g_j⟩, any real number; higher is better.

    How far a step on the other samples lowers ℓ_i. The pursuit takes its first sample by the same
    product with all of the batch, itself included; as a score that would reward the long gradients
    of wrong labels, and differ for canaries, which are in no batch. The weights are those of the
    whole pursuit, over their sum.

    Args:
        share: k/b, the share of a batch that may train, in (0, 1]. The paper takes 5 to 30 % of a
            data set.
        penalty: λ > 0, 0.5 in the paper.

    Raises:
        ParameterError: the share is not in (0, 1], or the penalty is not positive.

    Source: Killamsetty, Sivasubramanian, Ramakrishnan, De, Iyer, "GRAD-MATCH: Gradient Matching
    based Data Subset Selection for Efficient Deep Model Training", arXiv 2103.00123, algorithm 2,
    here within each batch.
    """

    name = "grad_match"

    def __init__(self, share: float = 0.3, penalty: float = 0.5) -> None:
        if not penalty > 0:
            raise ParameterError(f"GradMatch needs a penalty > 0, got {penalty!r}.")
        self.share, self.penalty = checked_share(share, "GradMatch"), penalty

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return seen.along_others()

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``, 0 for all but ⌈share · b⌉ samples at most.

        Raises:
            MissingExtraError: scipy is not installed.
        """
        products = seen.products().double().cpu().numpy()  # [b, b]
        found = pursue(products, part_of(self.share, len(products)), self.penalty)
        if not found.any():  # the gradients add up to nothing
            found[:] = 1.0
        return torch.from_numpy(found / found.sum()).to(scores)


def pursue(products: FloatArray, most: int, penalty: float) -> FloatArray:
    """Return w ``[b]`` ≥ 0 of at most ``most`` samples, by their gradients' products ``[b, b]``.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> pursue(np.diag([4.0, 1.0]), most=1, penalty=1.0)
        array([0.8, 0. ])
    """
    nnls = import_extra("scipy.optimize", "scorers").nnls
    target = products.sum(1)  # ⟨g_j, Σ g⟩
    w, chosen = np.zeros(len(products)), np.empty(0, dtype=np.intp)
    while len(chosen) < most:
        slope = target - products @ w
        slope[chosen] = -np.inf
        best = int(slope.argmax())
        if slope[best] <= 0:  # no other sample brings the sum nearer
            break
        chosen = np.append(chosen, best)
        inner = products[np.ix_(chosen, chosen)] + penalty * np.eye(len(chosen))
        root = np.linalg.cholesky(inner)  # ‖Lᵀw − L⁻¹t‖² = E(X, w) + a constant
        w[chosen], _ = nnls(root.T, np.linalg.solve(root, target[chosen]))
    return w
