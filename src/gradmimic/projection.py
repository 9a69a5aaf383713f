"""h ↦ h W (+ b): a linear layer, or a bare matrix as in ``x @ projection``.

    W ``[d, k]``, and [W; b] ``[d + 1, k]`` where there is a bias

Layers keep the transpose of W, bare matrices W itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradmimic.align import scored_linears
from gradmimic.direction import Subset, Use
from gradmimic.wrapped import whole


@dataclass(frozen=True, eq=False)
class Projection:
    """One scored projection.

    Args:
        name: of the layer, or of the matrix.
        layer: the layer; None for a matrix.
        use: where a matrix is; None for a layer.
    """

    name: str
    layer: nn.Linear | None = None
    use: Use | None = None

    @property
    def biased(self) -> bool:
        """Whether h gets a 1 appended."""
        return self.layer is not None and self.layer.bias is not None

    @property
    def width(self) -> int:
        """K."""
        if self.layer is not None:
            return self.layer.out_features
        assert self.use is not None  # noqa: S101  it is one of the two
        matrix = self.use.module._parameters[self.use.attribute]
        assert matrix is not None  # noqa: S101  it is scored
        return matrix.shape[1]

    def current(self) -> Tensor:
        """Return what it is now, on the CPU."""
        if self.use is not None:
            held = {self.name: self.use.module._parameters[self.use.attribute]}
        else:
            assert self.layer is not None  # noqa: S101  it is one of the two
            held = {self._key(key): own for key, own in self.layer._parameters.items()}
        return self.joined({n: whole(p.detach()) for n, p in held.items() if p is not None})

    def named(self, w: Tensor) -> dict[str, Tensor]:
        """Return the parameters, by their names, that make ``w``."""
        if self.use is not None:
            return {self.name: w}
        if not self.biased:
            return {self._key("weight"): w.T}
        return {self._key("weight"): w[:-1].T, self._key("bias"): w[-1]}

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Undo :meth:`named`; of other tensors too."""
        if self.use is not None:
            return tensors[self.name].float().cpu()
        w = tensors[self._key("weight")].float().cpu().T
        if not self.biased:
            return w
        return torch.cat([w, tensors[self._key("bias")].float().cpu()[None]])

    def _key(self, attribute: str) -> str:
        return f"{self.name}.{attribute}" if self.name else attribute


def scored_projections(subset: Subset, why: str) -> dict[str, Projection]:
    """Return the scored projections by name.

    Args:
        subset: the scored parameters.
        why: the alignment, for messages.

    Raises:
        AlignmentError: something else is scored, or a part of a layer.

    Example:
        >>> from gradmimic.direction import choose
        >>> (layer,) = scored_projections(choose(nn.Linear(2, 3)), "transport").values()
        >>> list(layer.named(torch.ones(3, 3)))
        ['weight', 'bias']
    """
    bare = {use.name: use for use in subset.uses if _is_bare(use, subset)}
    layers = tuple(use for use in subset.uses if use.name not in bare)
    rest = Subset(subset.parameters, layers, subset.model, subset.called)
    found = {name: Projection(name, layer) for name, layer in scored_linears(rest, why).items()}
    return found | {name: Projection(name, use=use) for name, use in bare.items()}


def _is_bare(use: Use, subset: Subset) -> bool:
    """Tell a matrix that a model of one's own multiplies with from those of torch's layers."""
    homes = {kind.__module__ for kind in type(use.module).__mro__}  # FSDP2 makes classes of its own
    layers = {home for home in homes if home.startswith("torch.nn.")} - _NO_LAYERS
    return not layers and subset.parameters[use.name].ndim == 2


_NO_LAYERS = {"torch.nn.modules.module", "torch.nn.modules.container"}
