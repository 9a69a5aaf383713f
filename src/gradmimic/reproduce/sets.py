"""The image sets of the paper's Table 1, from the hub or a local copy: pictures, features, labels.

    name         on the hub                           train    test   classes   epochs
    dtd          tanganke/dtd                         3,760   1,880        47       10
    flowers102   dpdl-benchmark/oxford_flowers102     1,020   6,149       102       10
    stl10        tanganke/stl10                       5,000   8,000        10        5
    pets         timm/oxford-iiit-pet                 3,680   3,669        37        5
    cifar10      uoft-cs/cifar10                     50,000  10,000        10        5
    cifar100     uoft-cs/cifar100                    50,000  10,000       100        5

A local copy is a folder that ``save_to_disk`` of the ``datasets`` library wrote; or one of Parquets
with ``train`` or ``test`` in their paths, as on the hub; or of Parquets of neither, of which two
thirds of each class are to train on, as in DTD's own split. Beside them, or alone with
``labels_train.npy`` and ``labels_test.npy``, may lie ``features_train.npy`` and
``features_test.npy``, or ``features.npy`` where there is no split.
"""

import re
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradmimic.data import files
from gradmimic.data.classes import make_classes, number_labels
from gradmimic.data.columns import read_column
from gradmimic.data.datasets_library import load_hub, load_saved
from gradmimic.errors import ConfigError, DataError, listed
from gradmimic.extras import import_extra
from gradmimic.reproduce.split import Split, classes_of, numbered

PARTS = ("train", "test")
_IMAGE, _LABEL = ("image", "img"), ("label", "clean_label")  # what columns are called elsewhere
_NAMED = re.compile(r"(?<![a-z])(train|test)(?![a-z])")


@dataclass(frozen=True)
class Source:
    """Where a set lies on the hub, and how it is trained on.

    Args:
        hub: its id there.
        image: the column of pictures.
        label: the column of classes.
        pixels: the side of its pictures, where all are alike and small.
        epochs: that the paper trains on it.
    """

    hub: str
    image: str = "image"
    label: str = "label"
    pixels: int | None = None
    epochs: int = 5


SETS = {
    "dtd": Source("tanganke/dtd", epochs=10),
    "flowers102": Source("dpdl-benchmark/oxford_flowers102", epochs=10),
    "stl10": Source("tanganke/stl10", pixels=96),
    "pets": Source("timm/oxford-iiit-pet"),
    "cifar10": Source("uoft-cs/cifar10", image="img", pixels=32),
    "cifar100": Source("uoft-cs/cifar100", image="img", label="fine_label", pixels=32),
}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set to train on and to test on.

    Args:
        name: of the set.
        train: what is learned from.
        test: what accuracy is measured on.
        classes: their names.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]


def load_set(name: str, path: str | PathLike[str] | None = None) -> ImageSet:
    """Open a set: labels are read, pictures and features when they are asked for.

    Args:
        name: one of :data:`SETS`; or any, with a path.
        path: a local copy; left out, it is downloaded from the hub.

    Returns:
        Both parts under one numbering of the classes.

    Raises:
        ConfigError: there is no set of that name.
        DataError: it cannot be read.
        MissingExtraError: ``datasets`` is not installed.
    """
    if path is None:
        if name not in SETS:
            raise ConfigError(
                f"There is no set {name!r}; the sets are {', '.join(SETS)}. For one of your own, "
                f"say where it lies: --data {name}=FOLDER."
            )
        hub = f"hf://datasets/{SETS[name].hub}"
        parts = {
            part: load_hub(f"{hub}:{part}", extra="reproduce", streaming=False) for part in PARTS
        }
        return _set_of(name, parts, hub, None)
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"no folder {folder} (from {Path.cwd()}) for the set {name}; check --data")
    rows = _local(folder)
    return _set_of(name, rows, str(folder), folder) if rows else _features_alone(name, folder)


def _local(folder: Path) -> dict[str, Any]:
    """Open a local copy by its parts; ``""`` is the part of one without split."""
    if (folder / "dataset_dict.json").is_file():
        return {part: load_saved(str(folder / part), extra="reproduce") for part in PARTS}
    if (folder / "state.json").is_file():
        return {"": load_saved(str(folder), extra="reproduce")}
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        named = _NAMED.findall(file.relative_to(folder).as_posix())
        found.setdefault(named[-1] if named else "", []).append(file)
    if not found:
        return {}
    parts = PARTS if {*PARTS} & {*found} else ("",)
    for part in parts:
        if part not in found:
            raise DataError(
                f"{folder} has no Parquet with {part!r} in its path, but one with the other part. "
                "Expected both train and test, as on the hub."
            )
    datasets = import_extra("datasets", "reproduce")
    tables = {part: [files.open_parquet(file).read() for file in found[part]] for part in parts}
    return {part: datasets.Dataset(pa.concat_tables(own)) for part, own in tables.items()}


def _set_of(name: str, parts: dict[str, Any], where: str, folder: Path | None) -> ImageSet:
    """Find the columns, number the classes by the rows to train on, and split what has no split."""
    datasets = import_extra("datasets", "reproduce")
    source = SETS.get(name, Source(""))
    classes: tuple[str, ...] = ()
    splits: dict[str, Split] = {}
    for part, rows in parts.items():
        own = f"{where}, {part}" if part else where
        label = _column(rows, (source.label, *_LABEL))
        if label is None:
            raise DataError(
                f"{own} has no column of classes ({' or '.join(dict.fromkeys(_LABEL))}); it has "
                f"{listed(rows.column_names)}."
            )
        classes = classes or classes_of(rows, label)
        image = _column(rows, (source.image, *_IMAGE))
        if image is not None and isinstance(rows.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))  # to bytes, as they came
        labels = numbered(rows, label, classes, own)
        splits[part] = Split(labels, own, rows, image, _precomputed(folder, part))
    if "" in splits:
        splits = _halved(splits[""])
    return ImageSet(name, splits["train"], splits["test"], classes)


def _features_alone(name: str, folder: Path) -> ImageSet:
    """Open a set of which there are labels and features alone."""
    if not all((folder / f"labels_{part}.npy").is_file() for part in PARTS):
        raise DataError(
            f"{folder} holds no local copy of the set {name}. Expected what save_to_disk wrote, "
            "Parquets with train and test in their paths, or labels_train.npy and labels_test.npy."
        )
    columns = {part: read_column(f"labels_{part}.npy", folder) for part in PARTS}
    classes = make_classes(columns["train"].values)
    splits = {
        part: Split(
            number_labels(own.values, classes, own.where),
            own.where,
            precomputed=_precomputed(folder, part),
        )
        for part, own in columns.items()
    }
    return ImageSet(name, splits["train"], splits["test"], classes)


def _halved(whole: Split) -> dict[str, Split]:
    """Give two thirds of each class to train on, the rest to test on; always the same ones."""
    order = np.random.default_rng(0).permutation(len(whole))
    taken = np.zeros(len(whole), dtype=bool)
    for number in np.unique(whole.labels):
        rows = order[whole.labels[order] == number]
        taken[rows[: -(-2 * len(rows) // 3)]] = True
    kept = {"train": np.flatnonzero(taken), "test": np.flatnonzero(~taken)}
    return {
        part: replace(
            whole,
            labels=whole.labels[rows],
            where=f"{whole.where}, {part}",
            rows=whole.rows.select(rows),
            kept=rows,
        )
        for part, rows in kept.items()
    }


def _column(rows: Any, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns that there is."""
    return next((name for name in names if name in rows.column_names), None)


def _precomputed(folder: Path | None, part: str) -> Path | None:
    """Name the file of a part's features."""
    name = f"features_{part}.npy" if part else "features.npy"
    return None if folder is None else folder / name
