"""The arguments of an operation, and which of them are parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Function = Callable[..., Any]


@dataclass(eq=False)
class Read:
    """A tensor made of parameters alone, as an operation reads it.

    Args:
        tensor: the parameter, its stand-in, or what was made of parameters.
        tangent: v, or its image; None where nothing scored is in it.
        name: of a parameter in it.
        is_parameter: whether it is one.
        sources: further edges of the autograd graph that it came from.
    """

    tensor: Tensor
    tangent: Tensor | None
    name: str
    is_parameter: bool = True
    sources: tuple[Any, ...] = ()


def replaced(
    args: Sequence[Any], named: Mapping[str, Any], tensors: Mapping[int, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put other tensors in the place of some, and detach the rest."""

    def one(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tensors[id(x)] if id(x) in tensors else x.detach()
        if type(x) in (list, tuple):
            return type(x)(one(item) for item in x)
        return x

    return tuple(one(x) for x in args), {name: one(x) for name, x in named.items()}


def flat(values: Any) -> list[Any]:
    """List what lies in (nested) lists and tuples."""
    if isinstance(values, list | tuple):
        return [x for value in values for x in flat(value)]
    return [values]


def function_name(function: Function) -> str:
    """Name an operation as users know it."""
    return str(getattr(function, "__name__", function))


def floats(x: Any) -> bool:
    """Tell whether it is a floating point tensor."""
    return isinstance(x, Tensor) and x.is_floating_point()
