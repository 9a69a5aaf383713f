"""Engines: ways to the derivative of every sample's loss along the direction, one file each.

An engine is a context manager around one forward pass, in which the model reads stand-ins for its
scored parameters. After the pass it turns the losses into their derivatives ``[b]`` along v.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from torch import Tensor

from gradmimic.direction import Direction, Subset
from gradmimic.engines.auto import AutoEngine
from gradmimic.engines.forward import ForwardEngine
from gradmimic.engines.ghost import Backward, GhostEngine
from gradmimic.engines.oracle import OracleEngine
from gradmimic.engines.secant import SecantEngine
from gradmimic.errors import ParameterError


class Engine(Protocol):
    """What every engine does: stand-ins go in, one forward pass runs, derivatives come out."""

    @property
    def stand_ins(self) -> dict[str, Tensor]:
        """What the model reads for each scored parameter in the pass; gradients flow through."""

    def __init__(self, subset: Subset, direction: Direction) -> None: ...

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, d/dε ℓ_i(θ + ε v) at ε = 0; once, after the pass."""

    def along(self, values: Tensor) -> Tensor:
        """Return d/dε of any tensor of the pass, of its shape; the pass goes on."""

    def derivative_beside(
        self, losses: Tensor, canaries: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        """Return ``[b + c]``: the derivatives of losses, and of canaries made of some of them."""

    def weighted(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_i w_i ℓ_i; once, after ``derivative``."""

    def close(self) -> None:
        """Drop what the pass holds; safe to call at any time."""


ENGINES: dict[str, type[Engine]] = {
    "forward": ForwardEngine,
    "ghost": GhostEngine,
    "secant": SecantEngine,
    "oracle": OracleEngine,
}
"""Every engine by its name."""


def pick_engine(name: str, backward: Backward = "never") -> Callable[[Subset, Direction], Engine]:
    """Return the engine of this name.

    Args:
        name: a key of ``ENGINES``, or ``"auto"``, which picks one.
        backward: whether ``ghost`` keeps what it takes to step with or without a second backward
            pass; by default it keeps nothing, as for scores alone.

    Returns:
        What makes the engine of one pass.

    Raises:
        ParameterError: there is no such engine.

    Example:
        >>> pick_engine("oracle").__name__
        'OracleEngine'
    """
    if name == "auto":
        return partial(AutoEngine, backward=backward)
    if name == "ghost":
        return partial(GhostEngine, backward=backward)
    if name not in ENGINES:
        known = ", ".join(["auto", *ENGINES])
        raise ParameterError(f"engine={name!r} is unknown; expected one of {known}.")
    return ENGINES[name]
