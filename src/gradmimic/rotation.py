"""Rotation: a contrastive model's outputs do not change when its projections are turned together.

    R = argmin Σ_m ‖H_m (θ_m − R θ_ref,m)ᵀ‖_F over (semi-)orthogonal R  [e, e_ref]
      = U Vᵀ  with  Σ_m (H_m θ_mᵀ)ᵀ (H_m θ_ref,mᵀ) = U S Vᵀ
    v = R θ_ref − θ

with H_m ``[n, d_m]`` the inputs of projection m in the last steps: what counts is where the two say
alike, not where their weights are, which is mostly along inputs that never come, and as chance made
them. Bare matrices, whose inputs cannot be seen, are compared by their weights, as if H were
orthonormal; so are all before the first pass.

Source: Schönemann 1966, the orthogonal Procrustes problem; the metric is ours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.align import Difference, moved
from gradmimic.direction import Direction, Subset, direction
from gradmimic.errors import AlignmentError, listed
from gradmimic.ranks import ALONE, Ranks
from gradmimic.reference import Reference

EVERY = 16  # steps between two solutions: weights move little in between, solving takes time
MEMORY = 16  # steps


class Rotation(Difference):
    """v = R θ_ref − θ, with R taken again every few steps.

    Args:
        model: the model being trained, whose scored parameters are projections into one space.
        subset: these parameters, two or more matrices: all that map into that space, or the
            rotation changes what the model computes.
        reference: their better counterparts; the space may be of another width.
        ranks: whose inputs count; what they come to is summed whenever R is taken.

    Raises:
        ReferenceMismatchError: model and reference do not fit.
        AlignmentError: the parameters do not project into one space.
    """

    first = 1

    def __init__(
        self, model: nn.Module, subset: Subset, reference: Reference, ranks: Ranks = ALONE
    ) -> None:
        self.name, self._ranks = "rotation", ranks
        self._model, self._subset, self._reference = model, subset, reference
        self._space = common_space(subset)
        self._far = reference.match(model, subset, free=self._space)
        self._layers = _layers(subset, self._space)
        self._alike: Tensor | None = None  # [e, e_ref], Σ (H θᵀ)ᵀ (H θ_refᵀ), decayed
        self._steps = self._solved = 0

    def direction(self) -> Direction:
        """Return v, having turned the reference again where it is time."""
        if moved(self._subset, self._far):
            self._far = self._reference.match(self._model, self._subset, free=self._space)
            self._steps, self._alike = 0, None
        if self._steps < 2 or self._steps - self._solved >= EVERY:  # none is seen before the first
            alike = None if self._alike is None else self._ranks.total(self._alike)
            self._target = rotated(self._far, self._subset, self._space, alike)
            self._solved = self._steps
        return direction(self._subset, self._target)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add what both say of the inputs of this pass."""
        if self._alike is not None:
            self._alike *= 1 - 1 / MEMORY
        with ExitStack() as hooks:
            for layer, names in self._layers.items():
                hooks.callback(layer.register_forward_hook(self._compare(names)).remove)
            yield

    def observe(self, ids: Any | None) -> None:
        """Count the pass."""
        self._steps += 1

    def _compare(self, names: Mapping[str, str]) -> Callable[..., None]:
        weight, bias = self._far[names["weight"]], self._far.get(names.get("bias", ""))
        wide = torch.promote_types(weight.dtype, torch.float32)

        @torch.no_grad()
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            h, z = (fwAD.unpack_dual(each).primal.to(wide) for each in (inputs[0], output))
            said = F.linear(h, weight.to(wide), None if bias is None else bias.to(wide))
            alike = z.flatten(0, -2).T @ said.flatten(0, -2)
            self._alike = alike if self._alike is None else self._alike + alike

        return hook


def common_space(subset: Subset) -> dict[str, int]:
    """Find the dimension of each projection that lies in the space they share.

    Args:
        subset: weights of linear layers ``[e, d]`` and their biases ``[e]``, or bare matrices
            ``[d, e]`` as in ``x @ projection``; single numbers, such as a temperature, are in no
            space.

    Returns:
        Parameter name to dimension.

    Raises:
        AlignmentError: there are not two matrices, or they have different e.

    Example:
        >>> from gradmimic.direction import choose
        >>> common_space(choose(nn.ModuleList([nn.Linear(3, 2), nn.Linear(5, 2, False)]), "all"))
        {'0.weight': 0, '0.bias': 0, '1.weight': 0}
    """
    space = {}
    for use in subset.uses:
        shape = subset.parameters[use.name].shape
        if len(shape) in (1, 2) and shape.numel() > 1:
            bare = len(shape) == 2 and not isinstance(use.module, nn.Linear)
            space[use.name] = 1 if bare else 0
    widths = {name: subset.parameters[name].shape[at] for name, at in space.items()}
    matrices = [name for name in space if subset.parameters[name].ndim == 2]
    if len(matrices) < 2 or len(set(widths.values())) != 1:
        raise AlignmentError(
            "align='rotation' expects params= to name two or more projections into one space, such "
            "as those of a CLIP model; they are "
            f"{listed(f'{n} {list(p.shape)}' for n, p in subset.parameters.items())}. A head of "
            "classes has no such freedom: use align='transport' there."
        )
    return space


def rotated(
    reference: Mapping[str, Tensor],
    subset: Subset,
    space: Mapping[str, int],
    alike: Tensor | None = None,
) -> dict[str, Tensor]:
    """Turn the reference's projections together to where they lie nearest to the current ones.

    R = argmin ‖θ − R θ_ref‖ = U Vᵀ  with  θ θ_refᵀ = U S Vᵀ,  [e, e_ref], (semi-)orthogonal

    Args:
        reference: θ_ref by name, in a space of e_ref dimensions.
        subset: the scored parameters, θ, in one of e.
        space: the dimension of each parameter that lies in the space; the others stay.
        alike: ``[e, e_ref]``, θ HᵀH θ_refᵀ for inputs H, to be used in the place of θ θ_refᵀ.

    Returns:
        R θ_ref, shaped like θ. For e_ref > e, where the distance has no such solution, R maximises
        ⟨θ, R θ_ref⟩, and the dimensions that help least are dropped.

    Example:
        >>> from gradmimic.direction import choose
        >>> here = choose(nn.ModuleList([nn.Linear(2, 2, False), nn.Linear(2, 2, False)]), "all")
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> there = {name: turn @ parameter.detach() for name, parameter in here.parameters.items()}
        >>> near = rotated(there, here, common_space(here))
        >>> torch.allclose(near["0.weight"], here.parameters["0.weight"], atol=1e-5)
        True
    """
    theta = {name: subset.parameters[name].detach() for name in space}
    if alike is None:
        alike = torch.stack(
            [
                _rows(theta[name], at) @ _rows(reference[name], at).T.to(theta[name].device)
                for name, at in space.items()
            ]
        ).sum(0)
    u, _, vt = torch.linalg.svd(alike, full_matrices=False)
    r = (u @ vt).to(next(iter(theta.values())).device)
    turned = dict(reference)
    for name, at in space.items():
        part = reference[name].to(theta[name].device)
        rows = (r @ _rows(part, at)).to(theta[name].dtype)
        turned[name] = (rows.T if at == 1 else rows).reshape(theta[name].shape)
    return turned


def _layers(subset: Subset, space: Mapping[str, int]) -> dict[nn.Linear, dict[str, str]]:
    """Return the parameters' names by layer; nothing unless all of the space is linear layers."""
    layers: dict[nn.Linear, dict[str, str]] = {}
    for use in subset.uses:
        if use.name in space:
            if not isinstance(use.module, nn.Linear):
                return {}
            layers.setdefault(use.module, {})[use.attribute] = use.name
    whole = all(
        {key for key, value in layer._parameters.items() if value is not None} == names.keys()
        for layer, names in layers.items()
    )
    return layers if whole else {}


def _rows(part: Tensor, at: int) -> Tensor:
    """Bring a projection to ``[e, d]``, in single precision at least."""
    wide = part.detach().to(torch.promote_types(part.dtype, torch.float32))
    return wide.reshape(-1, 1) if wide.ndim == 1 else wide.T if at == 1 else wide
