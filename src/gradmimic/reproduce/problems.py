"""What a cell of a table learns: a set, a backbone, and what of it is trained.

probe     h = backbone(x), computed once and kept        z = W h + b, W and b are trained
full      z = W backbone(x) + b                          all is trained
features  h computed elsewhere                           as probe
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradmimic.atomic import atomic_write
from gradmimic.data.files import load_npy
from gradmimic.errors import ConfigError
from gradmimic.reproduce.backbones import Backbone, encode_steps, fresh_head
from gradmimic.reproduce.digest import digest
from gradmimic.reproduce.sets import SETS, ImageSet, load_set
from gradmimic.reproduce.split import Split
from gradmimic.run.prepare import Progress
from gradmimic.run.train import Rows

Tuning = Literal["probe", "full"]
FEATURES = "features"  # in the place of a backbone


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows to learn from and to test on, and models to begin with.

    Args:
        classes: their names.
        train: inputs and clean labels, on the device that trains.
        test: likewise.
        start: ``seed -> model``; the same seed gives the same weights.
        identity: what decides all this, as plain data: names, and digests of contents.
    """

    classes: tuple[str, ...]
    train: Rows
    test: Rows
    start: Callable[[int], nn.Module]
    identity: Mapping[str, str]


def open_problem(
    name: str,
    path: str | PathLike[str] | None,
    backbone: str,
    tuning: Tuning,
    cache: Path,
    progress: Progress = lambda _what, _steps: lambda: None,
) -> Problem:
    """Open a set as a backbone sees it.

    Args:
        name: of the set, as for :func:`load_set`.
        path: of a local copy, likewise.
        backbone: as for :class:`Backbone`; or ``"features"``, those beside the local copy.
        tuning: ``"probe"``, the head alone is trained; or ``"full"``.
        cache: the folder for the features of probes.
        progress: told of the encoding.

    Raises:
        ConfigError: there is no such set or backbone; or features are to be tuned in full.
        DataError: the set cannot be read, or features do not fit it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for part in ("train", "test"):
        ...     np.save(folder / f"features_{part}.npy", np.eye(2))
        ...     np.save(folder / f"labels_{part}.npy", np.array([0, 1]))
        >>> open_problem("two", folder, "features", "probe", folder).start(0)(torch.eye(2)).shape
        torch.Size([2, 2])
    """
    if backbone == FEATURES and tuning == "full":
        raise ConfigError(
            "backbone features and tuning full: features have no weights to train. Expected "
            "--tuning probe, or a backbone by hub id or folder."
        )
    data = load_set(name, path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts, about = (data.train, data.test), {"set": name, "tuning": tuning}
    if backbone == FEATURES:
        arrays = [part.features() for part in parts]
        content = digest(*arrays, *(part.labels for part in parts))
        about |= {"backbone": FEATURES, "data": content}
        return _probe(data, [torch.tensor(array) for array in arrays], device, about)
    model = Backbone(backbone, len(data.classes)).to(device)
    content = digest(*(part.labels for part in parts), *(part.encoded() for part in parts))
    shown = Path(backbone).name if Path(backbone).is_dir() else backbone
    about |= {"backbone": shown, "weights": model.digest, "data": content}
    own = SETS[name].pixels if name in SETS else None
    size = min(own or model.size, model.size)  # small pictures are kept small until they are used
    if tuning == "full":
        train, test = (_rows(torch.from_numpy(p.pictures(size)), p, device) for p in parts)
        width, classes = model.width, len(data.classes)
        start = lambda seed: deepcopy(model).with_head(fresh_head(width, classes, seed).to(device))
        return Problem(data.classes, train, test, start, about)
    files = [cache / f"{content}-{model.digest}-{part}.npy" for part in ("train", "test")]
    seen = [_encoded(model, *both, size, progress) for both in zip(parts, files, strict=True)]
    return _probe(data, seen, device, about)


def _probe(
    data: ImageSet, features: list[Tensor], device: torch.device, about: Mapping[str, str]
) -> Problem:
    parts = zip(features, (data.train, data.test), strict=True)
    train, test = (_rows(h, part, device) for h, part in parts)
    width, classes = features[0].shape[1], len(data.classes)
    start = lambda seed: fresh_head(width, classes, seed).to(device)
    return Problem(data.classes, train, test, start, about)


def _rows(inputs: Tensor, part: Split, device: torch.device) -> Rows:
    return Rows(inputs.to(device), torch.from_numpy(part.labels).to(device))


def _encoded(model: Backbone, part: Split, file: Path, size: int, progress: Progress) -> Tensor:
    """Return ``[n, d]`` features, kept as a file from the first time on."""
    if file.is_file():
        return torch.tensor(load_npy(file))
    pictures = torch.from_numpy(part.pictures(size))
    found = model.encode(pictures, progress(f"features of {part.where}", encode_steps(len(part))))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as out:
        np.save(out, found.numpy())
    return found
