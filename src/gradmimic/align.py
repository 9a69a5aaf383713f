"""The nearest equivalent reference: many weights compute one function, and v needs the near ones.

    none        v = θ_ref − θ
    shift       v = P(θ_ref − θ)      P v_k = v_k − (1/K) Σ_j v_j over the class rows k of a head:
                                      softmax never sees one vector added to all of them
    rotation    v = R θ_ref − θ       the reference turned to where it says the most alike:
                                      ``gradmimic.rotation``
    transport   v = W*(t) − W(t)      the reference's outputs regressed on the current features:
                                      ``gradmimic.transport``

Without it, two models trained from different initial weights share no direction and the score is at
chance, or inverted.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from gradmimic.direction import Direction, Subset, direction
from gradmimic.errors import AlignmentError
from gradmimic.reference import Reference


class Alignment(Protocol):
    """Where the nearest equivalent reference lies, as the weights move."""

    name: str
    first: int
    """Passes to learn from before the direction is worth anything; 0 where none is learned from."""

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

    first = 0

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
        if moved(self._subset, self._target):
            self._target = self._reference.match(self._model, self._subset)
        v = direction(self._subset, self._target)
        return without_shift(v) if self.name == "shift" else v

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See nothing: weights are all there is to know."""
        yield

    def observe(self, ids: Any | None) -> None:
        """Learn nothing."""


def without_shift(v: Direction) -> Direction:
    """Project out of v what adds one vector to every class row.

    v_k ← v_k − (1/K) Σ_j v_j

    Args:
        v: over a head's weight ``[K, d]`` and perhaps bias ``[K]``.

    Returns:
        A direction along which softmax losses change as along v, and no longer than it.

    Example:
        >>> import torch
        >>> without_shift(Direction({"bias": torch.tensor([1.0, 3.0])})).tensors["bias"]
        tensor([-1.,  1.])
    """
    return Direction({name: part - part.mean(0) for name, part in v.tensors.items()})


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


def moved(subset: Subset, target: Mapping[str, Tensor]) -> bool:
    """Tell whether ``model.to(…)`` has moved the parameters away since the last step."""
    return any(
        parameter.device != target[name].device or parameter.dtype != target[name].dtype
        for name, parameter in subset.parameters.items()
    )
