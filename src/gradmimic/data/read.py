"""The one door: read inputs, labels, ids and what to show, whatever files they lie in."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.data import files, images
from gradmimic.data.classes import make_classes, number_labels
from gradmimic.data.columns import (
    Column,
    column_names,
    is_encoded,
    parquet_shown,
    read_column,
    read_shown,
    whole_or_names,
)
from gradmimic.data.features import read_features
from gradmimic.data.files import PARQUET
from gradmimic.data.table import Samples, Shown, Skipped
from gradmimic.errors import DataError

Kind = Literal["auto", "features", "images"]

_LABELS = ("labels", "label", "y")


def read_samples(
    path: str | PathLike[str],
    *,
    labels: str | None = None,
    ids: str | None = None,
    true_labels: str | None = None,
    show: str | None = None,
    inputs: str | Sequence[str] | None = None,
    kind: Kind = "auto",
    classes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int = 32,
    channels: Literal[1, 3] = 3,
) -> Samples:
    r"""Read labelled samples: features from a matrix, or images from a folder or a Parquet.

    ``labels``, ``ids``, ``true_labels`` and ``show`` are column specs: the name of a column of the
    data's own Parquet (or of an array of its ``.npz``), or a path to a ``.npy``, ``.txt`` or
    one-column ``.csv`` file, or ``"other.parquet:column"``. Paths are looked for beside the data
    first, then from the working directory. A label is a whole number or a name.

    Args:
        path: ``.npy``, ``.npz``, ``.parquet``, or a folder with one sub-folder of pictures a class.
        labels: the labels as given; left out, the sub-folders' names, or the column ``labels``,
            ``label`` or ``y`` of the data's own file.
        ids: unique sample ids, whole numbers or strings; left out, the path inside a folder, or the
            row number.
        true_labels: labels known to be right; they only ever enter metrics.
        show: what a report shows of a sample, a text or an encoded picture; left out, images show
            themselves.
        inputs: the columns that hold the inputs, where the file does not make it plain: names or
            patterns such as ``"f*"``.
        kind: ``"auto"`` takes folders and Parquets with a column of bytes for images.
        classes: the name of each class number, from the table that was read first, so that all
            tables agree; left out, the classes are those that occur in ``labels``, integers in
            number order and names in alphabetical order.
        class_names: names for the integer labels 0, 1, 2, …; every table whose labels are such
            integers needs them.
        image_size: width and height that images are stretched to, in pixels.
        channels: 3 for RGB images, 1 for grey.

    Returns:
        The samples; images that could not be decoded are listed in ``skipped``.

    Raises:
        DataError: something cannot be read or does not fit; the message says which file and row.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "x.npy", np.eye(2, dtype=np.float16))
        >>> _ = (folder / "y.txt").write_text("dog\ncat\n")
        >>> samples = read_samples(folder / "x.npy", labels="y.txt")
        >>> samples.classes, samples.labels.tolist()
        (('cat', 'dog'), [1, 0])
    """
    data = Path(path)
    if not data.exists():
        raise DataError(f"no file or folder {data} (from {Path.cwd()}); check the path")
    folder = images.list_folder(data) if data.is_dir() else None
    given = _given_labels(data, labels, folder)
    truth = None if true_labels is None else read_column(true_labels, data)

    columns = [inputs] if isinstance(inputs, str) else list(inputs or ())
    specs = labels, ids, true_labels, show
    read = _read(data, folder, columns, specs, kind, image_size, channels)
    total = len(read.rows) + len(read.failed)
    all_ids = _ids(data, ids, folder, total)
    shown = read.shown if show is None else read_shown(show, data)
    _check_length(data, total, given.where, len(given.values))
    _check_length(data, total, f"ids {ids}", len(all_ids))
    if truth is not None:
        _check_length(data, total, truth.where, len(truth.values))
    if shown is not None:
        _check_length(data, total, str(show), len(shown))

    numbering = _numbering(given, classes, class_names)
    return Samples(
        inputs=read.array,
        labels=number_labels(given.values, numbering, given.where, class_names)[read.rows],
        classes=numbering,
        ids=all_ids[read.rows],
        source=str(data),
        true_labels=None
        if truth is None
        else number_labels(truth.values, numbering, truth.where, class_names)[read.rows],
        shown=None if shown is None else shown.take(read.rows),
        skipped=_skipped(all_ids, read.failed, folder),
    )


class Unlabelled(NamedTuple):
    """What there is to know of samples without their labels."""

    inputs: npt.NDArray[Any]  # [n, …]
    ids: npt.NDArray[Any]  # [n]
    failed: int  # images that could not be decoded, and are left out


def read_inputs(
    path: str | PathLike[str],
    *,
    labels: str | None = None,
    ids: str | None = None,
    kind: Kind = "auto",
    image_size: int = 32,
) -> Unlabelled:
    """Read inputs and ids as :func:`read_samples` does, from data that need no labels.

    Args:
        path: as there.
        labels: as there; a column of that name is no feature.
        ids: as there.
        kind: as there.
        image_size: as there.

    Raises:
        DataError: something cannot be read or does not fit.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "x.npy"
        >>> np.save(file, np.eye(2, dtype=np.float16))
        >>> read_inputs(file).ids.tolist()
        [0, 1]
    """
    data = Path(path)
    if not data.exists():
        raise DataError(f"no file or folder {data} (from {Path.cwd()}); check the path")
    folder = images.list_folder(data) if data.is_dir() else None
    read = _read(data, folder, [], (labels, ids), kind, image_size, 3)
    total = len(read.rows) + len(read.failed)
    all_ids = _ids(data, ids, folder, total)
    _check_length(data, total, f"ids {ids}", len(all_ids))
    return Unlabelled(read.array, all_ids[read.rows], len(read.failed))


def count_classes(path: str | PathLike[str], labels: str | None = None) -> int | None:
    """Return how many classes the data's labels name; None where they bring none of their own.

    Args:
        path: as for :func:`read_samples`.
        labels: as there.

    Raises:
        DataError: the labels cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "x.npz"
        >>> np.savez(file, x=np.eye(3), y=np.array([0, 1, 1]))
        >>> count_classes(file)
        2
    """
    data = Path(path)
    folder = images.list_folder(data) if data.is_dir() else None
    if labels is None and folder is None and not {*_LABELS} & {*column_names(data)}:
        return None
    return len(make_classes(_given_labels(data, labels, folder).values))


@dataclass(frozen=True)
class _Inputs:
    """What the model will see, and the rows of the source that it comes from."""

    array: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]
    failed: dict[int, str]
    shown: Shown | None


def _read(
    data: Path,
    folder: images.Folder | None,
    columns: list[str],
    specs: Sequence[str | None],
    kind: Kind,
    image_size: int,
    channels: Literal[1, 3],
) -> _Inputs:
    """Read images or features; what the specs name is none."""
    if _are_images(data, kind, columns):
        return _read_images(data, folder, columns, image_size, channels)
    # A label column taken for a feature would give the answer away.
    others = {spec for spec in (*specs, *_LABELS) if spec}
    features = read_features(data, columns, exclude=others)
    return _Inputs(features, np.arange(len(features)), {}, None)


def _are_images(data: Path, kind: Kind, columns: list[str]) -> bool:
    """Tell images from features: by what was asked for, else by what the file holds."""
    if kind == "features" and data.is_dir():
        raise DataError(f"features come as .npy, .npz or .parquet; {data} is a folder")
    if data.is_dir():
        return True
    parquet = data.suffix.lower() in PARQUET
    if kind == "images" and not parquet:
        raise DataError(f"images come as a folder or a .parquet with encoded pictures; got {data}")
    if kind != "auto" or not parquet:
        return kind == "images"
    schema = files.open_parquet(data).schema_arrow
    return any(
        is_encoded(field.type) for field in schema if field.name in (columns or schema.names)
    )


def _read_images(
    data: Path,
    folder: images.Folder | None,
    columns: list[str],
    size: int,
    channels: Literal[1, 3],
) -> _Inputs:
    """Decode images; without anything else to show they show themselves."""
    if folder is not None:
        if columns:
            raise DataError(f"{data} is a folder and has no columns; leave out inputs={columns}")
        decoded = images.read_folder(folder, size, channels)
        shown = Shown("image", folder.read, np.arange(len(folder.ids)))
    else:
        if len(columns) > 1:
            raise DataError(f"images lie in one column of {data}; got inputs={columns}")
        column = images.image_column(data, columns[0] if columns else None)
        decoded = images.read_parquet_images(data, column, size, channels)
        shown = parquet_shown(data, column)
    return _Inputs(decoded.pixels, decoded.rows, decoded.failed, shown)


def _given_labels(data: Path, spec: str | None, folder: images.Folder | None) -> Column:
    """Read the labels as given: by spec, else by sub-folder, else by the usual column names."""
    if spec is not None:
        return read_column(spec, data)
    if folder is not None:
        return Column(whole_or_names(folder.class_folders, str(data)), str(data))
    names = column_names(data)
    for name in _LABELS:
        if name in names:
            return read_column(name, data)
    held = f"; it has {', '.join(names)}" if names else ""
    raise DataError(
        f"{data} brings no labels of its own (no column {', '.join(_LABELS)}){held}; "
        "say where they are with labels=, for example 'labels.npy' or 'train.parquet:label'"
    )


def _numbering(
    given: Column, classes: Sequence[str] | None, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Number the classes: as passed on, else as named, else as they occur."""
    for names in (classes, class_names):
        if names is not None:
            if len(set(names)) != len(names):
                raise DataError(f"class names must be unique; got {', '.join(names)}")
            return tuple(names)
    return make_classes(given.values)


def _ids(
    data: Path, spec: str | None, folder: images.Folder | None, total: int
) -> npt.NDArray[Any]:
    """Read the ids: by spec, else the paths in a folder, else row numbers."""
    if spec is not None:
        return read_column(spec, data).values
    return np.arange(total) if folder is None else folder.ids


def _check_length(data: Path, total: int, where: str, length: int) -> None:
    """Insist on one row per sample, before rows are matched by their place."""
    if length != total:
        raise DataError(
            f"{where} has {length} rows, but {data} has {total} samples; "
            "give one per sample, in the same order"
        )


def _skipped(
    ids: npt.NDArray[Any], failed: dict[int, str], folder: images.Folder | None
) -> tuple[Skipped, ...]:
    """List the samples that could not be read, and the files that are none."""
    broken = [Skipped(ids[row].item(), reason) for row, reason in failed.items()]
    ignored = [] if folder is None else [Skipped(*item) for item in folder.ignored.items()]
    return (*broken, *ignored)
