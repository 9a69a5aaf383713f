"""Score the whole weight of an adapted layer, W + s B A, with no tensor of its size beside it.

    v = Δ_ref − s B A                         Δ_ref = s' B' A' of another adapter, or W_ref − W
    z ← z + N [A' x; A x]                     N = 0,  v_N = [s' B', −s B]
    ⟨∇_N ℓ, v_N⟩ = Σ_rows ⟨∂ℓ/∂z, v x⟩ = ⟨∇_W ℓ, v⟩

The zeros lie beside the model, in hooks of its layers, and what it computes stays the same. Every
engine scores them like parameters; W itself, frozen or quantized, takes no part. They stay in place
for a checkpointed layer that runs again in the backward pass. Where Δ_ref is no product of two thin
matrices, one number does it: z ← z + n (Δ_ref x), n = 0, v_n = 1.

The norm is the dense one's, from small matrices: ‖Σ_i U_i D_i‖² = Σ_ij ⟨U_iᵀ U_j, D_i D_jᵀ⟩.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.direction import Choice, Direction, Subset, Use, choose
from gradmimic.errors import ParameterError, ReferenceMismatchError, UsageError
from gradmimic.reference import Reference


@dataclass(frozen=True)
class LowRank:
    """A change of a weight, U D.

    Args:
        up: U, ``[out, r]``, with the scale in it.
        down: D, ``[r, in]``.
    """

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer that is linear in its last axis, and what was added to its weight.

    Args:
        name: in the model.
        module: what computes z = (W + U D) x + bias from x, its first argument.
        current: returns U D as they are now, detached.
    """

    name: str
    module: nn.Module
    current: Callable[[], LowRank]


class Beside(nn.Module):
    """The zeros beside one layer."""

    def __init__(self, layer: AdaptedLayer, target: LowRank | Tensor) -> None:
        super().__init__()
        self._current, self.target = layer.current, target
        self._layer = weakref.ref(layer.module)
        self._dense = target if isinstance(target, Tensor) else None
        up = self._product().up
        self.thin = nn.Parameter(torch.zeros_like(up))  # N [out, r]
        self.whole = None if self._dense is None else nn.Parameter(up.new_zeros(()))  # n []
        for zero in self.parameters():
            zero.register_post_accumulate_grad_hook(_drop)
        self._zeros = dict(self._parameters)
        self._length = _square(target) if isinstance(target, Tensor) else torch.zeros(())

    def _product(self) -> LowRank:
        """Return what of v is a product: all of it, or −s B A alone."""
        own, target = self._current(), self.target
        if isinstance(target, Tensor):
            return LowRank(-own.up, own.down)
        return LowRank(
            torch.cat([target.up.to(own.up), -own.up], 1),
            torch.cat([target.down.to(own.down), own.down]),
        )

    @property
    def wanted(self) -> bool:
        """Whether a pass may be scored, or a checkpointed layer runs again."""
        held = self._parameters
        return torch.is_grad_enabled() or any(held[k] is not z for k, z in self._zeros.items())

    def forward(self, x: Tensor) -> Tensor:
        """Return what the zeros add to the layer's output: ``[…, out]`` zeros, and their v x."""
        with torch.no_grad():  # 0 · h has no derivative along h
            x, down = x.detach(), self._product().down
            h = F.linear(x.to(down.dtype), down)  # [..., r]
            far = None if self._dense is None else F.linear(x.to(self._dense.dtype), self._dense)
        added = F.linear(h, self.thin)
        return added if far is None or self.whole is None else added + far * self.whole

    def place(self) -> None:
        """Take the place beside the layer, from whichever zeros were there."""
        layer = self._layer()
        if layer is None:
            return
        there, hook = _placed.get(layer, (None, None))
        if there is self:
            return
        if hook is not None:
            hook.remove()
        _placed[layer] = self, layer.register_forward_hook(_Hook(self))

    def remove(self) -> None:
        """Leave the place, where it is still theirs."""
        layer = self._layer()
        there, hook = (None, None) if layer is None else _placed.get(layer, (None, None))
        if layer is not None and hook is not None and there is self:
            hook.remove()
            del _placed[layer]

    def direction(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return v of the zeros, and ‖v‖² of the dense direction, ``[]``."""
        own, target = self._current(), self.target
        far = target.down if isinstance(target, LowRank) else target
        here, there = ((x.device, x.dtype) for x in (own.down, self.thin))
        if here != there or far.device != own.down.device:
            raise UsageError(
                f"An adapted layer is {here[1]} on {here[0]}, and was {there[1]} on {there[0]} "
                "when its reference was made. Call lora_reference, and build GradMimic, after the "
                "model has been moved."
            )
        v = {"thin": self._product().up}
        if isinstance(target, LowRank):
            long, between = _inner(target, target), _inner(target, own)
            rounding = 1e3 * torch.finfo(long.dtype).eps
        else:
            v["whole"] = own.up.new_ones(())
            exact = torch.promote_types(target.dtype, torch.float32)
            cross = own.up.T.to(exact) @ target.to(exact)  # [r, in]
            long, between = self._length, (cross * own.down).sum(dtype=_wide(cross))
            rounding = 10 * torch.finfo(exact).eps
        short = _inner(own, own)
        squared = long - 2 * between + short
        # a copy has no direction, but for what rounding leaves
        return v, torch.where(squared > rounding * (long + short), squared, 0.0)


class _Hook:
    """Adds the zeros to a layer's output where they matter; copies of the layer get none."""

    def __init__(self, zeros: Beside) -> None:
        self._zeros = zeros

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if not self._zeros.wanted:
            return None
        added: Tensor = self._zeros(inputs[0])
        return out + added.to(out.dtype)

    def __deepcopy__(self, _memo: Any) -> Callable[..., None]:
        return _no_hook

    def __reduce__(self) -> Any:
        return _without_hook, ()


def _no_hook(_layer: nn.Module, _inputs: Any, _out: Any) -> None:
    return None


def _without_hook() -> Callable[..., None]:
    return _no_hook


@dataclass(frozen=True)
class AdaptedSubset(Subset):
    """The zeros beside a model's adapted layers, and what else trains, in full.

    Args:
        beside: the zeros by layer.
        others: parameters that are scored as they are.
        choice: what made it.
    """

    beside: Mapping[str, Beside] = field(default_factory=dict)
    others: Subset | None = None
    choice: "AdaptedLayers | None" = None

    def toward(self, reference: Mapping[str, Tensor]) -> Direction:
        """Return v over the zeros, as long as the dense direction that it stands for."""
        self.check_held()
        tensors: dict[str, Tensor] = {}
        squares = []
        for name, zeros in self.beside.items():
            zeros.place()  # a pass begins
            parts, squared = zeros.direction()
            tensors |= {f"{name}.{key}": part for key, part in parts.items()}
            squares.append(squared)
        if self.others is not None:
            plain = self.others.toward(reference)
            tensors |= plain.tensors
            squares += [_square(tensor) for tensor in plain.tensors.values()]
        on = squares[0].device
        total = torch.stack([squared.to(on, squares[0].dtype) for squared in squares]).sum()
        return Direction(tensors, math.sqrt(total.item()))


class AdaptedLayers(Choice):
    """Scored parameters: the weights of adapted layers, through zeros beside them.

    Args:
        layers: all that is scored.
        targets: Δ_ref of each, by name.
        others: names of parameters that train in full, scored as they are.
    """

    def __init__(
        self,
        layers: Sequence[AdaptedLayer],
        targets: Mapping[str, LowRank | Tensor],
        others: Iterable[str] = (),
    ) -> None:
        self.layers, self.targets, self.others = layers, targets, tuple(others)

    def subset(self, model: nn.Module, called: nn.Module) -> Subset:
        """Put zeros beside the layers, for as long as the subset lives."""
        modules = {id(module) for module in model.modules()}
        if any(id(layer.module) not in modules for layer in self.layers):
            raise ParameterError(
                f"These params were made for another model than this {type(model).__name__}. "
                "Pass the model that is scored to lora_reference."
            )
        others = choose(model, self.others, called=called) if self.others else None
        beside = {own.name: Beside(own, self.targets[own.name]) for own in self.layers}
        parameters: dict[str, nn.Parameter] = {}
        uses = []
        for name, zeros in beside.items():
            for key, zero in zeros.named_parameters():
                parameters[f"{name}.{key}"] = zero
                uses.append(Use(zeros, key, f"{name}.{key}"))
        if others is not None:
            parameters |= others.parameters
            uses += others.uses
        found = AdaptedSubset(
            parameters, tuple(uses), model, called, beside=beside, others=others, choice=self
        )
        weakref.finalize(found, _remove, list(beside.values()))
        return found


@dataclass(frozen=True)
class ChangesReference(Reference):
    """The reference of :class:`AdaptedLayers`, which hold its Δ_ref themselves.

    Args:
        tensors: what it has for parameters that are scored as they are.
        source: where it came from.
        choice: the scored parameters that it belongs to.
        named: the same tensors, under names that the model knows.
    """

    choice: AdaptedLayers | None = None
    named: Reference | None = None

    def match(self, model: nn.Module, subset: Subset, **more: Any) -> dict[str, Tensor]:
        """Return what is scored as it is, as in :class:`Reference`, and the zeros."""
        if not isinstance(subset, AdaptedSubset) or subset.choice is not self.choice:
            raise ReferenceMismatchError(
                f"The reference ({self.source}) is of adapted layers. Expected the params that "
                "lora_reference returned with it: GradMimic(model, reference, params=params)."
            )
        found = {name: parameter.detach() for name, parameter in subset.parameters.items()}
        if subset.others is not None and self.named is not None:
            found |= self.named.match(model, subset.others, **more)
        return found


def _inner(a: LowRank, b: LowRank) -> Tensor:
    """Return ⟨U_a D_a, U_b D_b⟩, ``[]``."""
    wide = _wide(a.up)
    ups: Tensor = a.up.to(wide).T @ b.up.to(wide)  # [r_a, r_b]
    downs: Tensor = a.down.to(wide) @ b.down.to(wide).T  # [r_a, r_b]
    return (ups * downs).sum()


def _square(tensor: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=_wide(tensor))
    return length.square()


def _wide(tensor: Tensor) -> torch.dtype:
    """Return double precision, where the device has it: differences of squares lose digits."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _drop(zero: Tensor) -> None:
    zero.grad = None


def _remove(zeros: Iterable[Beside]) -> None:
    for own in zeros:
        own.remove()


# The zeros beside each layer: those of the last pass that was scored, and no others.
_placed: weakref.WeakKeyDictionary[nn.Module, tuple[Beside, Any]] = weakref.WeakKeyDictionary()
