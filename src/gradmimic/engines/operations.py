"""The derivative of one operation along v, in the parameters that it reads.

    z = F(a; θ)      dz = ∂F/∂θ · v = F(a; v)        where F is linear in θ

One rule for all layers: the operation is applied with v in the place of its parameters, and with 0
in the place of those that are not scored. An operation that is not linear in its parameters, or not
known to be, is differentiated by itself, in forward mode.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.engines.arguments import Function, Read, flat, function_name, replaced
from gradmimic.engines.local import dual
from gradmimic.engines.random_state import RandomState
from gradmimic.errors import UnsupportedOperationError


class Linear(NamedTuple):
    """An operation's arguments by name, and which of them it is jointly linear in."""

    names: tuple[str, ...]
    linear_in: tuple[str, ...]


_CONV = Linear(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), ("weight", "bias")
)
_TRANSPOSED = Linear(
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ("weight", "bias"),
)
LINEAR: dict[Function, Linear] = {
    F.linear: Linear(("input", "weight", "bias"), ("weight", "bias")),
    torch.conv1d: _CONV,
    torch.conv2d: _CONV,
    torch.conv3d: _CONV,
    torch.conv_transpose1d: _TRANSPOSED,
    torch.conv_transpose2d: _TRANSPOSED,
    torch.conv_transpose3d: _TRANSPOSED,
    torch.addmm: Linear(("input", "mat1", "mat2"), ("input", "mat2")),
    F.bilinear: Linear(("input1", "input2", "weight", "bias"), ("weight", "bias")),
    F.embedding: Linear(
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        ("weight",),
    ),
    F.embedding_bag: Linear(
        ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode",
         "sparse", "per_sample_weights", "include_last_offset", "padding_idx"),
        ("weight",),
    ),
    F.layer_norm: Linear(
        ("input", "normalized_shape", "weight", "bias", "eps"), ("weight", "bias")),
    F.group_norm: Linear(("input", "num_groups", "weight", "bias", "eps"), ("weight", "bias")),
    F.rms_norm: Linear(("input", "normalized_shape", "weight", "eps"), ("weight",)),
    F.batch_norm: Linear(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        ("weight", "bias"),
    ),
    F.instance_norm: Linear(
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum",
         "eps"),
        ("weight", "bias"),
    ),
}  # fmt: skip
NORMS = {F.layer_norm: -1, F.group_norm: 1, F.rms_norm: -1, F.batch_norm: 1, F.instance_norm: 1}
"""Operations that only scale and shift: their parameters lie along the last axes, or along 1."""
MULTILINEAR: set[Function] = {
    torch.matmul, torch.mm, torch.bmm, torch.mv, torch.mul, torch.einsum,
    Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.mul, Tensor.__matmul__,
    Tensor.__mul__, Tensor.__rmul__, Tensor.__rmatmul__,
}  # fmt: skip
"""Linear in each tensor by itself."""
SUMS: set[Function] = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__,
    Tensor.add_, Tensor.__iadd__,
}  # fmt: skip
"""The derivative is v itself, as often as there are rows."""


@dataclass(eq=False)
class Call:
    """One use of parameters upon data in the pass.

    Args:
        function: the operation.
        args: its arguments.
        named: its keyword arguments.
        reads: the parameters among them.
        shapes: of its outputs that gradients flow through; likewise dtypes, edges and views.
        sources: nodes of the autograd graph that the data came from.
        autocast: the device type and the dtype of an autocast region, where there is one.
        random: the state of the random numbers before it ran, where it may draw some.
        ready: its derivative, where it had to be taken at once.
    """

    function: Function
    args: tuple[Any, ...]
    named: dict[str, Any]
    reads: list[Read]
    sources: tuple[Any, ...]
    autocast: tuple[str, torch.dtype] | None
    random: RandomState | None = None
    ready: list[Tensor | None] | None = None
    shapes: list[torch.Size] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    edges: list[Any] = field(default_factory=list)
    views: list[Any] = field(default_factory=list)
    versions: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name the operation and its parameters for a message."""
        return f"{function_name(self.function)}({', '.join(r.name for r in self.reads)})"

    @property
    def is_scored(self) -> bool:
        """Whether a scored parameter is among them."""
        return any(read.tangent is not None for read in self.reads)

    @property
    def scales_only(self) -> bool:
        """Whether its parameters only scale and shift its normalized input."""
        return self.function in NORMS and self.is_linear

    @property
    def along(self) -> int:
        """The axis of the parameters of such an operation; -1 for the last ones."""
        return NORMS[self.function]

    @cached_property
    def is_linear(self) -> bool:
        """Whether :meth:`applied` can take its derivative."""
        own = {id(read.tensor) for read in self.reads}
        if self.function in MULTILINEAR or self.function in SUMS:
            return len(self.reads) == 1 and self._occurs(own) == 1 and "alpha" not in self.named
        spec = LINEAR.get(self.function)
        if spec is None:
            return False
        bound = self._bound(spec)
        if bound.get("mode") == "max" or (
            self.function is F.embedding_bag and bound.get("scale_grad_by_freq")
        ):
            return False
        if self.function is F.batch_norm and bound.get("training"):
            return False
        return not any(id(x) in own for name, x in bound.items() if name not in spec.linear_in)

    def applied(self, tensors: Mapping[int, Tensor]) -> Tensor:
        """Apply the operation with other tensors in the place of its parameters.

        Args:
            tensors: by the parameters' ids; those that are missing count as 0.
        """
        with self._surroundings():
            if self.function in SUMS:
                ((_, tensor),) = tensors.items()
                return tensor.expand(self.shapes[0])
            if self.function in MULTILINEAR:
                args, named = replaced(self.args, self.named, tensors)
                product: Tensor = self.function(*args, **named)
                return product
            spec = LINEAR[self.function]
            bound = self._inputs(spec)
            for name in spec.linear_in:
                parameter = self._bound(spec).get(name)
                if parameter is not None:
                    zero = None if name == "bias" else torch.zeros_like(parameter)
                    bound[name] = tensors.get(id(parameter), zero)
            if self.function in (F.embedding, F.embedding_bag):
                return _looked_up(self.function, bound)
            out: Tensor = self.function(**bound)
            return out

    def normalized(self) -> Tensor:
        """Return x̂ of a norm, which its parameters scale and shift."""
        with self._surroundings():
            bound = self._inputs(LINEAR[self.function])
            x: Tensor = self.function(**{**bound, "weight": None, **_no_bias(bound)})
            return x

    def role(self, read: Read) -> str:
        """Name the argument that a parameter of a known operation is."""
        bound = self._bound(LINEAR[self.function])
        return next(name for name, x in bound.items() if x is read.tensor)

    def tangents(self) -> list[Tensor | None]:
        """Return dz for each output; None is 0."""
        if self.ready is not None:
            return self.ready
        for tensor, version in self.versions:
            if tensor._version != version:
                raise UnsupportedOperationError(
                    f"The input of {self.name} was changed in place after it was used. Change a "
                    "copy instead (inplace=False), or use engine='forward'."
                )
        with torch.no_grad():
            if self.is_linear:
                v = {id(r.tensor): r.tangent for r in self.reads if r.tangent is not None}
                return [self.applied(v)]
            with self._surroundings():
                return dual(self.function, self.args, self.named, self.reads)

    def rerun(self, tensors: Mapping[int, Tensor]) -> list[Tensor]:
        """Run the operation again with other tensors for its parameters."""
        with self._surroundings():
            args, named = replaced(self.args, self.named, tensors)
            return [out for out in flat(self.function(*args, **named)) if _flows(out)]

    @property
    def is_sparse(self) -> bool:
        """Whether the gradients of its parameters are to be sparse."""
        spec = LINEAR.get(self.function)
        return spec is not None and bool(self._bound(spec).get("sparse"))

    def let_go(self) -> None:
        """Drop the data, once the derivative has been taken."""
        self.args, self.named, self.versions, self.ready = (), {}, [], None

    def _bound(self, spec: Linear) -> dict[str, Any]:
        return {**dict(zip(spec.names, self.args, strict=False)), **self.named}

    def _inputs(self, spec: Linear) -> dict[str, Any]:
        bound = {name: _detached(x) for name, x in self._bound(spec).items()}
        if self.function is F.instance_norm and bound.get("use_input_stats", True):
            bound["running_mean"] = bound["running_var"] = None  # left as the pass left them
        return bound

    def _occurs(self, ids: set[int]) -> int:
        return sum(id(x) in ids for x in flat((*self.args, *self.named.values())))

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Bring back autocast and the random numbers of the pass."""
        with ExitStack() as stack:
            if self.autocast is not None:
                device, dtype = self.autocast
                stack.enter_context(torch.autocast(device, dtype))
            if self.random is not None:
                stack.enter_context(self.random.replayed())
            yield


def _looked_up(function: Function, bound: dict[str, Any]) -> Tensor:
    """Look rows of v up, with 0 where the weight gets no gradient."""
    table: Tensor = bound["weight"]
    bound = {**bound, "max_norm": None, "sparse": False}
    if function is F.embedding_bag:
        bag: Tensor = function(**bound)
        return bag
    ids, padding = bound["input"], bound.get("padding_idx")
    by_frequency = bound.pop("scale_grad_by_freq", False)
    out: Tensor = function(**bound)
    if padding is not None:
        out = out.masked_fill((ids == padding % len(table)).unsqueeze(-1), 0.0)
    if by_frequency:
        counts = ids.flatten().bincount(minlength=len(table))[ids]
        out = out / counts.unsqueeze(-1)
    return out


def _no_bias(bound: Mapping[str, Any]) -> dict[str, None]:
    return {"bias": None} if "bias" in bound else {}


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _flows(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad
