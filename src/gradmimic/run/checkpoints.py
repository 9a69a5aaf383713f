"""Which files a training left, in their order, and the models that they hold.

A frozen trunk is the same in every checkpoint: it is kept once and run once a batch.
"""

import glob
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradmimic.checkpoint import SUFFIXES
from gradmimic.errors import ConfigError, listed
from gradmimic.run.models import Classifier


def find_checkpoints(given: Sequence[str]) -> list[Path]:
    """List the files that are meant: a folder stands for those in it, a pattern for what it finds.

    Args:
        given: paths of files and folders, and patterns such as ``"epoch-*.pt"``, in order.

    Returns:
        The files, each once; those of a folder or a pattern by name, numbers as numbers.

    Raises:
        ConfigError: one of them matches nothing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("epoch-10.pt", "epoch-9.pt", "notes.txt"):
        ...     (folder / name).touch()
        >>> [path.name for path in find_checkpoints([str(folder)])]
        ['epoch-9.pt', 'epoch-10.pt']
    """
    files: dict[Path, Path] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            held = [file for file in path.iterdir() if file.suffix in SUFFIXES]
            found = sorted(held, key=_natural)
        elif path.exists():
            found = [path]
        else:
            found = sorted(map(Path, glob.glob(name)), key=_natural)  # noqa: PTH207  of any root
        if not found:
            what = f"the folder {name} holds" if path.is_dir() else f"{name} matches"
            raise ConfigError(
                f"{what} no checkpoint (from {Path.cwd()}). Expected files of weights "
                f"({', '.join(SUFFIXES)}), a folder of them, or a pattern such as 'epoch-*.pt'."
            )
        for file in found:
            files.setdefault(file.resolve(), file)
    if not files:
        raise ConfigError(
            "There is no checkpoint: name the weights to score with, one file for each visit."
        )
    return list(files.values())


def check_classes(models: Mapping[str, Classifier], classes: Sequence[str], what: str) -> None:
    """Refuse models of other classes than the labels'.

    Args:
        models: by name.
        classes: those that occur among the labels.
        what: what the models are, for the message.

    Raises:
        ConfigError: naming one.
    """
    for name, model in models.items():
        if model.head.out_features != len(classes):
            raise ConfigError(
                f"The {what} {name} gives {model.head.out_features} outputs, but the labels "
                f"have {len(classes)} classes: {listed(classes)}. Expected one output for each "
                "class that occurs."
            )


class Remembered(nn.Module):
    """A module that is run once on the same tensor, however often it is asked.

    Args:
        module: of one input, in eval mode and not trained meanwhile.

    Example:
        >>> asked = Remembered(nn.Dropout())
        >>> x = torch.ones(8)
        >>> asked(x) is asked(x), asked(x) is asked(x.clone())
        (True, False)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._last: tuple[Tensor, Any] | None = None

    def forward(self, x: Tensor) -> Any:
        """Return what the module says of ``x``."""
        if self._last is None or self._last[0] is not x:
            self._last = x, self.module(x)
        return self._last[1]


def with_shared_trunks(models: Mapping[str, Classifier]) -> dict[str, nn.Module]:
    """Let checkpoints whose layers below the head are alike share them.

    Args:
        models: the checkpoints.

    Returns:
        By the same names: ``trunk``, scaling included, and ``head``.
    """
    trunks: dict[str, Remembered] = {}
    shared: dict[str, nn.Module] = {}
    for name, model in models.items():
        own = Remembered(nn.Sequential(model.scale, model.trunk))
        trunk = trunks.setdefault(digest_below_head(model), own)
        shared[name] = nn.Sequential(OrderedDict(trunk=trunk, head=model.head))
    return shared


def digest_below_head(model: Classifier) -> str:
    """Return a name for the layers below the head: the same weights, the same name."""
    state = model.state_dict()
    return digest({name: state[name] for name in state if not name.startswith("head.")})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a name for some weights.

    Example:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(3)})
        False
    """
    told = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        told.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        told.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Order by name, epoch-9 before epoch-10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
