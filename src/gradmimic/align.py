"""The nearest equivalent reference: many weights compute one function, and v needs the near ones.

    none        v = θ_ref − θ
    shift       v = P(θ_ref − θ)      P v_k = v_k − (1/K) Σ_j v_j over the class rows k of a head:
                                      softmax never sees one vector added to all of them
    rotation    v = R θ_ref − θ       R = argmin ‖θ − R θ_ref‖_F over orthogonal R, for projections
                                      whose outputs are only ever compared with each other
    transport   v = W*(t) − W(t)      the reference's outputs regressed on the current features:
                                      ``gradmimic.transport``

Without it, two models trained from different initial weights share no direction and the score is at
chance, or inverted.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradmimic.direction import Direction, Subset, direction
from gradmimic.errors import AlignmentError, listed
from gradmimic.reference import Reference

EVERY = 16  # steps between two solutions: weights move little in between, solving takes time


class Alignment(Protocol):
    """Where the nearest equivalent reference lies, as the weights move."""

    name: str

    def direction(self) -> Direction | None:
        """Return v for the next pass; None while too little is known."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the model's forward pass."""

    def observe(self, ids: Any | None) -> Tensor | None:
        """Learn from the pass that was watched; return ``[b]``, which samples can be scored.

        None stands for all of them.
        """


class Difference:
    """v = θ_ref − θ, perhaps without what a softmax never sees.

    Args:
        model: the model being trained.
        subset: its scored parameters.
        reference: weights of the same shapes.
        shift: project out the vector that is common to all classes.

    Raises:
        ReferenceMismatchError: model and reference do not fit.
        AlignmentError: ``shift``, and the scored parameters are no head of classes.

    Example:
        >>> from gradmimic.direction import choose
        >>> from gradmimic.reference import load_reference
        >>> layer, better = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(layer.weight), nn.init.ones_(better.weight)
        >>> subset, weights = choose(layer), load_reference(better)
        >>> Difference(layer, subset, weights).direction().tensors["weight"].tolist()
        [[1.0], [1.0]]
        >>> Difference(layer, subset, weights, shift=True).direction().tensors["weight"].tolist()
        [[0.0], [0.0]]
    """

    def __init__(
        self, model: nn.Module, subset: Subset, reference: Reference, *, shift: bool = False
    ) -> None:
        self.name = "shift" if shift else "none"
        self._model, self._subset, self._reference = model, subset, reference
        if shift:
            scored_linear(subset, "shift")
        self._target = reference.match(model, subset)

    def direction(self) -> Direction:
        """Return v; raises where it is zero once its norm is asked for."""
        if _moved(self._subset, self._target):
            self._target = self._reference.match(self._model, self._subset)
        v = direction(self._subset, self._target)
        return without_shift(v) if self.name == "shift" else v

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See nothing: weights are all there is to know."""
        yield

    def observe(self, ids: Any | None) -> None:
        """Learn nothing."""


class Rotation(Difference):
    """v = R θ_ref − θ, with R taken again every few steps.

    Args:
        model: the model being trained, whose scored parameters are projections into one space.
        subset: these parameters, two or more matrices: all that map into that space, or the
            rotation changes what the model computes.
        reference: their better counterparts; the space may be of another width.

    Raises:
        ReferenceMismatchError: model and reference do not fit.
        AlignmentError: the parameters do not project into one space.
    """

    def __init__(self, model: nn.Module, subset: Subset, reference: Reference) -> None:
        self.name = "rotation"
        self._model, self._subset, self._reference = model, subset, reference
        self._space = common_space(subset)
        self._far = reference.match(model, subset, free=self._space)
        self._steps = 0

    def direction(self) -> Direction:
        """Return v, having turned the reference again where it is time."""
        if _moved(self._subset, self._far):
            self._far = self._reference.match(self._model, self._subset, free=self._space)
            self._steps = 0
        if self._steps % EVERY == 0:
            self._target = rotated(self._far, self._subset, self._space)
        self._steps += 1
        return direction(self._subset, self._target)


def without_shift(v: Direction) -> Direction:
    """Project out of v what adds one vector to every class row.

    v_k ← v_k − (1/K) Σ_j v_j

    Args:
        v: over a head's weight ``[K, d]`` and perhaps bias ``[K]``.

    Returns:
        A direction along which softmax losses change as along v, and no longer than it.

    Example:
        >>> without_shift(Direction({"bias": torch.tensor([1.0, 3.0])})).tensors["bias"]
        tensor([-1.,  1.])
    """
    return Direction({name: part - part.mean(0) for name, part in v.tensors.items()})


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
    reference: Mapping[str, Tensor], subset: Subset, space: Mapping[str, int]
) -> dict[str, Tensor]:
    """Turn the reference's projections together to where they lie nearest to the current ones.

    R = argmin ‖θ − R θ_ref‖_F = U Vᵀ  with  θ θ_refᵀ = U S Vᵀ,  [e, e_ref], (semi-)orthogonal

    Args:
        reference: θ_ref by name, in a space of e_ref dimensions.
        subset: the scored parameters, θ, in one of e.
        space: the dimension of each parameter that lies in the space; the others stay.

    Returns:
        R θ_ref, shaped like θ. For e_ref > e, where the distance has no such solution, R maximises
        ⟨θ, R θ_ref⟩, and the dimensions that help least are dropped.

    Source:
        Schönemann 1966, the orthogonal Procrustes problem.

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
    product = sum(
        _rows(theta[name], at) @ _rows(reference[name], at).T.to(theta[name].device)
        for name, at in space.items()
    )  # [e, e_ref]
    assert isinstance(product, Tensor)  # noqa: S101  of two matrices at least
    u, _, vt = torch.linalg.svd(product, full_matrices=False)
    r = u @ vt
    turned = dict(reference)
    for name, at in space.items():
        part = reference[name].to(theta[name].device)
        rows = (r @ _rows(part, at)).to(theta[name].dtype)
        turned[name] = (rows.T if at == 1 else rows).reshape(theta[name].shape)
    return turned


def scored_linear(subset: Subset, why: str) -> nn.Linear:
    """Return the one linear layer whose parameters are scored.

    Raises:
        AlignmentError: something else is scored.
    """
    modules = scored_linears(subset, why)
    if len(modules) > 1:
        raise AlignmentError(
            f"align={why!r} expects one linear layer, params= names {len(modules)}."
        )
    return next(iter(modules.values()))


def scored_linears(subset: Subset, why: str) -> dict[str, nn.Linear]:
    """Return the linear layers whose parameters are scored, by name.

    Raises:
        AlignmentError: a scored parameter belongs to another kind of module, or a layer's other
            parameter is not scored.
    """
    modules = {}
    for use in subset.uses:
        if not isinstance(use.module, nn.Linear):
            raise AlignmentError(
                f"align={why!r} expects the scored parameters to be of linear layers; {use.name} "
                f"belongs to {type(use.module).__name__}. Name others with params=."
            )
        modules[use.name.rpartition(".")[0]] = use.module
    for name, module in modules.items():
        own = {use.attribute for use in subset.uses if use.module is module}
        held = {key for key, value in module._parameters.items() if value is not None}
        if own != held:
            raise AlignmentError(
                f"align={why!r} expects the whole layer {name!r} to be scored, {sorted(held)}; "
                f"params= names {sorted(own)} of it."
            )
    return modules


def _rows(part: Tensor, at: int) -> Tensor:
    """Bring a projection to ``[e, d]``, in single precision at least."""
    wide = part.detach().to(torch.promote_types(part.dtype, torch.float32))
    return wide.reshape(-1, 1) if wide.ndim == 1 else wide.T if at == 1 else wide


def _moved(subset: Subset, target: Mapping[str, Tensor]) -> bool:
    """Tell whether ``model.to(…)`` has moved the parameters away since the last step."""
    return any(
        parameter.device != target[name].device or parameter.dtype != target[name].dtype
        for name, parameter in subset.parameters.items()
    )
