"""A forward pass at other weights, θ + ε v, that leaves no trace in the model.

What a pass without gradients may change, and how each is put back:

    weights             another tensor in the parameter's place; or, where code holds on to the
                        parameter's storage (compiled, sharded), its values, and back bit for bit
    random numbers      the pass draws the same ones as the pass beside it: dropout masks are shared
    buffers             running statistics are copied before and put back after
    autocast's cache    off, else the pass beside it would read casts of these weights
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gradmimic.direction import Direction, Subset
from gradmimic.errors import UnsupportedOperationError
from gradmimic.wrapped import compiles_itself, sharded_like


@contextmanager
def moved(subset: Subset, direction: Direction, step: float, *, in_place: bool) -> Iterator[None]:
    """Let the model read θ + ``step`` · v for its scored parameters.

    The values are written without a trace in the version counters: they are back before autograd
    can look, so a graph that saved a weight stays valid.

    Args:
        subset: the scored parameters θ.
        direction: v.
        step: how far to go; 1 is the reference.
        in_place: write values, where ``holds_storages``.

    Raises:
        UnsupportedOperationError: values are written in place, and would move uses of a parameter
            that are not scored.

    Example:
        >>> from gradmimic.direction import choose, direction
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 4})
        >>> with moved(subset, v, 0.5, in_place=False):
        ...     there = layer.weight.item()
        >>> round(there - layer.weight.item(), 4)
        2.0
    """
    theta = {name: parameter.detach() for name, parameter in subset.parameters.items()}
    if not in_place:
        there = {
            name: torch.add(here, direction.tensors[name], alpha=step)
            for name, here in theta.items()
        }
        with subset.swapped(there):
            yield
        return
    _refuse_tied(subset)
    kept = {name: here.clone() for name, here in theta.items()}
    try:
        for name, parameter in subset.parameters.items():
            parameter.data.add_(sharded_like(direction.tensors[name], parameter), alpha=step)
        _gather_anew(subset.model)
        yield
    finally:
        for name, parameter in subset.parameters.items():
            parameter.data.copy_(kept[name])
        _gather_anew(subset.model)


@contextmanager
def without_trace(model: nn.Module, *, same_draws: bool = True) -> Iterator[None]:
    """Run passes that leave buffers, random numbers and autocast's cache as they were.

    Args:
        model: whose passes run.
        same_draws: put the random numbers back too; False for the last of several passes.
    """
    cached = torch.is_autocast_cache_enabled()
    kept: list[tuple[Tensor, Tensor]] = []
    if any(module.training for module in model.modules()):
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with ExitStack() as stack, torch.no_grad():
        if same_draws:
            kinds = _accelerators(model)
            for kind, devices in kinds.items():
                stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
            if not kinds:
                stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            for buffer, value in kept:
                buffer.copy_(value)


def holds_storages(subset: Subset) -> bool:
    """Tell whether code holds on to the parameters' storages, so that only values may change."""
    return is_compiled(subset.called) or any(
        type(parameter.detach()) is not Tensor for parameter in subset.parameters.values()
    )


def is_compiled(model: nn.Module) -> bool:
    """Tell whether ``torch.compile`` or ``Module.compile`` has taken over a part of the model."""
    return any(
        # by its one child's name: the class itself lies in torch._dynamo, slow to import
        "_orig_mod" in module._modules or compiles_itself(module)
        for module in model.modules()
    )


def tied(subset: Subset) -> list[str]:
    """Name the scored parameters that the model also uses where they are not scored."""
    scored = {id(parameter): name for name, parameter in subset.parameters.items()}
    places = {(id(use.module), use.attribute) for use in subset.uses}
    return [
        scored[id(parameter)]
        for module in subset.model.modules()
        for attribute, parameter in module._parameters.items()
        if id(parameter) in scored and (id(module), attribute) not in places
    ]


def _gather_anew(model: nn.Module) -> None:
    """Let sharded modules forget the weights that they gathered for the pass before."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)  # FSDP2's
        if callable(reshard):
            reshard()


def _refuse_tied(subset: Subset) -> None:
    names = tied(subset)
    if names:
        raise UnsupportedOperationError(
            f"{names[0]!r} is scored in one of its uses only, and this model is compiled or "
            "sharded, so a pass at other weights would move all of them. Score the parameter in "
            "all its uses (params='all' or patterns), use engine='forward', or do not compile."
        )


def _accelerators(model: nn.Module) -> Mapping[str, list[int]]:
    """Return the devices other than the CPU that the model lies on, by type."""
    found: dict[str, set[int]] = {}
    for parameter in model.parameters():
        device = parameter.device
        if device.type not in ("cpu", "meta"):
            found.setdefault(device.type, set()).add(device.index or 0)
    return {kind: sorted(indices) for kind, indices in found.items()}
