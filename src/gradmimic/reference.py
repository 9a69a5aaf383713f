"""Where θ_ref comes from: a module, a state dict, a checkpoint on disk or on the hub.

The reference's keys are read as the model's names: as they are, else renamed in one way for all of
them, by what wrappers add (``module.``, ``_orig_mod.``, ``model.``) or by one prefix.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike

from torch import Tensor, nn

from gradmimic.checkpoint import FORMS, only_tensors, read_weights
from gradmimic.direction import Subset
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.wrapped import whole

Source = nn.Module | Mapping[str, Tensor] | str | PathLike[str]

# What DDP and AveragedModel, torch.compile, training frameworks, FSDP and activation checkpoints
# put into the names of the modules that they wrap.
_WRAPPERS = {"module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTERS = {"n_averaged"}  # AveragedModel's own, beside the weights

Reading = dict[str, str | None]  # the reference's key -> the model's name for it, if it has one


@dataclass(frozen=True)
class Reference:
    """A better model's weights.

    Args:
        tensors: the weights by name; those that are scored are enough.
        source: where they came from, for messages and the run's record.
        projections: names of all that project into one space, scored or not: what
            ``align="rotation"`` turns together. By default all that is scored.
        fixed: why turning them would change what the model says; empty where it would not.
    """

    tensors: Mapping[str, Tensor]
    source: str
    projections: tuple[str, ...] = ()
    fixed: str = ""
    _told: list[Reading] = field(default_factory=list, init=False, repr=False, compare=False)

    def match(
        self,
        model: nn.Module,
        subset: Subset,
        *,
        free: Mapping[str, int] | None = None,
        called: Callable[[str], str | None] = str,
    ) -> dict[str, Tensor]:
        """Bring the reference's weights beside the scored parameters of a model.

        Names are compared as they are; where that leaves any over, also without the names of
        wrappers (``module.``, ``_orig_mod.``, ``model.``, on either side, anywhere) and with one
        prefix more or less, as of a head or a backbone inside a bigger model. If exactly one such
        reading fits best it is used, and a warning says so, once.

        Args:
            model: the model being trained.
            subset: its scored parameters.
            free: by parameter, a dimension that may be of another size.
            called: what the reference calls the model's tensors, where that is another name; None
                for those that it does not have.

        Returns:
            θ_ref,S by the subset's names, in the parameters' dtypes and on their devices.

        Raises:
            ReferenceMismatchError: a scored parameter is missing, a key of the reference exists
                nowhere in the model, shapes differ, or values are of another kind (integers).

        Example:
            >>> import torch
            >>> from gradmimic.direction import choose
            >>> model = nn.Linear(2, 1)
            >>> weights = load_reference({"weight": torch.ones(1, 2), "bias": torch.ones(1)})
            >>> weights.match(model, choose(model))["bias"]
            tensor([1.])
        """
        state = {
            **model.state_dict(keep_vars=True),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        # name -> identity, since a tied parameter has several names
        known = {
            theirs: id(value)
            for name, value in state.items()
            if (theirs := called(name)) is not None
        }
        aliases: dict[int, list[str]] = {}
        for name, identity in known.items():
            aliases.setdefault(identity, []).append(name)
        scored = {
            name: [called(name) or name, *aliases.get(id(parameter), [])]
            for name, parameter in subset.parameters.items()
        }
        reading = _best_reading([*self.tensors], known, scored)
        key_of = {name: key for key, name in reading.items() if name is not None}
        keys = {
            name: next(key_of[alias] for alias in names if alias in key_of)
            for name, names in scored.items()
            if not key_of.keys().isdisjoint(names)
        }
        note = _note(reading, keys.values())
        missing = [name for name in scored if name not in keys]
        surplus = [key for key, name in reading.items() if name is None]
        found = {name: self.tensors[key] for name, key in keys.items()}
        shapes, kinds = [], []
        for name, tensor in found.items():
            parameter = subset.parameters[name]
            if _fixed(tensor, free, name) != _fixed(parameter, free, name):
                shapes.append(
                    f"{name}: model {list(parameter.shape)}, reference {list(tensor.shape)}"
                )
            elif _kind(tensor) != _kind(parameter):
                kinds.append(f"{name}: model {parameter.dtype}, reference {_kind(tensor)}")
        problems = [
            f"{what}: {listed(items)}"
            for what, items in (
                ("missing from the reference", missing),
                ("unknown to the model", surplus),
                ("of another shape", shapes),
                ("of another kind", kinds),
            )
            if items
        ]
        if problems:
            raise ReferenceMismatchError(
                f"The reference ({self.source}) does not fit {type(model).__name__}; "
                + "; ".join(problems)
                + (f"; {note}" if note else "")
                + ". Expected the weights of the same architecture under the same names."
            )
        if note and reading not in self._told:  # match is called again when the model moves
            self._told.append(reading)
            warnings.warn(
                f"The reference ({self.source}) names its weights otherwise than "
                f"{type(model).__name__}: {note}.",
                stacklevel=2,
            )
        here = subset.parameters
        return {
            name: whole(tensor.detach()).to(here[name].device, here[name].dtype)
            for name, tensor in found.items()
        }


def _fixed(tensor: Tensor, free: Mapping[str, int] | None, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, without the size of the dimension that is free."""
    at = (free or {}).get(name)
    return tuple(-1 if place == at else size for place, size in enumerate(tensor.shape))


def load_reference(source: "Source | Reference", *, revision: str | None = None) -> Reference:
    """Load a better model's weights.

    Args:
        source: an ``nn.Module``; a state dict, alone or under the key ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``; or a string or path, where what exists on disk
            wins over a hub id:

            - a ``.safetensors`` file (extra ``safetensors``): only what is asked for is read;
            - a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file that holds a state dict, as above;
            - the ``*.index.json`` of a sharded checkpoint: shards are opened as needed;
            - a folder that holds one of these under its usual name, or only one;
            - ``"owner/name"``, the same on the Hugging Face hub (extra ``hub``).

            Nothing that could run code is unpickled.
        revision: the branch, tag or commit of a hub id.

    Returns:
        The reference. A module's weights are copied, so training it on does not move them.

    Raises:
        ReferenceMismatchError: nothing is there, it is truncated, holds more than tensors, or its
            format is not known.
        MissingExtraError: the library that reads this format is not installed.

    Example:
        >>> load_reference(nn.Linear(2, 1)).source
        'module Linear'
    """
    if isinstance(source, str | PathLike):
        return Reference(*read_weights(source, revision))
    if revision is not None:
        raise ReferenceMismatchError(
            f"revision={revision!r} came with a {type(source).__name__}. Only a repository on the "
            "hub, 'owner/name', has revisions; leave it out."
        )
    if isinstance(source, Reference):
        return source
    if isinstance(source, nn.Module):
        state = {
            name: tensor.detach().clone()
            for name, tensor in source.state_dict().items()
            if isinstance(tensor, Tensor)  # a module may keep extra state, which is no weight
        }
        return Reference(state, f"module {type(source).__name__}")
    if isinstance(source, Mapping):
        return Reference(only_tensors(source, "state dict"), "state dict")
    raise ReferenceMismatchError(
        f"The reference is a {type(source).__name__}. Expected a module, a state dict, {FORMS}."
    )


def _best_reading(
    keys: list[str], known: Mapping[str, int], scored: Mapping[str, list[str]]
) -> Reading:
    """Read the keys as names: as they are, unless one other reading alone leaves fewer over."""
    exact: Reading = {key: key if key in known else None for key in keys}
    exact = {key: name for key, name in exact.items() if name or key not in _COUNTERS}

    def left_over(reading: Reading) -> int:
        read = {name for name in reading.values() if name}
        missing = sum(read.isdisjoint(names) for names in scored.values())
        return missing + sum(name is None for name in reading.values())

    fewest = left_over(exact)
    if fewest == 0:
        return exact
    best = [exact]
    for reading in _other_readings([*exact], known, scored):
        left = left_over(reading)
        if left < fewest:
            fewest, best = left, [reading]
        elif left == fewest and reading not in best:
            best.append(reading)
    return best[0] if len(best) == 1 else exact


def _other_readings(
    keys: list[str], known: Mapping[str, int], scored: Mapping[str, list[str]]
) -> Iterator[Reading]:
    """Every renaming of all the keys at once that keeps them apart."""
    wanted = {alias for names in scored.values() for alias in names}
    strips: tuple[Callable[[str], str], ...] = (str, _unwrapped)
    for strip in strips:
        name_of = {strip(name): name for name in known}
        stripped = {key: strip(key) for key in keys}
        apart = len({(strip(name), identity) for name, identity in known.items()}) == len(name_of)
        if not apart or len(set(stripped.values())) < len(keys):
            continue
        yield {key: name_of.get(bare) for key, bare in stripped.items()}
        less, more = _prefixes(set(stripped.values()), {strip(name) for name in wanted})
        for prefix in less:
            yield {
                key: name_of.get(bare.removeprefix(prefix)) if bare.startswith(prefix) else None
                for key, bare in stripped.items()
            }
        for prefix in more:
            yield {key: name_of.get(prefix + bare) for key, bare in stripped.items()}


def _prefixes(keys: set[str], wanted: set[str], most: int = 8) -> tuple[list[str], list[str]]:
    """The prefixes that, taken off or put before the keys, give the most of the wanted names."""
    less = Counter(prefix for key in keys for prefix, rest in _splits(key) if rest in wanted)
    more = Counter(prefix for name in wanted for prefix, rest in _splits(name) if rest in keys)
    return [p for p, _ in less.most_common(most)], [p for p, _ in more.most_common(most)]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Split a name after each of its dots."""
    for i, letter in enumerate(name):
        if letter == ".":
            yield name[: i + 1], name[i + 1 :]


def _unwrapped(name: str) -> str:
    *modules, attribute = name.split(".")
    return ".".join([*(module for module in modules if module not in _WRAPPERS), attribute])


def _note(reading: Reading, scored: Iterable[str]) -> str | None:
    """Say how keys were read, by the first one that was renamed, a scored one if there is any."""
    for key in (*scored, *reading):
        name = reading[key]
        if name is None or name == key:
            continue
        ours, theirs = name.split("."), key.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop(), theirs.pop()
        before, after = ("".join(f"{part}." for part in parts) for parts in (theirs, ours))
        how = f"prefix {before!r}" + (f" for {after!r}" if after else "")
        return f"matched {key!r} as {name!r} ({how})"
    return None


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta, without values"
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else str(tensor.dtype)
