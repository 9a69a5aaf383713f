"""Engine ``secant``: the network is differenced, the loss is differentiated.

    dz = (z(θ + ε v) − z(θ)) / ε               beside a training pass: one pass more
    dz = (z(θ + ε v) − z(θ − ε v)) / 2ε        without gradients: two passes in all,
    z  = (z(θ + ε v) + z(θ − ε v)) / 2         which stand for the plain one too, to O(ε²)
    dℓ_i = d/dz ℓ_i · dz                       exact, in forward mode, whatever the loss

z is every tensor that a call of the model returns. So whatever the model is made of (an operation
without a derivative in forward mode, half precision, compiled code), it only has to run, and the
loss may compare samples with each other. Anything that reads a scored parameter outside such a call
(a loss with the model's own temperature, say) is differentiated in forward mode, exactly.

The step, with η the relative rounding error of the coarsest numbers in the pass:

    ε = c (1 + ‖θ‖/‖v‖)     c = (η/32)^½, over the tensors that v moves

so that they move by the part c of their length: 6e-5 in float32, 0.016 in bfloat16. Rounding
disturbs dz by about η/c, curvature by c or c²; but a unit whose ReLU switches within the step
disturbs both differences by about c, so both want c near √η. The factor is measured, over
transformers, CNNs and MLPs, with references near and far. Errors are then around 1e-3 of the
scores' norm in float32 (1e-2 through many ReLUs) and 1e-1 or more in bfloat16;
``gradmimic bench`` measures them.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gradmimic.engines.attention import is_dual
from gradmimic.engines.elsewhere import holds_storages, moved, tied, without_trace
from gradmimic.engines.forward import ForwardEngine
from gradmimic.errors import UnsupportedOperationError

SHARE = 1 / 32
"""c²/η."""


class SecantEngine(ForwardEngine):
    """Forward mode through the loss alone; passes at other weights stand in for the network.

    Each call of the model in the ``with`` block is differenced by itself, and may be fed what came
    of an earlier one. The passes beside it draw the same random numbers, and leave buffers as they
    were; so a pass without gradients does not move running statistics at all.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.

    Raises:
        UnsupportedOperationError: the model returns no tensor, or others at other weights.
        UsageError: the caller already differentiates in forward mode.

    Example:
        >>> import torch
        >>> from gradmimic.direction import choose, direction
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> with SecantEngine(subset, v) as engine:
        ...     losses = layer(torch.tensor([[1.0, 2.0]])).squeeze(1)
        >>> round(engine.derivative(losses).item(), 2)
        3.0
    """

    def _stand_in(self) -> None:
        """Take over the model's calls; all else that reads the parameters reads dual numbers."""
        subset, v = self._subset, self._direction.tensors
        self._inside = False
        self._in_place = holds_storages(subset)
        split = not self._in_place and tied(subset)
        self.stand_ins = {  # of a tied weight, gradients of the scored uses alone are asked for
            name: parameter.view_as(parameter) if split else parameter
            for name, parameter in subset.parameters.items()
        }
        if not self._in_place:
            duals = {name: fwAD.make_dual(t, v[name]) for name, t in self.stand_ins.items()}
            self._restore.enter_context(subset.swapped(duals))
        # Not hooks: those of a compiled module would be compiled into it.
        own = vars(subset.called)
        before = {key: own[key] for key in own if key == "_compiled_call_impl"}
        self._call: Callable[..., Any] = (
            subset.called._compiled_call_impl or subset.called._call_impl
        )
        own["_compiled_call_impl"] = self._differenced
        self._restore.callback(own.update, before)
        self._restore.callback(own.pop, "_compiled_call_impl")

    def _differenced(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one call of the model, with dual numbers in what it returns."""
        if self._inside or ForwardEngine._open is not self:
            return self._call(*args, **kwargs)
        central = not torch.is_grad_enabled()
        self._inside = True
        try:
            with self._plain():
                step = self._step()
                # before the training pass: whoever watches layers is to see that one last
                ahead = self._leaves(self._at(step, args, kwargs))
                if central:
                    output = self._at(-step, args, kwargs, same_draws=False)
                else:
                    output = self._call(*tree_map(_primal, args), **tree_map(_primal, kwargs))
        finally:
            self._inside = False
        behind = self._leaves(output)
        if [a.shape for a in ahead] != [b.shape for b in behind]:
            raise UnsupportedOperationError(
                f"{type(self._subset.called).__name__} returns tensors of other shapes at other "
                "weights, so they have no difference. Use engine='forward' or engine='oracle'."
            )
        duals = iter(
            fwAD.make_dual((a + b) / 2, _slope(a, b, 2 * step))
            if central
            else fwAD.make_dual(b, _slope(a, b.detach(), step))
            for a, b in zip(ahead, behind, strict=True)
        )
        leaves, form = tree_flatten(output)
        return tree_unflatten([next(duals) if _is_real(leaf) else leaf for leaf in leaves], form)

    def _plain(self) -> AbstractContextManager[None]:
        """Let the model read plain parameters in its own calls."""
        return nullcontext() if self._in_place else self._subset.swapped(self.stand_ins)

    def _at(self, step: float, args: Any, kwargs: Any, *, same_draws: bool = True) -> Any:
        """Call the model at θ + step · v, on inputs moved along their own derivatives."""

        def input_there(value: Any) -> Any:
            if not is_dual(value):
                return value
            here, along = fwAD.unpack_dual(value)
            return here + step * along

        model = self._subset.model
        with without_trace(model, same_draws=same_draws):
            args, kwargs = tree_map(input_there, (args, kwargs))
            with moved(self._subset, self._direction, step, in_place=self._in_place):
                output = self._call(*args, **kwargs)
                return self._kept(output) if self._in_place else output

    def _kept(self, output: Any) -> Any:
        """Copy what shares memory with a parameter, whose values are about to be put back."""
        memory = {_address(parameter) for parameter in self._subset.parameters.values()}
        return tree_map(
            lambda leaf: leaf.clone() if _is_real(leaf) and _address(leaf) in memory else leaf,
            output,
        )

    def _leaves(self, output: Any) -> list[Tensor]:
        """Return the real tensors in what a call returned."""
        found = [leaf for leaf in tree_flatten(output)[0] if _is_real(leaf)]
        if not found:
            raise UnsupportedOperationError(
                f"{type(self._subset.called).__name__} returned {type(output).__name__}. "
                "engine='secant' expects floating point tensors, alone or in tuples, lists, "
                "dicts or other pytrees; return those, or use engine='forward'."
            )
        return found

    def _step(self) -> float:
        """Return ε."""
        return math.sqrt(SHARE * coarsest(self._subset.model)) * self._lengths

    @cached_property
    def _lengths(self) -> float:
        """Return 1 + ‖θ‖/‖v‖, over the tensors that v moves."""
        v = list(self._direction.tensors.values())
        theta = [parameter.detach() for parameter in self._subset.parameters.values()]
        moving = _norms(theta)[_norms(v) > 0]
        return 1 + float(moving.norm()) / self._direction.norm


def coarsest(model: nn.Module) -> float:
    """Return η, the relative rounding error of the coarsest numbers that a pass works with.

    Example:
        >>> coarsest(nn.Linear(1, 1).bfloat16()) == torch.finfo(torch.bfloat16).eps
        True
    """
    real = [p for p in model.parameters() if p.is_floating_point()]
    roundings = {torch.finfo(p.dtype).eps for p in real}
    for kind in {p.device.type for p in real}:
        if torch.is_autocast_enabled(kind):
            roundings.add(torch.finfo(torch.get_autocast_dtype(kind)).eps)
        if kind == "cuda" and _tf32():
            roundings |= {2**-10 for p in real if p.dtype == torch.float32}
    return max(roundings)


def _tf32() -> bool:
    """Tell whether a GPU may round float32 to 11 bits in products."""
    try:
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # it is set operation by operation: the longer step is the safe one
        return True


def _norms(tensors: list[Tensor]) -> Tensor:
    """Return each one's norm, on one device: a GPU is asked for a number once."""
    norms = [torch.linalg.vector_norm(tensor).float() for tensor in tensors]
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return torch.stack([norm.to(whole[0].device) for norm in whole])  # of sharded ones too


def _slope(ahead: Tensor, here: Tensor, step: float) -> Tensor:
    """Return (ahead − here)/step; masked outputs, infinite at both ends, do not move."""
    slope = (ahead - here).div_(step)
    return slope.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _primal(value: Any) -> Any:
    return fwAD.unpack_dual(value).primal if is_dual(value) else value  # else not even a view


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata  # of a sharded one there is no data_ptr
    return address
