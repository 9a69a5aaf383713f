"""What comes in: features of any type, perhaps a file, and labels; checked, and hardly copied."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradmimic.errors import DataError, listed

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

BLOCK = 4096  # rows in memory at a time, where there is no training


def as_features(features: Any) -> npt.NDArray[Any]:
    """Return ``[n, d]`` finite numbers of any type, copied only where that is needed."""
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    rows = np.asarray(features)
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiub":
        swapped = " The features come first, then the labels." if rows.ndim == 1 else ""
        raise DataError(
            f"expected features [n, d] of numbers, got shape {list(rows.shape)} of {rows.dtype}."
            f"{swapped or ' For images or text, pass what a pretrained model makes of them.'}"
        )
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        with np.errstate(over="ignore"):
            narrow = block.astype(np.float32) if block.dtype.itemsize > 4 else block
        finite = np.isfinite(narrow)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"features hold NaN or a number beyond float32, the first in row {start + row}, "
                f"column {column}: {rows[start + row, column]}. Leave such rows out, labels too."
            )
    return rows


def as_labels(labels: Any) -> npt.NDArray[Any]:
    """Return ``[n]`` integers or strings, refusing what would change on the way."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"expected labels [n], one per sample, got shape {list(array.shape)}.")
    if isinstance(labels, list | tuple) or array.dtype.kind == "O":
        rows = {_kind(label): row for row, label in enumerate(labels)}
        if len(rows) > 1:
            found = (f"{kind} (row {row})" for kind, row in sorted(rows.items()))
            raise DataError(
                f"expected labels of one type, got {listed(found)}. Name or number all of them, "
                "and leave out rows without a label."
            )
        array = np.array(list(labels))
    if array.dtype.kind not in "iubU" and array.size:
        raise DataError(
            f"expected labels to be class numbers or names, got {array.dtype}. For whole numbers "
            "pass labels.astype(int)."
        )
    return array


def _kind(label: object) -> str:
    """Name a label's type, one name for all integers."""
    is_integer = isinstance(label, int | np.integer) and not isinstance(label, bool)
    return "int" if is_integer else "str" if isinstance(label, str) else type(label).__name__


def as_mask(trusted: Any, n: int) -> BoolArray:
    """Return trusted rows as a mask ``[n]``."""
    mask = np.zeros(n, dtype=np.bool_)
    if trusted is None:
        return mask
    rows = np.asarray(trusted.cpu() if isinstance(trusted, Tensor) else trusted)
    if rows.dtype == np.bool_ and rows.shape == (n,):
        return rows
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size:
        raise DataError(
            f"expected trusted to be a mask [{n}] or row numbers, got shape {list(rows.shape)} of "
            f"{rows.dtype}."
        )
    if rows.min() < 0 or rows.max() >= n:
        raise DataError(
            f"expected trusted rows from 0 to {n - 1}, got {rows.min()} to {rows.max()}."
        )
    mask[rows] = True
    return mask


def check_trusted(numbers: IntArray, known: BoolArray, classes: npt.NDArray[Any]) -> None:
    """Refuse trusted rows that are all rows, or lack a class."""
    if known.all():
        raise DataError(
            f"all {len(known)} rows are trusted, so there is nothing to judge. Leave trusted= out, "
            "or pass only rows that somebody checked."
        )
    lacking = np.setdiff1d(np.arange(len(classes)), numbers[known])
    if len(lacking):
        raise DataError(
            f"no trusted row is of class {listed(repr(classes[c].item()) for c in lacking)}: all "
            "samples of it would look wrong. Add some, or leave trusted= out."
        )


def repeated(numbers: IntArray, classes: npt.NDArray[Any]) -> BoolArray:
    """Return a mask of the samples whose class has another one, and warn of the others."""
    counts = np.bincount(numbers)
    if single := [repr(name.item()) for name in classes[counts == 1]]:
        warnings.warn(
            "samples that are the only one of their class are not judged, since nothing else shows "
            f"what the class looks like: {listed(single)}.",
            stacklevel=4,
        )
    return np.asarray(counts[numbers] > 1)
