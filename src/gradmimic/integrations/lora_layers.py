"""The layers of a peft model that a LoRA adapter changes, and what the model calls them.

    z = W x + Σ_adapters s B A x          peft.tuners.lora.Linear, s = alpha / r or alpha / √r

A ``PeftModel`` puts ``base_model.model.`` before all names, ``base_layer`` into those of adapted
layers, and an adapter's name into those of its parameters; an adapter's file leaves that one out,
and a full fine-tune has none of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.adapted import AdaptedLayer, LowRank
from gradmimic.errors import ParameterError, listed
from gradmimic.extras import import_extra
from gradmimic.wrapped import is_sharded

PREFIX = "base_model.model."
INSTEAD = "Use params='adapter', which scores its parameters as they are."


@dataclass(frozen=True)
class Student:
    """A model that trains a LoRA adapter.

    Args:
        model: a ``peft.PeftModel``.
        active: the names of its active adapters; the first one is trained.
        layers: peft's layers that hold one of them, by their names in the model.
        saved: what the adapter's file calls its parameters, and what the model calls them.
    """

    model: Any
    active: tuple[str, ...]
    layers: dict[str, Any]
    saved: dict[str, str]

    @classmethod
    def of(cls, model: Any) -> "Student":
        """Find the adapters of a model.

        Raises:
            ParameterError: there is no active LoRA adapter.
        """
        peft, lora = (import_extra(name, "peft") for name in ("peft", "peft.tuners.lora"))
        active = tuple(model.active_adapters)
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, lora.LoraLayer) and any(holds(module, a) for a in active)
        }
        if not layers or not has_lora(model):
            kinds = sorted({model.peft_config[name].peft_type.value for name in active})
            raise ParameterError(
                "Expected a PeftModel with an active LoRA adapter, got "
                f"{listed(kinds) or 'none that is active'}. Score other adapters by the names of "
                "their parameters, such as params='prompt_encoder.*'."
            )
        named = {
            **model.state_dict(keep_vars=True),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        names = {
            id(value): name for name, value in named.items() if isinstance(value, nn.Parameter)
        }
        saved = peft.get_peft_model_state_dict(
            model, state_dict=named, adapter_name=active[0], save_embedding_layers=False
        )
        known = {key: names[id(value)] for key, value in saved.items() if id(value) in names}
        return cls(model, active, layers, known)

    @property
    def factors(self) -> list[str]:
        """The names of the adapter's own parameters."""
        return [name for name in self.saved.values() if ".lora_" in name]

    @property
    def others(self) -> list[str]:
        """The names of what is trained in full beside them: ``modules_to_save``, biases."""
        return [name for name in self.saved.values() if ".lora_" not in name]

    def scale(self, layer: str) -> float:
        """Return s of the adapter that is trained, in one layer."""
        return float(self.layers[layer].scaling[self.active[0]])

    def adapted_layers(self) -> list[AdaptedLayer]:
        """Return the layers, where W + s B A is all that an adapter does.

        Raises:
            ParameterError: it does something else in some of them, or they are merged or sharded.
        """
        for name, layer in self.layers.items():
            problem = self._problem(layer)
            if problem is not None:
                raise ParameterError(f"params='weights' cannot score {name}: {problem}")
        return [
            AdaptedLayer(name, layer, _Current(layer, self.active))
            for name, layer in self.layers.items()
        ]

    def _problem(self, layer: Any) -> str | None:
        lora = import_extra("peft.tuners.lora.layer", "peft")
        own = [a for a in self.active if holds(layer, a)]
        if layer.merged:
            return "its adapter is merged into the weight. Call model.unmerge_adapter() first."
        if any(a in layer.lora_variant for a in own):
            kinds = {type(layer.lora_variant[a]).__name__ for a in own if a in layer.lora_variant}
            return f"{listed(sorted(kinds))} is no product of two matrices. {INSTEAD}"
        thin = all(a in layer.lora_A and isinstance(layer.lora_A[a], nn.Linear) for a in own)
        if not thin or isinstance(layer, (lora.MultiheadAttention, lora.ParamWrapper)):
            kind = type(layer.get_base_layer()).__name__
            return f"it is {kind}; it expects linear layers. {INSTEAD}"
        if any(layer.lora_B[a].bias is not None for a in own):
            return f"lora_bias=True trains a bias beside the weight. {INSTEAD}"
        if any(is_sharded(layer.lora_A[a].weight) for a in own):
            return "FSDP2 shards its adapter. Leave adapters out of fully_shard."
        return None


@dataclass(frozen=True)
class _Current:
    """Σ s B A as it is now."""

    layer: Any
    active: tuple[str, ...]

    def __call__(self) -> LowRank:
        own = [a for a in self.active if a in self.layer.lora_A]
        ups = [self.layer.lora_B[a].weight.detach() * self.layer.scaling[a] for a in own]
        downs = [self.layer.lora_A[a].weight.detach() for a in own]
        if len(own) == 1:
            return LowRank(ups[0], downs[0])
        return LowRank(torch.cat(ups, 1), torch.cat(downs))


def has_lora(model: Any) -> bool:
    """Tell whether all active adapters of a ``PeftModel`` are of LoRA, and there are some."""
    kinds = {model.peft_config[name].peft_type.value for name in model.active_adapters}
    return kinds == {"LORA"}


def holds(layer: Any, adapter: str) -> bool:
    """Tell whether a layer of peft's has parameters of this adapter."""
    return adapter in layer.lora_A or adapter in layer.lora_embedding_A


def plain(name: str, active: tuple[str, ...]) -> str | None:
    """Return what the base model itself calls a tensor; None for the adapters' own.

    Args:
        name: in the ``PeftModel``.
        active: the adapters whose ``modules_to_save`` stand for the base model's.

    Example:
        >>> plain("base_model.model.encoder.q.base_layer.weight", ("default",))
        'encoder.q.weight'
    """
    parts = name.removeprefix(PREFIX).split(".")
    if "original_module" in parts or any(part.startswith("lora_") for part in parts):
        return None
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        if parts[at + 1] not in active:
            return None
        del parts[at : at + 2]
    return ".".join(part for part in parts if part != "base_layer")


def base_weight(layer: Any) -> Tensor:
    """Return W, ``[out, in]``, as it is in memory.

    Raises:
        ParameterError: it is quantized.
    """
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise ParameterError(
            f"The base weights are quantized ({weight.dtype}), so a full fine-tune has no "
            "difference from them. Expected an adapter as the reference, or a base in 16 or 32 bit."
        )
    out: Tensor = weight.detach().T if layer.fan_in_fan_out else weight.detach()
    return out
