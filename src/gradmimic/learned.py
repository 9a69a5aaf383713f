"""What objects have learned in the course of a training, as plain data to be saved and put back.

    class Spread:
        LEARNED = ("_mean", "_count")

Tensors, arrays, numbers, text, lists and dictionaries of them, and objects that name their own.
"""

from typing import Any

import numpy as np
import torch

_ARRAY = "numpy array"


def learned(thing: Any) -> dict[str, Any]:
    """Return what an object has learned; what it says changes with it no more.

    Args:
        thing: names its attributes in ``LEARNED``.

    Returns:
        Data that ``torch.load(…, weights_only=True)`` reads.

    Example:
        >>> class Count:
        ...     LEARNED = ("n",)
        ...     n = 3
        >>> learned(Count())
        {'n': 3}
    """
    return {name: _plain(getattr(thing, name)) for name in thing.LEARNED}


def put_back(thing: Any, state: dict[str, Any], device: torch.device) -> None:
    """Let an object know again what :func:`learned` returned.

    Args:
        thing: of the same class, and made with the same arguments.
        state: that.
        device: where its tensors are to be.
    """
    for name, value in state.items():
        own = getattr(thing, name, None)
        if hasattr(own, "LEARNED"):
            put_back(own, value, device)
        else:
            setattr(thing, name, _as_it_was(value, device))


def _plain(value: Any) -> Any:
    if hasattr(value, "LEARNED"):
        return learned(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.tensor(value)}
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    return value


def _as_it_was(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].cpu().numpy()
        return {key: _as_it_was(own, device) for key, own in value.items()}
    if isinstance(value, list):
        return [_as_it_was(own, device) for own in value]
    return value
