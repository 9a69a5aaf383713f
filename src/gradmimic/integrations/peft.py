"""LoRA adapters of peft: which parameters are scored, and what a reference is for them.

    "weights"   v = W_ref − W − s B A of each adapted layer, m_i = −⟨∇_W ℓ_i, v⟩ / ‖v‖
    "adapter"   v = (A_ref − A, B_ref − B)

B A is the same for (B R⁻¹)(R A), whatever R is. So adapters that began from different A share no
direction as "adapter", though they may say the same; as "weights" they do.

    reference, params = lora_reference(model, "owner/better-adapter")
    mimic = GradMimic(model, reference, params=params)

Needs the extra ``peft``.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.adapted import AdaptedLayers, ChangesReference, LowRank
from gradmimic.checkpoint import ReadOnAccess
from gradmimic.direction import Params, Subset, choose
from gradmimic.errors import ParameterError, ReferenceMismatchError
from gradmimic.extras import import_extra
from gradmimic.integrations.lora_files import Adapter, read
from gradmimic.integrations.lora_layers import Student, base_weight, has_lora, plain
from gradmimic.reference import Reference, Source, load_reference
from gradmimic.wrapped import unwrapped


def lora_reference(
    model: nn.Module,
    reference: Source | Reference,
    params: Params = "weights",
    *,
    revision: str | None = None,
) -> tuple[Reference, Params]:
    """Prepare the reference of a model that trains a LoRA adapter.

    Args:
        model: a ``peft.PeftModel``, on the device where it is trained.
        reference: a better adapter of the same base (its folder, hub id, ``PeftModel`` or state
            dict), or a full fine-tune of that base (anything :func:`load_reference` takes).
        params: ``"weights"``, the whole weights of the adapted layers, for any reference;
            ``"adapter"``, A and B, for an adapter of the same shape that began from the same A; or
            what :class:`GradMimic` takes, such as ``"head"`` or patterns over the model's names.
            Both of the former include what trains in full beside the adapter
            (``modules_to_save``, biases).
        revision: the branch, tag or commit of a hub id.

    Returns:
        The reference and the scored parameters: what ``GradMimic(model, reference, params=…)``,
        :func:`mimic_scores` and :func:`check_reference` take. Made for this model, and for its
        active adapters as they are set now.

    Raises:
        ParameterError: the model has no active LoRA adapter, or one of a kind that is not a product
            of two matrices, which ``"weights"`` cannot score.
        ReferenceMismatchError: the reference is of another base, or, for ``"adapter"``, of another
            configuration; the message lists the differences.
        MissingExtraError: peft is not installed.

    Example:
        >>> import peft
        >>> config = peft.LoraConfig(target_modules=["0"], r=1)
        >>> model, better = (
        ...     peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), config) for _ in range(2)
        ... )
        >>> _ = nn.init.ones_(better.get_submodule("base_model.model.0.lora_B.default").weight)
        >>> reference, params = lora_reference(model, better)
        >>> reference.source
        'adapter of PeftModel'
    """
    peft = import_extra("peft", "peft")
    model = unwrapped(model)
    if not isinstance(model, peft.PeftModel):
        raise ParameterError(
            f"lora_reference expects a peft.PeftModel, got {type(model).__name__}. Pass the model "
            "that get_peft_model returned; for others, GradMimic takes the reference as it is."
        )
    kind = params if isinstance(params, str) else None
    if kind not in ("weights", "adapter") and not has_lora(model):
        return load_reference(reference, revision=revision), params
    student = Student.of(model)
    given = read(reference, revision)
    if isinstance(given, Adapter):
        given.check_base(student)
    if kind == "weights":
        return _of_weights(student, given, ours=isinstance(reference, str | PathLike))
    if isinstance(given, Reference):
        if kind == "adapter":
            raise ReferenceMismatchError(
                f"The reference ({given.source}) is no LoRA adapter: it has no lora_A and lora_B. "
                "params='weights' takes a full fine-tune of the base as well."
            )
        return FullWeights(given.tensors, given.source, active=student.active), params
    if kind == "adapter":
        given.check_like(student)
        params = [*student.factors, *student.others]
    return Reference(given.named(student), given.source), params


@dataclass(frozen=True)
class FullWeights(Reference):
    """The weights of a whole model, by the names that it has without adapters.

    Args:
        active: the adapters whose ``modules_to_save`` stand for the base model's.
    """

    active: tuple[str, ...] = ()

    def match(self, model: nn.Module, subset: Subset, **more: Any) -> dict[str, Tensor]:
        """Bring the weights beside the scored parameters, as in :class:`Reference`."""
        return super().match(model, subset, called=lambda name: plain(name, self.active), **more)


def _of_weights(
    student: Student, given: Adapter | Reference, *, ours: bool
) -> tuple[Reference, Params]:
    layers = student.adapted_layers()
    targets: dict[str, LowRank | Tensor] = {}
    others: Reference
    if isinstance(given, Adapter):
        targets.update({own.name: given.change(student, own) for own in layers})
        named = given.named(student)
        own_names = set(student.others)
        others = Reference({n: t for n, t in named.items() if n in own_names}, given.source)
    else:
        others = FullWeights(given.tensors, given.source, active=student.active)
        for name, layer in student.layers.items():
            targets[name] = _difference(student.model, name, layer, others)
            if ours and isinstance(given.tensors, ReadOnAccess):
                given.tensors.forget()  # else W_ref would stay beside W_ref − W
    choice = AdaptedLayers(layers, targets, student.others)
    return ChangesReference({}, given.source, choice=choice, named=others), choice


def _difference(model: nn.Module, name: str, layer: Any, reference: Reference) -> Tensor:
    """Return W_ref − W of one layer, ``[out, in]``, in W's dtype."""
    weight = base_weight(layer)
    subset = choose(model, f"{name}.base_layer.weight")
    (found,) = reference.match(model, subset).values()
    theirs = found.T if layer.fan_in_fan_out else found
    exact = torch.promote_types(weight.dtype, torch.float32)
    return (theirs.to(exact) - weight.to(exact)).to(weight.dtype)
