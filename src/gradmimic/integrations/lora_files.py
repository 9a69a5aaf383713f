"""A LoRA adapter as a reference: from its folder, the hub, a ``PeftModel`` or a state dict.

base_model.model.<layer>.lora_A.weight      [r, in]
base_model.model.<layer>.lora_B.weight      [out, r]
adapter_config.json                         alpha, r, patterns: s = alpha / r or alpha / √r
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradmimic.adapted import AdaptedLayer, LowRank
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.extras import import_extra
from gradmimic.integrations.lora_layers import PREFIX, Student
from gradmimic.reference import Reference, Source, load_reference

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])(\.[^.]+)?\.weight")
_EXPECTED = "Expected an adapter of the same base model."


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter's tensors and configuration.

    Args:
        tensors: by the names of its file.
        source: where it came from.
        config: a ``peft.LoraConfig``; None where a state dict came without, which is then taken to
            be of the model's own.
    """

    tensors: Mapping[str, Tensor]
    source: str
    config: Any = None

    @cached_property
    def pairs(self) -> dict[str, dict[str, str]]:
        """The keys of A and B by the layer's name in the base model."""
        found: dict[str, dict[str, str]] = {}
        for key in self.tensors:
            match = _FACTOR.fullmatch(key)
            if match:
                layer = match["layer"].removeprefix(PREFIX)
                found.setdefault(layer, {})[match["which"]] = key
        return found

    def scale(self, layer: str, r: int, student: Student) -> float:
        """Return s in one layer.

        Args:
            layer: its name in the base model.
            r: the rank there.
            student: whose configuration stands in for a missing one.
        """
        if self.config is None:
            return student.scale(PREFIX + layer)
        other = import_extra("peft.utils.other", "peft")
        pattern = other.get_pattern_key(list(self.config.alpha_pattern), layer)
        alpha = self.config.alpha_pattern.get(pattern, self.config.lora_alpha)
        return float(alpha / (math.sqrt(r) if self.config.use_rslora else r))

    def change(self, student: Student, layer: AdaptedLayer) -> LowRank:
        """Return s B A of the layer, where the model's own adapter is.

        Raises:
            ReferenceMismatchError: the adapter is of another base.
        """
        own = layer.current()
        name = layer.name.removeprefix(PREFIX)
        keys = self.pairs.get(name)
        if keys is None:  # it leaves this layer as it is
            return LowRank(own.up[:, :0], own.down[:0])
        up, down = (self.tensors[keys[which]].to(own.up) for which in "BA")
        if up.shape[0] != own.up.shape[0] or down.shape[1] != own.down.shape[1]:
            raise ReferenceMismatchError(
                f"The adapter ({self.source}) changes a {up.shape[0]} x {down.shape[1]} weight at "
                f"{name}, the model's is {own.up.shape[0]} x {own.down.shape[1]}. {_EXPECTED}"
            )
        return LowRank(up * self.scale(name, len(down), student), down)

    def named(self, student: Student) -> dict[str, Tensor]:
        """Return the tensors by the model's names; what the model lacks, by the file's."""
        with_name = {
            _FACTOR.sub(r"\g<layer>.lora_\g<which>.weight", key): key for key in self.tensors
        }
        lacking = not any(key.startswith(PREFIX) for key in self.tensors)
        prefix = PREFIX if lacking else ""
        return {
            student.saved.get(prefix + key, prefix + key): self.tensors[original]
            for key, original in with_name.items()
        }

    def check_base(self, student: Student) -> None:
        """Raise where it changes layers that the model does not have.

        Raises:
            ReferenceMismatchError: the message lists them.
        """
        modules = {name.removeprefix(PREFIX) for name, _ in student.model.named_modules()}
        strange = [layer for layer in self.pairs if layer not in modules]
        if strange:
            raise ReferenceMismatchError(
                f"The adapter ({self.source}) changes layers that {_kind(student)} does not have: "
                f"{listed(strange)}. {_EXPECTED}"
            )

    def check_like(self, student: Student) -> None:
        """Raise where A and B of both cannot be compared one by one.

        Raises:
            ReferenceMismatchError: r, scale or adapted layers differ; the message lists how.
        """
        differences: dict[str, list[str]] = {}
        own = {name.removeprefix(PREFIX): layer for name, layer in student.layers.items()}
        for what, names in (
            ("adapted in the reference alone", [n for n in self.pairs if n not in own]),
            ("adapted in the model alone", [n for n in own if n not in self.pairs]),
        ):
            if names:
                differences[what] = names
        for name, keys in self.pairs.items():
            if name not in own:
                continue
            r, mine = len(self.tensors[keys["A"]]), own[name].r[student.active[0]]
            s, here = self.scale(name, r, student), student.scale(PREFIX + name)
            if r != mine:
                differences.setdefault(f"r {r} in the reference, {mine} in the model", []).append(
                    name
                )
            elif not math.isclose(s, here):
                what = f"scale alpha/r {s:g} in the reference, {here:g} in the model"
                differences.setdefault(what, []).append(name)
        if differences:
            told = "; ".join(f"{what}: {listed(names, 3)}" for what, names in differences.items())
            raise ReferenceMismatchError(
                f"The adapter ({self.source}) is of another configuration; {told}. Expected equal "
                "r, alpha and target modules, and that both began from the same A. "
                "params='weights' compares what any two adapters do to the weights."
            )


def read(source: Source | Reference, revision: str | None = None) -> Adapter | Reference:
    """Open an adapter, or else the weights of a whole model.

    Args:
        source: as in :func:`gradmimic.integrations.peft.lora_reference`.
        revision: the branch, tag or commit of a hub id.

    Raises:
        ReferenceMismatchError: it is an adapter of another kind than LoRA, or nothing readable.
    """
    peft = import_extra("peft", "peft")
    if isinstance(source, peft.PeftModel):
        student = Student.of(source)
        if len(student.active) > 1:
            raise ReferenceMismatchError(
                f"The reference has {len(student.active)} active adapters, "
                f"{listed(student.active)}. Expected one: call reference.set_adapter(name)."
            )
        state = peft.get_peft_model_state_dict(
            source, adapter_name=student.active[0], save_embedding_layers=False
        )
        tensors = {key: value.detach().clone() for key, value in state.items()}
        return Adapter(tensors, "adapter of PeftModel", source.peft_config[student.active[0]])
    weights = load_reference(source, revision=revision)
    if not any(".lora_" in key for key in weights.tensors):
        return weights
    config = None
    if isinstance(source, str | PathLike):
        place = Path(source)
        folder = str(place.parent if place.is_file() else source)
        config = _config(peft, folder, revision)
    return Adapter(weights.tensors, weights.source, config)


def _config(peft: Any, folder: str, revision: str | None) -> Any:
    try:
        config = peft.PeftConfig.from_pretrained(folder, revision=revision)
    except Exception as error:  # of the hub's client, JSON, or peft itself
        raise ReferenceMismatchError(
            f"The adapter {folder} has no readable adapter_config.json: {type(error).__name__}: "
            f"{' '.join(str(error).split())} Expected the folder that save_pretrained wrote."
        ) from error
    if config.peft_type.value != "LORA":
        raise ReferenceMismatchError(
            f"The adapter {folder} is {config.peft_type.value}. Expected LORA."
        )
    return config


def _kind(student: Student) -> str:
    base: nn.Module = student.model.get_base_model()
    return type(base).__name__
