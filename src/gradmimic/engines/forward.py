"""Engine ``forward``: one forward-mode derivative of the vector of per-sample losses.

    ℓ(θ + ε v) = ℓ(θ) + ε · dℓ          with dual numbers θ + ε v at the scored parameters

The pass that computes the losses computes dℓ ``[b]`` beside them, so the pass that trains also
scores. Exact for any architecture and any per-sample loss, contrastive ones included. With the head
alone scored, dual numbers enter at the last layer and cost next to nothing.
"""

import re
import warnings
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import Any, ClassVar

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.direction import Direction, Subset
from gradmimic.engines.attention import DifferentiableAttention, is_dual
from gradmimic.engines.base import Pass
from gradmimic.errors import (
    GradMimicError,
    LossError,
    UnsupportedOperationError,
    UsageError,
)

REMEDIES = {
    "mkldnn_rnn_layer": "run the forward pass under torch.backends.mkldnn.flags(enabled=False)",
    "_cudnn_rnn": "run the forward pass under torch.backends.cudnn.flags(enabled=False)",
    "scaled_dot_product": "run it under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
    "_transformer_encoder_layer_fwd": "call torch.backends.mha.set_fastpath_enabled(False)",
    "custom autograd.Function": "give that function a jvp (one of torch.compile's gets none: keep "
    "scored layers and what lies above them out of the compiled part; one of DDP's needs none "
    "where GradMimic is built from the DDP module)",
}
"""Part of an operation's name: what makes it differentiable in forward mode."""


class ForwardEngine(Pass):
    """Dual numbers through one forward pass.

    The dual level stays open between the end of the ``with`` block and ``derivative``, so that the
    losses may be computed after the block; the model itself is restored at the block's end.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.

    Raises:
        UnsupportedOperationError: an operation that the derivative must pass has no forward-mode
            formula; the message names it and the way out.
        UsageError: the caller already differentiates in forward mode.

    Example:
        >>> import torch
        >>> from gradmimic.direction import choose, direction
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> with ForwardEngine(subset, v) as engine:
        ...     losses = layer(torch.tensor([[1.0, 2.0]])).squeeze(1)
        >>> engine.derivative(losses)
        tensor([3.])
    """

    _open: ClassVar["ForwardEngine | None"] = None  # torch has one dual level: one pass at a time

    def __init__(self, subset: Subset, direction: Direction) -> None:
        self._subset, self._direction = subset, direction
        self._restore = ExitStack()
        self.stand_ins: dict[str, Tensor] = {}

    def __enter__(self) -> "ForwardEngine":
        if ForwardEngine._open is not None:  # a pass whose losses were never asked for
            ForwardEngine._open.close()
        try:
            load_formulas()
            fwAD.enter_dual_level()
        except RuntimeError as error:
            raise UsageError(
                "The forward pass is already inside torch.autograd.forward_ad.dual_level, which "
                "does not nest. Leave that block first, or use engine='oracle'."
            ) from error
        ForwardEngine._open = self
        try:
            self._stand_in()
        except BaseException:
            self._restore.close()
            self.close()
            raise
        return self

    def _stand_in(self) -> None:
        """Let the model read dual numbers, or a linear head make its output dual."""
        modules, parameters = self._subset.modules, self._subset.parameters
        linear_head = self._subset.is_head and type(modules[0]).forward is nn.Linear.forward
        if self._subset.sharded:
            self._differentiate_sharded(linear_head)
            return
        self.stand_ins = {
            name: parameter.view_as(parameter)
            if linear_head
            else fwAD.make_dual(parameter, self._direction.tensors[name])
            for name, parameter in parameters.items()
        }
        self._restore.enter_context(self._subset.swapped(self.stand_ins))
        watch = self._differentiate_linear if linear_head else _expect_dual
        for module in modules:
            hook = module.register_forward_hook(watch, with_kwargs=True)
            self._restore.callback(hook.remove)
        if not self._subset.is_head:  # above the head there is only the loss, and no attention
            self._restore.enter_context(DifferentiableAttention())

    def _differentiate_sharded(self, linear_head: bool) -> None:
        """Leave parameters that FSDP2 manages in place, and make the head's output dual."""
        (module, *_) = self._subset.modules
        if not linear_head:
            raise UnsupportedOperationError(
                f"FSDP2 shards the scored parameters of {type(module).__name__}, and the model "
                "cannot read dual numbers in their place. Score a linear head (params='head'), "
                "use engine='secant', or leave the scored layers out of fully_shard."
            )

        def whole_output(*call: Any) -> Tensor:
            # a view would not do: FSDP2 warns of those
            return self._differentiate_linear(*call).clone()

        hook = module.register_forward_hook(whole_output, with_kwargs=True)
        self._restore.callback(hook.remove)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore.close()
        if error is not None:
            self.close()
        ours = isinstance(error, GradMimicError)
        if isinstance(error, NotImplementedError) and "forward" in str(error) and not ours:
            raise _explain(error) from error
        if isinstance(error, RuntimeError) and "view size is not compatible" in str(error):
            raise UnsupportedOperationError(
                f"{error} torch's forward-mode group_norm fails so on channels_last input: "
                "make the input .contiguous()."
            ) from error

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, the losses' derivative along v; the pass ends with it."""
        if ForwardEngine._open is not self:
            raise UsageError(
                "This forward pass is over: it was weighed already, or another one began since. "
                "Call weigh once after each `with` block."
            )
        try:
            return self.along(losses)
        finally:
            self.close()

    def along(self, values: Tensor) -> Tensor:
        """Return the tangent of any tensor of the pass, of its shape."""
        tangent = fwAD.unpack_dual(values).tangent
        if tangent is None:
            raise LossError(
                "The losses do not depend on the scored parameters. Expected losses computed from "
                "the output of this model in this `with` block; what came may be of another pass, "
                "detached, or made by a compiled or reentrantly checkpointed module."
            )
        derivative: Tensor = tangent.detach()
        return derivative

    def _differentiate_linear(
        self, layer: nn.Linear, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> Tensor:
        """Make the output of a linear head dual: d(W h + b) is V h + v_b, the layer applied with v.

        The same number as with dual weights, but nothing of it is recorded for the backward pass,
        which no gradient will ever take.
        """
        v = {use.attribute: self._direction.tensors[use.name] for use in self._subset.uses}
        (hidden,) = (*inputs, *named.values())  # [b, …, width]
        with torch.no_grad():
            # FSDP2 may compute in another dtype than the parameters'
            parts = {key: part.to(hidden.dtype) for key, part in v.items()}
            tangent = F.linear(fwAD.unpack_dual(hidden).primal, parts["weight"], parts.get("bias"))
        plain, below = fwAD.unpack_dual(output)
        if below is not None:  # the head was fed what came of its own output: W dh comes on top
            tangent = tangent + below
        dual: Tensor = fwAD.make_dual(plain, tangent)
        return dual

    def close(self) -> None:
        """End the dual level, where this pass holds it."""
        if ForwardEngine._open is self:
            ForwardEngine._open = None
            fwAD.exit_dual_level()


@cache
def load_formulas() -> None:
    """Let torch load its forward-mode formulas without a warning of its own deprecated tools.

    Else whoever turns warnings into errors could not train.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with fwAD.dual_level():
            fwAD.make_dual(torch.zeros(1), torch.zeros(1))


def _expect_dual(
    module: nn.Module, _inputs: object, _named: dict[str, object], output: object
) -> None:
    """Catch a scored module whose derivative got lost on the way, before it makes scores wrong."""
    tensors = output if isinstance(output, tuple | list) else (output,)
    told = [is_dual(t) for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if told and not any(told):  # of two towers, one may be scored alone
        raise UnsupportedOperationError(
            f"The output of the scored module {type(module).__name__} lost its forward-mode "
            "derivative. Reentrant checkpointing does that (pass use_reentrant=False and score "
            "parameters outside the checkpointed part), and so do detach() and .data. Score other "
            "parameters with params=, or use engine='oracle'."
        )


def remedy_for(text: str) -> str | None:
    """Name what makes the operation of an error message differentiable in forward mode."""
    return next((remedy for part, remedy in REMEDIES.items() if part in text), None)


def _explain(error: NotImplementedError) -> UnsupportedOperationError:
    text = str(error)
    named = re.search(r"forward AD with (\S+)", text)
    operation = named.group(1).rstrip(".") if named else "a custom autograd.Function without a jvp"
    remedy = remedy_for(text)
    return UnsupportedOperationError(
        f"torch cannot differentiate {operation} in forward mode, and a scored parameter lies "
        f"below it. {f'Either {remedy}; or s' if remedy else 'S'}core only parameters above it "
        "(params=), or use engine='oracle'."
    )
