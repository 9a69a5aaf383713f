"""Rotation: a contrastive model's outputs do not change when its projections are turned together.

    R = argmin Σ_m ‖H_m (θ_m − R θ_ref,m)ᵀ‖_F over (semi-)orthogonal R  [e, e_ref]
      = U Vᵀ  with  Σ_m (H_m θ_mᵀ)ᵀ (H_m θ_ref,mᵀ) = U S Vᵀ
    v = R θ_ref − θ

with H_m ``[n, d_m]`` the inputs of projection m in the last steps: what counts is where the two say
alike, not where their weights are, which is mostly along inputs that never come, and as chance made
them. Before the first pass, or where inputs cannot be seen (a projection that only a fused kernel
reads), projections are compared by their weights, as if H were orthonormal.

All projections into the space are turned, whether they are scored or not: one of a model's two
towers can be scored alone. A reference that says which these are, as
:func:`gradmimic.run.clip.models.read_pair_reference` makes them, is asked; else all that is scored.

Source: Schönemann 1966, the orthogonal Procrustes problem; the metric is ours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.align import Difference, moved
from gradmimic.direction import Direction, Subset, Use, choose, direction
from gradmimic.engines.elsewhere import is_compiled
from gradmimic.errors import AlignmentError, listed
from gradmimic.products import Products
from gradmimic.ranks import ALONE, Ranks
from gradmimic.reference import Reference

EVERY = 16  # steps between two solutions: weights move little in between, solving takes time
MEMORY = 16  # steps
TOLD = 1e-5  # of the largest singular value: what inputs have told, and not only rounding
NEAR = 0.9  # of what turning could reach: below, the plain difference loses (docs/clip-models.md)


class Rotation(Difference):
    """v = R θ_ref − θ, with R taken again every few steps.

    Args:
        model: the model being trained.
        subset: its scored parameters.
        reference: their better counterparts, and those of the projections that are not scored; the
            space may be of another width.
        ranks: whose inputs count; what they come to is summed whenever R is taken.

    Raises:
        ReferenceMismatchError: model and reference do not fit.
        AlignmentError: the parameters do not project into one space, or turning them would change
            what the model says.
    """

    LEARNED = ("_alike", "_steps", "_solved", "_target")
    first = 1

    def __init__(
        self, model: nn.Module, subset: Subset, reference: Reference, ranks: Ranks = ALONE
    ) -> None:
        if reference.fixed:
            raise AlignmentError(
                f"align='rotation' cannot turn this model: {reference.fixed}. Expected a reference "
                "that is near already, of the same initial weights or fine-tuned from the same "
                "model: align='none'."
            )
        self.name, self._ranks = "rotation", ranks
        self._model, self._scored, self._reference = model, subset, reference
        turned = _named(model, reference.projections) if reference.projections else subset
        self._space = common_space(turned)
        self._subset = _named(model, [*subset.parameters, *turned.parameters])
        self._far = reference.match(model, self._subset, free=self._space)
        self._layers, self._bare = _readers(turned, self._space)
        self._matrices = {n for n in self._space if turned.parameters[n].ndim == 2}
        self._pass: dict[str, Tensor] = {}  # [e, e_ref] of each matrix, in the pass that is on
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
        return direction(self._scored, self._target)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add what both say of the inputs of this pass."""
        self._pass = {}
        with ExitStack() as stack:
            for layer, names in self._layers.items():
                stack.callback(layer.register_forward_hook(self._of_layer(names)).remove)
            if self._bare and not is_compiled(self._model):
                stack.enter_context(Products(self._bare, self._compare))
            yield
        if self._pass.keys() < self._matrices:
            return  # one tower alone does not tell how both turn
        if self._alike is not None:
            self._alike *= 1 - 1 / MEMORY
        for alike in self._pass.values():
            self._alike = alike if self._alike is None else self._alike + alike

    def observe(self, ids: Any | None) -> None:
        """Count the pass."""
        self._steps += 1

    def _of_layer(self, names: Mapping[str, str]) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._compare(names["weight"], inputs[0], output, names.get("bias"))

        return hook

    @torch.no_grad()
    def _compare(self, name: str, inputs: Tensor, output: Tensor, bias: str | None = None) -> None:
        """Add (H θᵀ)ᵀ (H θ_refᵀ) of one projection."""
        weight = _rows(self._far[name], self._space[name])  # [e_ref, d]
        shift = None if bias is None else self._far[bias].to(weight)
        h, z = (fwAD.unpack_dual(each).primal.to(weight.dtype) for each in (inputs, output))
        with torch.autocast(weight.device.type, enabled=False):
            alike = z.flatten(0, -2).T @ F.linear(h, weight, shift).flatten(0, -2)
        self._pass[name] = self._pass[name] + alike if name in self._pass else alike


def nearness(model: nn.Module, subset: Subset, reference: Reference) -> float:
    """Tell how much of the agreement that turning could reach is there already.

    g = ⟨θ, θ_ref⟩ / max_R ⟨θ, R θ_ref⟩ = tr M / ‖M‖_*    with M = Σ_m θ_m θ_ref,mᵀ  [e, e]

    Args:
        model: the model being trained.
        subset: its scored parameters.
        reference: as of :class:`Rotation`.

    Returns:
        At most 1, where no rotation brings the reference nearer; about 0 for one of other initial
        weights, ± 1/√e; 0 where the space is of another width. Above ``NEAR`` the plain difference
        will do.

    Raises:
        ReferenceMismatchError, AlignmentError: as of :class:`Rotation`.

    Example:
        >>> towers = nn.ModuleList([nn.Linear(3, 2, False), nn.Linear(5, 2, False)])
        >>> other = {name: -p.detach() for name, p in towers.named_parameters()}
        >>> scored = choose(towers, "all")
        >>> [round(nearness(towers, scored, Reference(of, "")), 3)
        ...  for of in (dict(towers.named_parameters()), other)]
        [1.0, -1.0]
    """
    turned = _named(model, reference.projections) if reference.projections else subset
    space = common_space(turned)
    far = reference.match(model, turned, free=space)
    m = _by_weights({n: turned.parameters[n].detach() for n in space}, far, space)
    if m.shape[0] != m.shape[1]:
        return 0.0
    return float(m.trace() / torch.linalg.svdvals(m).sum().clamp(min=1e-30))


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
        alike: ``[e, e_ref]``, θ HᵀH θ_refᵀ for inputs H, to be used in the place of θ θ_refᵀ, which
            then settles only what these inputs leave open: few of them span few dimensions.

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
    weights = _by_weights(theta, reference, space)
    if alike is None:
        r = _polar(weights)
    else:
        u, s, vt = torch.linalg.svd(alike)
        n = int((s > TOLD * s[0]).sum())
        u0, v0 = u[:, n:], vt[n:].T  # [e, e − n], [e_ref, e_ref − n]: what no input has told of
        rest = u0.T @ weights.to(alike.device) @ v0
        r = u[:, :n] @ vt[:n] + u0 @ _polar(rest) @ v0.T
    r = r.to(weights.device)
    turned = dict(reference)
    for name, at in space.items():
        part = reference[name].to(theta[name].device)
        rows = (r @ _rows(part, at)).to(theta[name].dtype)
        turned[name] = (rows.T if at == 1 else rows).reshape(theta[name].shape)
    return turned


def _by_weights(
    theta: Mapping[str, Tensor], reference: Mapping[str, Tensor], space: Mapping[str, int]
) -> Tensor:
    """Return Σ_m θ_m θ_ref,mᵀ ``[e, e_ref]``, in single precision at least."""
    products = [
        _rows(theta[name], at) @ _rows(reference[name], at).T.to(theta[name].device)
        for name, at in space.items()
    ]
    return torch.stack([product.to(products[0].device) for product in products]).sum(0)


def _polar(m: Tensor) -> Tensor:
    """Return U Vᵀ with m = U S Vᵀ, the nearest (semi-)orthogonal matrix."""
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    polar: Tensor = u @ vt
    return polar


def _named(model: nn.Module, names: Iterable[str]) -> Subset:
    """Choose parameters by their whole names."""
    wanted = set(names)
    return choose(model, lambda name, _: name in wanted)


def _readers(
    subset: Subset, space: Mapping[str, int]
) -> tuple[dict[nn.Linear, dict[str, str]], list[Use]]:
    """Return the names of the space's parameters by linear layer, and the uses of bare matrices.

    Nothing where inputs do not tell all: a layer of which a part alone is turned, or a bare vector.
    """
    layers: dict[nn.Linear, dict[str, str]] = {}
    bare = []
    for use in subset.uses:
        if use.name not in space:
            continue
        if isinstance(use.module, nn.Linear):
            layers.setdefault(use.module, {})[use.attribute] = use.name
        elif subset.parameters[use.name].ndim == 2:
            bare.append(use)
        else:
            return {}, []
    for layer, names in layers.items():
        if {key for key, value in layer._parameters.items() if value is not None} != names.keys():
            return {}, []
    return layers, bare


def _rows(part: Tensor, at: int) -> Tensor:
    """Bring a projection to ``[e, d]``, in single precision at least."""
    wide = part.detach().to(torch.promote_types(part.dtype, torch.float32))
    return wide.reshape(-1, 1) if wide.ndim == 1 else wide.T if at == 1 else wide
