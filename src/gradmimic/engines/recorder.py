"""See every use of a parameter in a forward pass, and keep what its derivative needs.

A tensor made of parameters alone (a transposed weight, a class token in as many rows as there are
samples) is followed with its tangent, until it meets data. There the operation is recorded: its
arguments, and a hook that tells the gradient of its output. The model computes what it always does.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradmimic.engines.arguments import Read, flat, function_name
from gradmimic.engines.local import dual
from gradmimic.engines.multi_head import attend, can_attend
from gradmimic.engines.operations import NORMS, SUMS, Call
from gradmimic.engines.random_state import RandomState
from gradmimic.errors import UnsupportedOperationError

_RANDOM = ("dropout", "lstm", "gru", "rnn", "attention", "rrelu", "gumbel", "bernoulli")
Arrived = Callable[[int, int, Tensor], None]


class Recorder(TorchFunctionMode):
    """While active, records the calls that bring parameters and data together.

    Args:
        reads: the parameters to watch, as the model reads them.
        arrived: called with the number of a call, that of its output, and that output's gradient,
            whenever a backward pass computes it.

    Attributes:
        calls: what was recorded, in order.
        rows: b, as far as the first input of the model tells; None before.
        refused: why the pass cannot be scored; None while it can.
        ungraded: a parameter that was used without gradients.
        once: whether the calls tell all about the gradients of the parameters. They do not where
            data that has gradients went into a tensor without samples, or was written over; nor are
            sparse gradients formed in that way.
    """

    def __init__(self, reads: Iterable[Read], arrived: Arrived) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.rows: int | None = None
        self.numbers: int | None = None
        self.refused: UnsupportedOperationError | None = None
        self.ungraded: str | None = None
        self.once = True
        self._reads = {id(read.tensor): read for read in reads}
        self._arrived = arrived
        self._hooks: list[Any] = []

    def see_input(self, values: Iterable[Any]) -> None:
        """Learn the batch size from the first call of the model."""
        if self.rows is None:
            first = next((x for x in flat(list(values)) if isinstance(x, Tensor) and x.ndim), None)
            if first is not None:
                self.rows, self.numbers = len(first), first.numel()

    def stop(self) -> None:
        """Take the hooks off the graph, and let go of the pass."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.calls, self._reads = [], [], {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one torch function, and record it where it reads a parameter."""
        kwargs = kwargs or {}
        reads = self._reads
        for x in args:
            if id(x) in reads or type(x) in (list, tuple):
                break
        else:
            if not any(id(x) in reads for x in kwargs.values()):
                return func(*args, **kwargs)
        found = {
            id(x): reads[id(x)] for x in flat([*args, *kwargs.values()]) if id(x) in reads
        }  # each once
        if not found:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward and can_attend(args, kwargs):
            with self:  # the linear layers inside it are seen one by one
                return attend(*args, **kwargs)
        return self._run(func, args, kwargs, list(found.values()))

    def _run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        own: list[Read],
    ) -> Any:
        if function_name(func) in ("__get__", "size", "dim", "numel", "detach", "requires_grad_"):
            return self._attribute(func, args, named, own)
        ids = {id(read.tensor) for read in own}
        inputs = [x for x in flat([*args, *named.values()]) if isinstance(x, Tensor)]
        data = [x for x in inputs if id(x) not in ids]
        sources = tuple(get_gradient_edge(x) for x in data if x.requires_grad)
        in_place = _in_place(func) and torch.is_grad_enabled()
        autocast = None
        kind = own[0].tensor.device.type
        if torch.is_autocast_enabled(kind):
            autocast = kind, torch.get_autocast_dtype(kind)
        random = RandomState(own[0].tensor.device) if _may_draw(func) else None
        call = Call(func, args, named, own, sources, autocast, random)
        if in_place and func not in SUMS:
            self.once = False  # nor can it run again
            self._at_once(call)
        out = func(*args, **named)
        outs = [
            x for x in flat(out)
            if isinstance(x, Tensor) and x.requires_grad and (in_place or not _among(x, inputs))
        ]  # fmt: skip
        if not outs:
            if not torch.is_grad_enabled():
                self.ungraded = own[0].name
            return out
        call.shapes, call.dtypes = [x.shape for x in outs], [x.dtype for x in outs]
        if not data or self._is_shared(call, data):
            self._follow(call, outs, sources)
        else:
            self._record(call, data, outs, in_place=in_place)
        return out

    def _attribute(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        own: list[Read],
    ) -> Any:
        """Read a property, which may be a tensor, such as ``weight.T``."""
        out = func(*args, **named)
        if isinstance(out, Tensor) and out.requires_grad and out is not own[0].tensor:
            self._follow(Call(func, args, named, own, (), None), [out], ())
        return out

    def _is_shared(self, call: Call, data: list[Tensor]) -> bool:
        """Tell whether an output has no batch axis, such as a position embedding."""
        b = self.rows
        if b is None:
            self.see_input(data)
            b = self.rows
        if b is None or b < 2:
            return False
        if call.function is F.embedding and data[0].ndim == 1:
            ids = data[0]  # positions, or one number per sample: as many as samples are ambiguous
            return len(ids) not in (b, self.numbers) or _counts_up(ids)
        return all(
            len(shape) == 0
            or shape[0] == 1
            or (shape[0] % b and not (len(shape) > 2 and shape[1] == b))
            for shape in call.shapes
        )

    def _follow(self, call: Call, outs: list[Tensor], sources: tuple[GradientEdge, ...]) -> None:
        """Go on with the derivative of a tensor that has no samples in it."""
        tangents: list[Tensor | None] = [None] * len(outs)
        if call.is_scored:
            try:
                tangents = call.tangents()
            except UnsupportedOperationError as error:
                self.refused = error
        further = (*sources, *(edge for read in call.reads for edge in read.sources))
        self.once = self.once and not further
        name = next((r.name for r in call.reads if r.tangent is not None), call.reads[0].name)
        for out, tangent in zip(outs, tangents, strict=True):
            self._reads[id(out)] = Read(out, tangent, name, False, further)

    def _record(
        self, call: Call, data: list[Tensor], outs: list[Tensor], *, in_place: bool
    ) -> None:
        call.sources += tuple(edge for read in call.reads for edge in read.sources)
        if call.function in SUMS and call.is_linear:
            call.let_go()  # its derivative asks for no data
        elif not in_place:
            kept = data[:1] if call.function in NORMS else data  # not their running statistics
            call.versions = [(x, x._version) for x in kept]
        self.once = self.once and not call.is_sparse
        for k, out in enumerate(outs):
            whole = _under(out)
            call.edges.append(get_gradient_edge(whole))
            place = out.shape, out.stride(), out.storage_offset() - whole.storage_offset()
            call.views.append(None if whole is out else place)
            self._hooks.append(whole.register_hook(partial(self._arrived, len(self.calls), k)))
        self.calls.append(call)

    def _at_once(self, call: Call) -> None:
        """Take the derivative before the operation writes over its own input."""
        copied = tuple(x.detach().clone() if isinstance(x, Tensor) and i == 0 else x
                       for i, x in enumerate(call.args))  # fmt: skip
        call.ready = [None]
        if call.is_scored:
            try:
                call.ready = dual(call.function, copied, call.named, call.reads)
            except UnsupportedOperationError as error:
                self.refused = error


def _in_place(func: Callable[..., Any]) -> bool:
    name = function_name(func)
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_")


def _counts_up(ids: Tensor) -> bool:
    return torch.equal(ids, torch.arange(len(ids), dtype=ids.dtype, device=ids.device))


def _may_draw(func: Callable[..., Any]) -> bool:
    return any(part in function_name(func) for part in _RANDOM)


def _under(out: Tensor) -> Tensor:
    """Return the tensor that an output is only another shape of.

    Writing over a view, as an in-place ReLU does, cuts the view off the graph, not what is below.
    """
    base = out._base
    whole = base is not None and base.requires_grad and base.is_contiguous()
    return base if base is not None and whole and base.numel() == out.numel() else out


def _among(x: Tensor, others: Iterable[Tensor]) -> bool:
    return any(x is other for other in others)
