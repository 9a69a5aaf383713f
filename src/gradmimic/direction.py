"""The direction v = θ_ref − θ, over the parameters that are scored.

A parameter is scored in the *uses* whose names are chosen. A head tied to the embedding (GPT-2) has
two uses, ``lm_head.weight`` and ``transformer.wte.weight``, of one parameter: ``"head"`` scores the
first alone, else the derivative would run through the whole trunk. However many of its uses are
scored, a parameter counts once in ‖v‖.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from gradmimic.errors import DirectionError, ParameterError, UsageError, listed
from gradmimic.wrapped import is_sharded, whole


class Choice:
    """Scored parameters that are no choice by name: what makes the subset itself."""

    def subset(self, model: nn.Module, called: nn.Module) -> "Subset":
        """Return S of this model; ``called`` is as in :func:`choose`."""
        raise NotImplementedError


Params = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | Choice


@dataclass(frozen=True)
class Use:
    """One place where a module holds a scored parameter: ``module.<attribute>``."""

    module: nn.Module
    attribute: str
    name: str  # the parameter's one name, shared by all its uses


@dataclass(frozen=True)
class Subset:
    """S, the scored parameters of a model, and the places where they are used.

    Args:
        parameters: each scored parameter once, by its first chosen name.
        uses: where the model reads them.
        model: the module that holds them all, whose forward pass is scored.
        called: what the user calls for it: the module itself, or what compiles it.
        is_head: whether they are the last layer, with nothing but the loss above it.
    """

    parameters: Mapping[str, nn.Parameter]
    uses: tuple[Use, ...]
    model: nn.Module
    called: nn.Module
    is_head: bool = False

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that hold a scored parameter, each once."""
        return tuple({id(use.module): use.module for use in self.uses}.values())

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 keeps a part of them on each rank."""
        return any(is_sharded(parameter) for parameter in self.parameters.values())

    def check_held(self) -> None:
        """Raise where the model has got other parameters since these were chosen."""
        for use in self.uses:
            parameter = self.parameters[use.name]
            # FSDP2 itself exchanges its parameters for gathered ones while it computes.
            if use.module._parameters[use.attribute] is not parameter and not is_sharded(parameter):
                raise UsageError(
                    f"The model holds another {use.name} than when its scored parameters were "
                    "chosen, so scores would be of weights that train no more. Build GradMimic "
                    "after whatever replaces parameters: fully_shard, accelerator.prepare, "
                    "load_state_dict(assign=True)."
                )

    def toward(self, reference: Mapping[str, Tensor]) -> "Direction":
        """Return v, from the current weights to a reference's that :meth:`Reference.match` gave."""
        self.check_held()
        tensors = {
            name: reference[name] - whole(parameter.detach())
            for name, parameter in self.parameters.items()
        }
        return Direction(tensors)

    @contextmanager
    def read_again(self) -> Iterator[None]:
        """Make code that was compiled without our hooks look at the scored modules again.

        It asks whether a parameter is another tensor than before, but not whether hooks have come.
        Only a head is scored by hooks.
        """
        held = self.parameters
        own = all(use.module._parameters[use.attribute] is held[use.name] for use in self.uses)
        if "torch._dynamo" not in sys.modules or not (self.is_head and own) or self.sharded:
            yield
            return
        with self.swapped({name: parameter.view_as(parameter) for name, parameter in held.items()}):
            yield

    @contextmanager
    def swapped(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model read ``tensors`` for its parameters; put those back whatever happens."""
        originals = [use.module._parameters[use.attribute] for use in self.uses]
        try:
            for use in self.uses:
                # The registry, not setattr: that refuses a tensor which is not an nn.Parameter.
                use.module._parameters[use.attribute] = tensors[use.name]  # type: ignore[assignment]
            yield
        finally:
            for use, original in zip(self.uses, originals, strict=True):
                use.module._parameters[use.attribute] = original


@dataclass(frozen=True, eq=False)
class Direction:
    """v, one tensor for each scored parameter, shaped like it.

    Args:
        tensors: v by the parameters' names.
        length: ‖v‖, where they stand for a v of another length.
    """

    tensors: Mapping[str, Tensor]
    length: float | None = None

    @cached_property
    def norm(self) -> float:
        """‖v‖ over all parameters together, > 0.

        Raises:
            DirectionError: it is zero or not finite, so nothing can be projected on v.
        """
        norm = self._taken() if self.length is None else self.length
        if norm == 0:
            raise DirectionError(
                "The direction is zero: the reference's weights equal the current ones over "
                f"{listed(self.tensors)}. Expected a better model's weights; check that the "
                "reference is not a copy of the model, or score other parameters with params=."
            )
        if not math.isfinite(norm):
            raise DirectionError(
                f"The direction's norm is {norm}: the model's or the reference's weights over "
                f"{listed(self.tensors)} hold NaN or infinite values. Check both."
            )
        return norm

    def _taken(self) -> float:
        norms = [torch.linalg.vector_norm(tensor) for tensor in self.tensors.values()]
        if len(norms) > 1:  # a model may be spread over devices; its direction has one length
            norms = [torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))]
        return float(norms[0].item())


def find_head(model: nn.Module) -> str:
    """Name the last module, in the order of registration, that holds parameters of its own.

    That is ``fc``, ``classifier``, ``head``, ``heads.head``, ``lm_head`` in the common models. Only
    a forward pass tells which module is *used* last: :class:`LastUsed` checks this guess.

    Args:
        model: any module.

    Returns:
        The module's name; ``""`` is the model itself.

    Raises:
        ParameterError: the model has no parameters.

    Example:
        >>> find_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Softmax(1)))
        '2'
    """
    names: list[str] = [name for name, module in model.named_modules() if _holds_parameters(module)]
    if not names:
        raise ParameterError(f"{type(model).__name__} has no parameters, so nothing can be scored.")
    return names[-1]


class LastUsed:
    """Watch one forward pass of a model for the last module with parameters that starts to run."""

    def __init__(self, model: nn.Module) -> None:
        self.name: str | None = None  # stays None where no module was called
        self._hooks = [
            module.register_forward_pre_hook(self._record(name))
            for name, module in model.named_modules()
            if _holds_parameters(module)
        ]

    def _record(self, name: str) -> Callable[[nn.Module, object], None]:
        def hook(_module: nn.Module, _inputs: object) -> None:
            self.name = name

        return hook

    def stop(self) -> None:
        """Take the hooks off the model again."""
        for hook in self._hooks:
            hook.remove()


def choose(
    model: nn.Module,
    params: Params = "head",
    *,
    head: str | None = None,
    called: nn.Module | None = None,
) -> Subset:
    """Choose the parameters that are scored.

    Args:
        model: the model being trained.
        params: ``"head"``, the last module with parameters; ``"all"``; one or more glob patterns
            over the names, such as ``"encoder.layers.11.*"``; a callable
            ``(name, parameter) -> bool``; or a :class:`Choice`. Frozen parameters can be scored
            like any other.
        head: the head's name where it is known; found by :func:`find_head` otherwise.
        called: what the user calls, where that is not the model itself.

    Returns:
        The subset S, never empty.

    Raises:
        ParameterError: nothing matches; the message lists names that would.

    Example:
        >>> list(choose(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "1.*").parameters)
        ['1.weight', '1.bias']
    """
    if isinstance(params, Choice):
        return params.subset(model, model if called is None else called)
    if params == "head":
        prefix = find_head(model) if head is None else head
        own = re.compile(re.escape(f"{prefix}." if prefix else "") + r"[^.]+")
        chosen: Callable[[str, nn.Parameter], bool] = lambda name, _: bool(own.fullmatch(name))
    elif params == "all":
        chosen = lambda _name, _parameter: True
    elif callable(params):
        chosen = params
    else:
        patterns = [params] if isinstance(params, str) else list(params)
        chosen = lambda name, _: any(fnmatchcase(name, pattern) for pattern in patterns)

    first_name: dict[int, str] = {}
    parameters: dict[str, nn.Parameter] = {}
    uses = []
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            if parameter is None or not chosen(name, parameter):
                continue
            canonical = first_name.setdefault(id(parameter), name)
            parameters[canonical] = parameter
            uses.append(Use(module, attribute, canonical))
    if not uses:
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        raise ParameterError(
            f"params={params!r} matches no parameter of {type(model).__name__}. It expects 'head', "
            f"'all', glob patterns over the parameters' names, or a callable (name, parameter) -> "
            f"bool. The names are: {listed(names)}."
        )
    return Subset(
        parameters, tuple(uses), model, model if called is None else called, params == "head"
    )


def direction(subset: Subset, reference: Mapping[str, Tensor]) -> Direction:
    """Take the direction from the current weights to the reference's.

    v = θ_ref,S − θ_S

    Args:
        subset: the scored parameters, θ_S.
        reference: θ_ref,S by the same names, of the same shapes, dtypes and devices
            (:meth:`gradmimic.reference.Reference.match` brings any reference there).

    Returns:
        v, with its norm, which is taken, and checked, when it is first asked for.

    Source: arXiv 2501.06708, section 3.1.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> direction(choose(layer), {"weight": torch.tensor([[3.0, 4.0]])}).norm
        5.0
    """
    return subset.toward(reference)


def _holds_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())
