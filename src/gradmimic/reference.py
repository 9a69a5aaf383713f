"""Where θ_ref comes from: a module, a state dict, or a file, never a pickle that could run code."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from gradmimic.direction import Subset
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.extras import import_extra

Source = nn.Module | Mapping[str, Tensor] | str | PathLike[str]


@dataclass(frozen=True)
class Reference:
    """A better model's weights.

    Args:
        tensors: the weights by name; those that are scored are enough.
        source: where they came from, for messages and the run's record.
    """

    tensors: Mapping[str, Tensor]
    source: str

    def match(self, model: nn.Module, subset: Subset) -> dict[str, Tensor]:
        """Bring the reference's weights beside the scored parameters of a model.

        Args:
            model: the model being trained.
            subset: its scored parameters.

        Returns:
            θ_ref,S by the subset's names, in the parameters' dtypes and on their devices.

        Raises:
            ReferenceMismatchError: a scored parameter is missing, a key of the reference exists
                nowhere in the model, or shapes differ.

        Example:
            >>> from gradmimic.direction import choose
            >>> model = nn.Linear(2, 1)
            >>> weights = load_reference({"weight": torch.ones(1, 2), "bias": torch.ones(1)})
            >>> weights.match(model, choose(model))["bias"]
            tensor([1.])
        """
        state = model.state_dict(keep_vars=True)
        aliases: dict[int, list[str]] = {}  # the names under which the model knows one parameter
        for name, parameter in model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        found: dict[str, Tensor] = {}
        missing = []
        for name, parameter in subset.parameters.items():
            known_as = [name, *aliases.get(id(parameter), [])]
            key = next((key for key in known_as if key in self.tensors), None)
            if key is None:
                missing.append(name)
            else:
                found[name] = self.tensors[key]
        surplus = [key for key in self.tensors if key not in state]
        shapes = [
            f"{name}: model {list(subset.parameters[name].shape)}, reference {list(tensor.shape)}"
            for name, tensor in found.items()
            if tensor.shape != subset.parameters[name].shape
        ]
        if missing or surplus or shapes:
            problems = [
                f"{what}: {listed(items)}"
                for what, items in (
                    ("missing from the reference", missing),
                    ("unknown to the model", surplus),
                    ("of another shape", shapes),
                )
                if items
            ]
            raise ReferenceMismatchError(
                f"The reference ({self.source}) does not fit {type(model).__name__}; "
                + "; ".join(problems)
                + ". Expected the weights of the same architecture under the same names."
            )
        return {
            name: tensor.detach().to(subset.parameters[name])  # dtype and device
            for name, tensor in found.items()
        }


def load_reference(source: "Source | Reference") -> Reference:
    """Load a better model's weights.

    Args:
        source: an ``nn.Module``; a state dict; the path of a ``.safetensors`` file (extra
            ``safetensors``) or of a ``.pt``, ``.pth`` or ``.bin`` file that holds a state dict,
            alone or under the key ``"state_dict"`` or ``"model"``. Nothing that could run code is
            unpickled.

    Returns:
        The reference. A module's weights are copied, so training it on does not move them.

    Raises:
        ReferenceMismatchError: the file is missing, truncated, holds more than tensors, or its
            format is not known.
        MissingExtraError: a ``.safetensors`` file without that library.

    Example:
        >>> load_reference(nn.Linear(2, 1)).source
        'module Linear'
    """
    if isinstance(source, Reference):
        return source
    if isinstance(source, nn.Module):
        state = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
        return Reference(state, f"module {type(source).__name__}")
    if isinstance(source, Mapping):
        return Reference(_only_tensors(source, "state dict"), "state dict")
    path = Path(source)
    if not path.is_file():
        raise ReferenceMismatchError(
            f"There is no reference file at {path}. Expected a .safetensors or .pt file of weights."
        )
    if path.suffix == ".safetensors":
        return Reference(_read_safetensors(path), str(path))
    if path.suffix in {".pt", ".pth", ".bin"}:
        return Reference(_read_torch(path), str(path))
    raise ReferenceMismatchError(
        f"{path} ends in {path.suffix!r}; a reference file ends in .safetensors, .pt, .pth or .bin."
    )


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    library = import_extra("safetensors", "safetensors")
    load_file = import_extra("safetensors.torch", "safetensors").load_file
    try:
        tensors: Mapping[str, Tensor] = load_file(path)
    except library.SafetensorError as error:
        raise ReferenceMismatchError(f"{path} is damaged or truncated: {error}") from error
    return tensors


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ReferenceMismatchError(
            f"{path} holds more than tensors, and loading that could run code. Save the model's "
            "state_dict() alone, or as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ReferenceMismatchError(f"{path} is damaged or truncated: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return _only_tensors(content, str(path))


def _only_tensors(content: object, source: str) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise ReferenceMismatchError(
            f"The reference ({source}) is {type(content).__name__} of length "
            f"{len(content) if isinstance(content, Mapping) else '?'}; expected a state dict: "
            "names to tensors."
        )
    wrong = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ReferenceMismatchError(
            f"The reference ({source}) holds values that are not tensors under "
            f"{listed(wrong)}. Expected a state dict: names to tensors."
        )
    return {str(key): value for key, value in content.items()}
