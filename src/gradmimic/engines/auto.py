"""Engine ``auto``: the cheapest exact way for what is scored and what the model holds.

    the head                                  forward: dual numbers enter at the last layer
    scores of more, without a step            forward: nothing is recorded, so it is the cheapest
    a step, and samples do not interact       ghost
    batch statistics, contrastive losses      forward
    an operation without forward mode         ghost; else two backward passes, or one per sample

Whether samples interact is only seen in a pass. A pass that ``ghost`` gives up is finished by the
reverse mode from the graph that is there, and the next one starts with another engine.
"""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradmimic.direction import Direction, Subset
from gradmimic.engines.base import Pass
from gradmimic.engines.forward import ForwardEngine
from gradmimic.engines.ghost import Backward, GhostEngine
from gradmimic.engines.graph import walk
from gradmimic.engines.samples import over_the_batch
from gradmimic.engines.transposed import TransposedEngine
from gradmimic.errors import GradMimicError, LossError, UnsupportedOperationError

_logger = logging.getLogger("gradmimic")
_WITHOUT_FORWARD_MODE = ("EmbeddingBag", "Cdist", "CtcLoss", "GridSampler", "MkldnnRnn", "CudnnRnn")
"""Parts of names of autograd nodes whose operations torch cannot differentiate in forward mode."""
# The ways from the cheapest on. A difference of two forward passes has its place before the last.
ORDER = ("ghost", "forward", "transposed")
_settled: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], str]] = WeakKeyDictionary()


class AutoEngine(Pass):
    """One pass by the engine that suits it.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.
        backward: as of :class:`GhostEngine`.

    Attributes:
        name: of the engine in use.

    Example:
        >>> from gradmimic.direction import choose, direction
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer, "all")
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> with AutoEngine(subset, v) as engine:
        ...     losses = layer(torch.tensor([[1.0, 2.0]])).squeeze(1)
        >>> engine.name, engine.derivative(losses)
        ('ghost', tensor([3.]))
    """

    def __init__(self, subset: Subset, direction: Direction, backward: Backward = "twice") -> None:
        self._subset, self._direction = subset, direction
        self._scoring = backward == "never"
        self.name = self._pick()
        self._engine: GhostEngine | ForwardEngine | TransposedEngine
        if self.name == "ghost":
            self._engine = GhostEngine(subset, direction, backward)
        elif self.name == "forward":
            self._engine = ForwardEngine(subset, direction)
        else:
            self._engine = TransposedEngine(subset, direction)

    @property
    def stand_ins(self) -> dict[str, Tensor]:
        """What the model reads for each scored parameter in the pass."""
        return self._engine.stand_ins

    def _pick(self) -> str:
        if self._subset.is_head or self._subset.sharded:  # forward says what FSDP2 leaves
            return "forward"
        settled = self._settled()
        if settled is not None and (settled != "ghost" or self._scoring):
            return settled
        if self._scoring:
            return "forward"
        for name, _ in over_the_batch(self._subset.model):
            self._say("forward", f"{name} normalizes by the statistics of the batch")
            return "forward"
        if settled is None:
            self._settle("ghost")
            _logger.info(
                "gradmimic: engine='auto' uses 'ghost' for %d scored parameters: exact, by the "
                "gradients of outputs.",
                len(self._subset.parameters),
            )
        return "ghost"

    def __enter__(self) -> "AutoEngine":
        self._engine.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._engine.__exit__(kind, error, trace)
        except UnsupportedOperationError as refused:
            first = self._scoring and self.name == "forward"  # whoever runs the pass again gets it
            self._settle("ghost" if first else "transposed", str(refused))
            raise

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, the losses' derivative along v."""
        try:
            return self._engine.derivative(losses)
        except (UnsupportedOperationError, LossError) as error:
            return self._take_over(losses, error).derivative(losses)

    def along(self, values: Tensor) -> Tensor:
        """Return the derivative along v of any tensor of the pass, of its shape."""
        try:
            return self._engine.along(values)
        except (UnsupportedOperationError, LossError) as error:
            return self._take_over(values, error).along(values)

    def derivative_beside(
        self, losses: Tensor, canaries: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        """Return ``[b + c]``, with those of canaries made of some of the samples."""
        try:
            return self._engine.derivative_beside(losses, canaries, rows)
        except (UnsupportedOperationError, LossError) as error:
            return self._take_over(losses, error).derivative_beside(losses, canaries, rows)

    def _take_over(self, losses: Tensor, error: GradMimicError) -> TransposedEngine:
        """Let the reverse mode finish the pass, and another engine begin the next."""
        if self._scoring and isinstance(self._engine, ForwardEngine) and not self._subset.is_head:
            self._settle("ghost")  # whoever runs the pass again gets it
            raise UnsupportedOperationError(str(error)) from error
        if not isinstance(self._engine, GhostEngine) or not losses.requires_grad:
            raise error
        nodes = walk([losses], []).nodes
        stuck = self._scoring or any(map(_no_forward_mode, nodes))
        self._settle("transposed" if stuck else "forward", str(error))
        stand_ins = self._engine.stand_ins
        self._engine.close()
        self._engine = TransposedEngine.taking_over(self._subset, self._direction, stand_ins)
        self.name = "transposed"
        return self._engine

    def weighted(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_i w_i ℓ_i."""
        return self._engine.weighted(losses, weights)

    def close(self) -> None:
        """Drop what the pass holds."""
        self._engine.close()

    def _key(self) -> tuple[str, ...]:
        return ("scores" if self._scoring else "steps", *self._subset.parameters)

    def _settled(self) -> str | None:
        model = self._subset.model
        return None if model is None else _settled.get(model, {}).get(self._key())

    def _settle(self, name: str, why: str | None = None) -> None:
        model = self._subset.model
        if model is not None:
            _settled.setdefault(model, {})[self._key()] = name
        if why is not None:
            self._say(name, why)

    def _say(self, name: str, why: str) -> None:
        """Say it once for a model."""
        model = self._subset.model
        said = _said.setdefault(model, set()) if model is not None else set()
        if (name, self._key()) not in said:
            said.add((name, self._key()))
            _logger.warning("gradmimic: engine='auto' goes on with %r. %s", name, why)


_said: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()


def _no_forward_mode(node: Any) -> bool:
    own = getattr(node, "_forward_cls", None)  # of a custom autograd.Function
    if own is not None:
        return bool(own.jvp is torch.autograd.Function.jvp)
    return any(part in node.name() for part in _WITHOUT_FORWARD_MODE)
