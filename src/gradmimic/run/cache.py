"""Writing a table of outputs: from a reference run over data once, or from columns that exist.

data, reference.pt  ─┐
                     ├→ (ids, values), batch by batch → outputs.parquet
table, its columns  ─┘
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradmimic.data.columns import column_names, read_column
from gradmimic.data.read import count_classes, read_inputs
from gradmimic.errors import ConfigError, DataError
from gradmimic.outputs import Kind, cache_outputs
from gradmimic.run.output_columns import open_columns
from gradmimic.run.prepare import Progress
from gradmimic.run.restore import restore

_BATCH = 1024  # rows that a reference sees at once


@dataclass(frozen=True)
class Cached:
    """What was written."""

    path: Path
    rows: int
    width: int
    kind: str
    size: int  # bytes
    seconds: float
    notes: list[str]


def cache_reference(
    data: str,
    reference: str,
    out: str,
    *,
    ids: str | None = None,
    labels: str | None = None,
    kind: Literal["auto", "features", "images"] = "auto",
    image_size: int = 32,
    model: Literal["auto", "linear", "mlp", "cnn"] = "auto",
    hidden: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _what, _steps: lambda: None,
) -> Cached:
    """Run a built-in model over a data set, and write its logits.

    Args:
        data: everything that ``gradmimic run`` reads.
        reference: the ``reference.pt`` of another run, of any model; or another file of such
            weights.
        out: the file to write.
        ids: a column spec; left out, the ids are those of a run: row numbers, or paths.
        labels: a column spec, so that a column of labels is not read as a feature.
        kind: what the data are.
        image_size: what the reference was trained at, in pixels.
        model: the reference's architecture; ``"auto"`` reads it off the weights.
        hidden: its width, likewise.
        overwrite: replace a file that is there.
        progress: told of every batch.

    Raises:
        ConfigError: the file is there already, or cannot be written.
        DataError: the data cannot be read.
        ReferenceMismatchError: the weights are not those of such a model on such inputs.
    """
    began = time.perf_counter()
    target = _target(out, overwrite, data, reference)
    read = read_inputs(data, ids=ids, labels=labels, kind=kind, image_size=image_size)
    inputs, sample_ids = read.inputs, read.ids
    classifier = restore(reference, inputs, "reference", kind=model, hidden=hidden)
    notes = []
    if read.failed:
        notes = [f"{read.failed} images could not be decoded and have no outputs."]
    classes, width = count_classes(data, labels), classifier.head.out_features
    if classes not in (None, width):
        notes += [f"The data have {classes} classes, but the reference gives {width} outputs."]
    on_batch = progress("cache", ceil(len(inputs) / _BATCH))

    def batches() -> Iterator[tuple[Any, Tensor]]:
        for start in range(0, len(inputs), _BATCH):
            rows = slice(start, start + _BATCH)
            yield sample_ids[rows], torch.tensor(inputs[rows])
            on_batch()

    return _write(target, classifier, batches(), "logits", reference, began, notes)


def cache_table(
    table: str,
    out: str,
    *,
    kind: Kind,
    outputs: list[str] | None = None,
    ids: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _what, _steps: lambda: None,
) -> Cached:
    """Write the outputs that a table already holds.

    Args:
        table: a ``.parquet``, ``.csv``, ``.npy`` or ``.npz`` file.
        out: the file to write.
        kind: what the outputs are.
        outputs: a column of lists, or several columns of numbers, by name or pattern; see
            :func:`gradmimic.run.output_columns.open_columns`.
        ids: a column spec; left out, row numbers.
        overwrite: replace a file that is there.
        progress: told of every batch.

    Raises:
        ConfigError: the file is there already, or cannot be written.
        DataError: the table cannot be read, or its values are not what ``kind`` says.
    """
    began = time.perf_counter()
    target = _target(out, overwrite, table)
    path = Path(table)
    id_names = [ids] if ids in column_names(path) else []
    columns = open_columns(path, outputs or [], exclude=id_names)
    sample_ids = np.arange(columns.rows) if ids is None else read_column(ids, path).values
    if len(sample_ids) != columns.rows:
        raise DataError(
            f"{ids} has {len(sample_ids)} ids, but {table} has {columns.rows} rows. Give one id "
            "per row, in the same order."
        )
    on_batch = progress("cache", columns.batches)

    def batches() -> Iterator[tuple[Any, npt.NDArray[Any]]]:
        start = 0
        for values in columns.read():
            yield sample_ids[start : start + len(values)], values
            start += len(values)
            on_batch()

    notes = [f"The classes stand in this order: {columns.order}."] if columns.order else []
    return _write(target, _as_tensor, batches(), kind, table, began, notes)


def _write(
    target: Path,
    reference: nn.Module | Callable[[Any], Tensor],
    batches: Iterator[tuple[Any, Any]],
    kind: Kind,
    source: str,
    began: float,
    notes: list[str],
) -> Cached:
    """Run the reference, and write; what cannot be written is said in one line."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        outputs = cache_outputs(reference, batches, target, kind=kind, source=source)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {target}: {error}. Nothing of it was left there."
        ) from error
    seconds = time.perf_counter() - began
    size = target.stat().st_size
    return Cached(target, len(outputs), outputs.width, outputs.kind, size, seconds, notes)


def _as_tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(values)


def _target(out: str, overwrite: bool, *sources: str) -> Path:
    """Return where to write, having checked that nothing is lost by it."""
    target = Path(out)
    if target.suffix.lower() != ".parquet":
        raise ConfigError(
            f"out is {out}, expected a name that ends in .parquet: that is how outputs are told "
            "from weights."
        )
    if any(target.resolve() == Path(source).resolve() for source in sources):
        raise ConfigError(f"out is {out}, which is also what is read. Give another --out.")
    if target.is_dir() or (target.exists() and not overwrite):
        raise ConfigError(f"{out} exists already. Give another --out, or --overwrite.")
    return target
