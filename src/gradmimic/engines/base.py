"""What an engine does in the plainest way, and may do in a better one."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Pass:
    """One forward pass that an engine watches; the base of every engine."""

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, d/dε ℓ_i(θ + ε v) at ε = 0; once, after the pass."""
        raise NotImplementedError

    def along(self, values: Tensor) -> Tensor:
        """Return the derivative along v of any tensor of the pass, of its shape; the pass goes on.

        Args:
            values: what was computed in the pass, the losses of tokens ``[b, t]``, say; asked for
                before :meth:`derivative`.
        """
        raise NotImplementedError

    def derivative_beside(
        self, losses: Tensor, canaries: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        """Return ``[b + c]``: the derivatives of the losses, and of canary losses of the same pass.

        Args:
            losses: ``[b]``, with their graph.
            canaries: ``[c]``, likewise.
            rows: ``[c]``, the sample of the batch that each canary was made from; b … b + c − 1
                where canaries are rows of their own, behind the samples.
        """
        with torch.enable_grad():
            both = torch.cat([losses, canaries])
        return self.derivative(both)

    def weighted(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_i w_i ℓ_i, a scalar to call ``backward`` on; after ``derivative``."""
        return (weights * losses).sum()
