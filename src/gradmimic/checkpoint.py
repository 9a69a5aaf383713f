"""Read weights from disk or from the hub: only those asked for, and nothing that could run code.

a local path             a .safetensors or .pt file, an index of shards, or a folder that holds one
"owner/name"             the same files of a repository on the Hugging Face hub

A .safetensors file tells its names and shapes in its header, and a sharded checkpoint in its index:
the tensors themselves are read, and shards of the hub downloaded, when they are first asked for.
"""

import json
import pickle
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradmimic.errors import MissingExtraError, ReferenceMismatchError, listed
from gradmimic.extras import import_extra

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
FORMS = (
    "a .safetensors, .pt, .pth, .bin or .ckpt file, a *.index.json of shards, a folder that holds "
    "one of these, or the id of a repository on the hub, 'owner/name'"
)
# What Hugging Face calls a model's weights, the best first.
_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w([\w.-]*\w)?", re.ASCII)
_WEIGHTS_UNDER = ("state_dict", "model_state_dict", "model")


def read_weights(
    source: str | PathLike[str], revision: str | None = None
) -> tuple[Mapping[str, Tensor], str]:
    """Open a checkpoint.

    Args:
        source: a local path, which wins, or the id of a repository on the hub.
        revision: the hub's branch, tag or commit.

    Returns:
        The tensors by name, on the CPU, read on access where the format allows it; and where they
        came from, in words.

    Raises:
        ReferenceMismatchError: nothing is there, it is damaged, it is no checkpoint, or loading it
            could run code.
        MissingExtraError: the library that reads this format is not installed.
    """
    path = Path(source)
    if not path.exists() and isinstance(source, str) and _is_hub_id(source):
        return _from_hub(source, revision)
    if revision is not None:
        raise ReferenceMismatchError(
            f"revision={revision!r} came with {path}, which is no hub id. Only a repository on the "
            "hub, 'owner/name', has revisions; leave it out."
        )
    if path.is_dir():
        path = path / _pick([file.name for file in path.iterdir()], f"The folder {path}")
    if not path.is_file():
        raise ReferenceMismatchError(f"There is no reference file at {path}. Expected {FORMS}.")
    fetch = partial(_beside, path)
    tensors = _open(path, fetch)
    if isinstance(tensors, Shards):
        tensors.check()  # all of them are here, so a gap shows now
    return tensors, str(path)


def only_tensors(content: object, source: str) -> Mapping[str, Tensor]:
    """Check that this is a state dict, alone or under the key that training scripts give it."""
    for key in _WEIGHTS_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
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
            f"{listed(wrong)}. Expected a state dict, names to tensors, alone or under the key "
            f"{' or '.join(repr(key) for key in _WEIGHTS_UNDER)}."
        )
    return {str(key): value for key, value in content.items()}


class ReadOnAccess(Mapping[str, Tensor]):
    """Tensors whose names are known and whose values are read once each, when first asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        # Kept, so that a file which is replaced during a run does not change the reference.
        self._read: dict[str, Tensor] = {}

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = self.read(name)
        return self._read[name]

    def forget(self) -> None:
        """Let go of what was read; it is read anew when asked for again."""
        self._read.clear()

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SafeTensors(ReadOnAccess):
    """One .safetensors file, whose header is checked against its size at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as file:
            super().__init__(file.keys())
        if not self:
            raise ReferenceMismatchError(f"{path} holds no tensors. Expected a model's weights.")

    def read(self, name: str) -> Tensor:
        """Read one tensor out of the file."""
        with self._opened() as file:
            # A copy: what the library returns is the file's own pages, which a training that saves
            # its checkpoint there again would change, or take away.
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        library = import_extra("safetensors", "safetensors")
        try:
            with library.safe_open(self._path, framework="pt") as file:
                yield file
        except (library.SafetensorError, OSError) as error:
            raise ReferenceMismatchError(
                f"{self._path} is damaged or truncated: {error}"
            ) from error


class Shards(ReadOnAccess):
    """A checkpoint in several files; an index says which tensor is in which.

    Args:
        index: the path of the index, ``{"weight_map": {name: file name}}``.
        fetch: the path of a shard by its file name.
    """

    def __init__(self, index: Path, fetch: Callable[[str], Path]) -> None:
        self._index, self._fetch = index, fetch
        self._shard_of = _weight_map(index)
        self._open: dict[str, Mapping[str, Tensor]] = {}
        super().__init__(self._shard_of)

    def read(self, name: str) -> Tensor:
        """Read one tensor out of its shard."""
        return self._shard(self._shard_of[name], [name])[name]

    def forget(self) -> None:
        """Let go of what was read, of every shard in a format that reads on access."""
        super().forget()
        for shard in self._open.values():
            if isinstance(shard, ReadOnAccess):
                shard.forget()

    def check(self) -> None:
        """Look for every shard, and for every tensor where that takes a header only."""
        names: dict[str, list[str]] = {}
        for name, file in self._shard_of.items():
            names.setdefault(file, []).append(name)
        for file, expected in names.items():
            if file.endswith(".safetensors"):
                self._shard(file, expected)
            else:
                self._fetch(file)

    def _shard(self, file: str, expected: list[str]) -> Mapping[str, Tensor]:
        if file not in self._open:
            self._open[file] = _open(self._fetch(file))
        absent = [name for name in expected if name not in self._open[file]]
        if absent:
            raise ReferenceMismatchError(
                f"{self._index} lists tensors in {file} that are not in there: {listed(absent)}. "
                "The index and the shards are not of one checkpoint, or one of them is damaged."
            )
        return self._open[file]


def _open(path: Path, fetch: Callable[[str], Path] | None = None) -> Mapping[str, Tensor]:
    """Open one file by its suffix; an index too, where ``fetch`` finds its shards."""
    if path.suffix == ".safetensors":
        return SafeTensors(path)
    if path.suffix in SUFFIXES:
        return _read_torch(path)
    if path.name.endswith(INDEX) and fetch is not None:
        return Shards(path, fetch)
    raise ReferenceMismatchError(f"{path} ends in {path.suffix!r}; expected {FORMS}.")


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles and TorchScript: refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"holds more than tensors ({code[1]}), and loading that could run code"
            if code
            else "is damaged, or holds more than tensors, and loading that could run code"
        )
        raise ReferenceMismatchError(
            f"{path} {what}. Save the model's state_dict() alone, or as .safetensors."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        if "TorchScript" in str(error):
            raise ReferenceMismatchError(
                f"{path} is a TorchScript program, and loading that could run code. Save its "
                "state_dict() alone, or as .safetensors."
            ) from error
        raise ReferenceMismatchError(
            f"{path} is damaged or truncated: {type(error).__name__}: {error}"
        ) from error
    return only_tensors(content, str(path))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(shards.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReferenceMismatchError(
            f"{index} is damaged or no index of shards: {type(error).__name__}: {error}. Expected "
            'JSON with {"weight_map": {tensor name: file name}}.'
        ) from error
    strange = [  # an index does not get to name files elsewhere
        repr(file)
        for file in files
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix not in SUFFIXES
    ]
    if strange or not files:
        raise ReferenceMismatchError(
            f"{index} names {listed(strange) or 'nothing'} as shards. Expected the names of "
            f"{', '.join(SUFFIXES)} files in the same folder."
        )
    return dict(shards)


def _beside(index: Path, file: str) -> Path:
    path = index.with_name(file)
    if not path.is_file():
        raise ReferenceMismatchError(
            f"The shard {file} is missing from {index.parent}; {index.name} lists it. Copy all of "
            "the checkpoint's files there."
        )
    return path


def _pick(files: Iterable[str], where: str) -> str:
    """Choose the weights among a folder's files: the usual name, else the only such file."""
    files = set(files)
    for name in _USUAL:
        if name in files:
            return name
    if ".metadata" in files:
        raise ReferenceMismatchError(
            f"{where} is a distributed checkpoint; reading its .metadata, a pickle, could run code."
            " If you trust it, convert it: torch.distributed.checkpoint.format_utils."
            "dcp_to_torch_save(folder, 'reference.pt')."
        )
    weights = sorted(name for name in files if name.endswith((*SUFFIXES, INDEX)))
    if len(weights) != 1:
        raise ReferenceMismatchError(
            f"{where} holds {listed(weights) or 'no weights'}; expected {_USUAL[0]}, "
            f"{_USUAL[2]}, their index, or one {', '.join(SUFFIXES)} file. Pass the path of the "
            "file that you mean."
        )
    return weights[0]


def _is_hub_id(source: str) -> bool:
    named_like_a_file = source.endswith((*SUFFIXES, ".json", ".ckpt", ".parquet", ".onnx", ".git"))
    return bool(_HUB_ID.fullmatch(source)) and len(source) <= 96 and not named_like_a_file


def _from_hub(repo: str, revision: str | None) -> tuple[Mapping[str, Tensor], str]:
    try:
        hub = import_extra("huggingface_hub", "hub")
    except MissingExtraError as error:
        raise MissingExtraError(
            f"There is no file or folder {repo}, and to look for it on the hub: {error}"
        ) from error
    local = False
    try:
        files = [name for name in hub.list_repo_files(repo, revision=revision) if "/" not in name]
    except Exception as error:  # the hub's own errors, and those of whichever HTTP client it uses
        cached = (hub.try_to_load_from_cache(repo, name, revision=revision) for name in _USUAL)
        files = [Path(file).name for file in cached if isinstance(file, str)]
        if not files:
            raise _not_there(repo, revision, error) from error
        local = True
    if any(name.endswith(".safetensors") for name in files):
        files = [name for name in files if name.endswith((".safetensors", ".safetensors" + INDEX))]
    name = _pick(files, f"The repository {repo}")
    path = _download(repo, revision, local, name)
    # The cache keeps a commit's files in a folder of its name: shards have to be of the same.
    commit = path.parent.name if re.fullmatch("[0-9a-f]{40}", path.parent.name) else revision
    tensors = _open(path, partial(_download, repo, commit, local))
    return tensors, f"{repo} at {commit}" if commit else repo


def _download(repo: str, revision: str | None, local: bool, name: str) -> Path:
    hub = import_extra("huggingface_hub", "hub")
    try:
        return Path(hub.hf_hub_download(repo, name, revision=revision, local_files_only=local))
    except Exception as error:  # as above
        raise _not_there(f"{repo}/{name}", revision, error) from error


def _not_there(what: str, revision: str | None, error: Exception) -> ReferenceMismatchError:
    at = f" at revision {revision!r}" if revision else ""
    return ReferenceMismatchError(
        f"{what}{at} is no file or folder here and could not be had from the hub: "
        f"{type(error).__name__}: {' '.join(str(error).split())} Expected {FORMS}. Check the id, "
        "the revision, the connection and, for a private one, the login."
    )
