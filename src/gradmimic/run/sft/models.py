"""The model to be fine-tuned, its better sibling, and the tokenizer of both.

<folder>        as save_pretrained leaves it; of an adapter, which is merged into its base
<hub id>[@revision]
<file>          .safetensors, .pt or .bin: a reference's weights, in the model's architecture
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gradmimic.direction import choose
from gradmimic.errors import ConfigError, ReferenceMismatchError
from gradmimic.extras import import_extra
from gradmimic.reference import Reference, load_reference
from gradmimic.run.sft.config import SftConfig

LONGEST = 2048  # tokens, by default


class SftModels(NamedTuple):
    """Everything with weights, on the device, and what feeds it."""

    model: nn.Module
    reference: Reference
    whole: nn.Module | None  # the reference as a model, where its loss is wanted
    tokenizer: Any
    max_length: int
    notes: list[str]


def open_models(config: SftConfig, device: torch.device) -> SftModels:
    """Open the model, the reference and the tokenizer.

    Raises:
        ConfigError: one of them is not there, or they do not fit.
        ReferenceMismatchError: the reference's weights are damaged.
        MissingExtraError: ``transformers`` is not installed.
    """
    transformers = import_extra("transformers", "sft")
    tokenizer = _opened(
        transformers.AutoTokenizer, config.tokenizer or config.model, "tokenizer", "its tokenizer"
    )
    model = _open_model(config.model, "model", config, device)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if config.max_length is not None and most is not None and config.max_length > most:
        raise ConfigError(
            f"max_length is {config.max_length}, but {config.model} takes {most} tokens at most."
        )
    assert config.reference is not None  # noqa: S101  its keys are checked
    source, revision = split_revision(config.reference)
    notes: list[str] = []
    whole: Any = None
    if _is_adapter(source) or (config.reference_loss and not Path(source).is_file()):
        whole = _open_model(config.reference, "reference", config, device)
        reference = Reference(whole.state_dict(), config.reference)  # no copy
        whole = whole if config.reference_loss else None
    else:
        reference = load_reference(source, revision=revision)  # reads only what is scored
        if config.reference_loss:
            whole = _filled(model, reference, notes)
    for name, own in ((config.model, model), (config.reference, whole)):
        if own is not None and len(tokenizer) > (rows := own.get_input_embeddings().num_embeddings):
            raise ConfigError(
                f"The tokenizer has {len(tokenizer)} tokens, but {name} has embeddings of {rows}. "
                "Give --tokenizer, that of the model."
            )
    length = config.max_length or min(LONGEST, most or LONGEST)
    return SftModels(model, reference, whole, tokenizer, length, notes)


def split_revision(spec: str) -> tuple[str, str | None]:
    """Tell a hub id from its revision; what exists on disk has none.

    Example:
        >>> split_revision("owner/name@v2"), split_revision("owner/name")
        (('owner/name', 'v2'), ('owner/name', None))
    """
    if Path(spec).exists():
        return spec, None
    name, _, revision = spec.partition("@")
    return name, revision or None


def _open_model(spec: str, what: str, config: SftConfig, device: torch.device) -> Any:
    """Open a causal language model with its weights."""
    dtype = getattr(torch, config.dtype)
    if _is_adapter(spec):
        peft = import_extra("peft", "peft")
        adapted = _opened(peft.AutoPeftModelForCausalLM, spec, what, "its weights", dtype=dtype)
        model = adapted.merge_and_unload()
    else:
        transformers = import_extra("transformers", "sft")
        model = _opened(transformers.AutoModelForCausalLM, spec, what, "its weights", dtype=dtype)
    return model.to(device).eval().requires_grad_(True)


def _is_adapter(spec: str) -> bool:
    """Tell whether a folder holds an adapter of PEFT's, without its base."""
    folder = Path(spec)
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def _opened(kind: Any, spec: str, what: str, missing: str, **how: Any) -> Any:
    """Call ``from_pretrained``; whatever is wrong has one wording."""
    name, revision = split_revision(spec)
    if Path(name).is_file():
        raise ConfigError(
            f"The {what} {spec} is a file; expected a folder with config.json and {missing}, or a "
            "hub id."
        )
    try:
        return kind.from_pretrained(name, **({"revision": revision} if revision else {}), **how)
    except Exception as error:  # whatever the hub, the network or a damaged file raises
        raise ConfigError(
            f"Cannot open the {what} {spec}: {error} Expected a folder as save_pretrained leaves "
            "it, or the id of a causal language model on the hub, id@revision."
        ) from error


def _filled(model: nn.Module, reference: Reference, notes: list[str]) -> Any:
    """Return a copy of the model with the reference's weights, where it has all of them."""
    whole = deepcopy(model)
    try:
        tensors = reference.match(whole, choose(whole, "all"))
    except ReferenceMismatchError:
        notes.append(
            f"{reference.source} does not hold all weights of the model, so the reference's own "
            "loss is not known: there is no rival to compare with."
        )
        return None
    with torch.no_grad():
        for name, parameter in choose(whole, "all").parameters.items():
            parameter.copy_(tensors[name])
    return whole
