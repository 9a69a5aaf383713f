"""What launchers put around a model: DDP, ``torch.compile``, FSDP2.

DDP             the module inside is scored; tangents are carried past DDP's own functions
torch.compile   the head stays out of the compiled graph, so that its hooks run at every step
FSDP2           a sharded parameter is gathered before it is compared with the reference's
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gradmimic.errors import ParameterError

_NODES = 1000  # of the losses' graph, at most, in which DDP is looked for


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DDP and ``torch.compile``, whose names are the user's own.

    Args:
        model: any module.

    Raises:
        ParameterError: the wrapper hides the parameters, or runs copies of the module.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> unwrapped(layer) is layer
        True
    """
    kind = type(model).__name__
    if isinstance(model, DataParallel) or kind == "FullyShardedDataParallel":
        instead = "FSDP2, torch.distributed.fsdp.fully_shard"
        if isinstance(model, DataParallel):
            instead = "DistributedDataParallel"
        raise ParameterError(
            f"The model is wrapped in {kind}, under which its head's own parameters cannot be "
            f"read. Use {instead}."
        )
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)
    if kind == "OptimizedModule":  # by name: torch._dynamo takes a second to import
        return unwrapped(model._modules["_orig_mod"])  # type: ignore[arg-type]
    return model


def inside_ddp(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, compiled or not; another one as it is."""
    return inside_ddp(model.module) if isinstance(model, DistributedDataParallel) else model


def keep_out_of_graphs(modules: Iterable[nn.Module]) -> None:
    """Let modules run as written, hooks included, inside whatever is compiled.

    Compiled code does not look again whether a module has got new hooks. ``_compiled_call_impl`` is
    where ``nn.Module.compile`` itself puts what runs in place of a call; copies and checkpoints
    leave it behind. Nothing happens where nothing can be compiled yet.

    Args:
        modules: what is scored.
    """
    if "torch._dynamo" not in sys.modules:
        return
    for module in modules:
        if module._compiled_call_impl is not None and not compiles_itself(module):
            continue  # a new function would be compiled around anew
        call = module._call_impl
        try:
            eager = torch.compiler.disable(call, reason="GradMimic scores this layer by its hooks")
        except TypeError:  # torch 2.6 takes no reason
            eager = torch.compiler.disable(call)
        eager._of_gradmimic = True
        module._compiled_call_impl = eager


def compiles_itself(module: nn.Module) -> bool:
    """Tell whether ``Module.compile`` has taken over a module's calls, and we have not."""
    call = module._compiled_call_impl
    return call is not None and not hasattr(call, "_of_gradmimic")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is sharded over ranks in full: a collective; others as they are.

    Example:
        >>> whole(torch.ones(1))
        tensor([1.])
    """
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return gathered


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Cut a tensor, the same on every rank, as FSDP2 has cut a parameter; others as they are."""
    if not is_sharded(parameter) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)  # noqa: S101
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, without importing what defines it."""
    return hasattr(tensor, "full_tensor")


@contextmanager
def past_ddp(model: nn.Module) -> Iterator[None]:
    """Carry tangents past DDP's identity function of its outputs, which has no jvp.

    DDP passes them through it where it looks for unused parameters or the graph is static.

    Args:
        model: what the user calls; anything but DDP is left alone.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    kept: list[Tensor | None] = []

    def take(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        kept[:] = [_tangent(leaf) for leaf in tree_flatten(output)[0]]
        if all(tangent is None for tangent in kept):
            return None
        return tree_map(_plain, output)

    def give(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if all(tangent is None for tangent in kept):
            return None
        leaves, tree = tree_flatten(output)
        pairs = zip(leaves, kept, strict=True)
        return tree_unflatten([x if t is None else fwAD.make_dual(x, t) for x, t in pairs], tree)

    with ExitStack() as hooks:
        hooks.callback(model.module.register_forward_hook(take).remove)
        hooks.callback(model.register_forward_hook(give).remove)
        yield


@contextmanager
def unheard_by_ddp(losses: Tensor) -> Iterator[None]:
    """Let gradients be taken for scores without DDP mistaking them for the training's.

    With a static graph DDP takes the first gradient that passes its outputs for the beginning of
    the first backward pass, and would reduce before there is anything to reduce.

    Args:
        losses: with their graph.
    """
    waiting = [
        ddp
        for ddp in _ddp_below(losses)
        if ddp.static_graph and not ddp._static_graph_delay_allreduce_enqueued
    ]
    try:
        for ddp in waiting:
            ddp._static_graph_delay_allreduce_enqueued = True
        yield
    finally:
        for ddp in waiting:
            ddp._static_graph_delay_allreduce_enqueued = False


def _ddp_below(losses: Tensor) -> list[DistributedDataParallel]:
    """Return the DDP modules whose outputs the losses were made of; between lies the loss alone."""
    if not dist.is_available() or not dist.is_initialized() or losses.grad_fn is None:
        return []
    found, seen, queue = [], {losses.grad_fn}, deque([losses.grad_fn])
    while queue and len(seen) < _NODES:
        node = queue.popleft()
        if node.name() == "_DDPSinkBackward":
            found.append(node.ddp_weakref())  # type: ignore[attr-defined]
            continue
        below = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= below
        queue.extend(below)
    return found


def _tangent(value: Any) -> Tensor | None:
    return fwAD.unpack_dual(value).tangent if isinstance(value, Tensor) else None


def _plain(value: Any) -> Any:
    return fwAD.unpack_dual(value).primal if isinstance(value, Tensor) else value
