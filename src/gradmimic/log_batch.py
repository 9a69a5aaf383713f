"""One batch of log rows: checked and copied when it comes, a table when it is written.

Checking is on the training path, so it costs microseconds; all that can wait waits for the table.
"""

import math
import operator
from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.errors import DataError, LogError
from gradmimic.ids import Ids, as_ids
from gradmimic.log_reader import log_schema


class Batch(NamedTuple):
    """The rows of one ``append``, waiting for the next flush."""

    ids: Ids  # [b]
    scores: npt.NDArray[np.float32]  # [b]
    weights: npt.NDArray[np.float32]  # [b]
    losses: npt.NDArray[np.float32]  # [b]
    canary: list[str | None] | None  # [b]; None where all samples are real
    epoch: int | None
    step: int
    scorer: str
    size: int  # of the whole batch, on all ranks


def checked_batch(
    sample_ids: Any,
    scores: npt.ArrayLike,
    weights: npt.ArrayLike,
    losses: npt.ArrayLike,
    canary: Sequence[str | None] | None,
    *,
    epoch: int | None,
    step: int,
    scorer: str,
    batch_size: int | None = None,
) -> Batch:
    """Copy a batch, or say what about it cannot be logged.

    Args:
        sample_ids: ids ``[b]``, all integers or all strings, none twice.
        scores: ``[b]``, finite.
        weights: ``[b]``.
        losses: ``[b]``.
        canary: ``[b]`` kinds of canary, None for a real sample; or None for no canaries.
        epoch: from 0, below 2³¹, or None.
        step: from 0, below 2⁶³.
        scorer: a name.
        batch_size: of the whole batch; None means b.

    Returns:
        Copies of everything, as NumPy arrays or lists of strings.

    Raises:
        LogError: naming the value, the scorer, the epoch and the step.

    Example:
        >>> batch = checked_batch([3], [0.5], [1.0], [0.1], None, epoch=0, step=0, scorer="mimic")
        >>> batch.scores
        array([0.5], dtype=float32)
    """
    epoch = None if epoch is None else _counter("epoch", epoch, 2**31)
    step = _counter("step", step, 2**63)
    if not isinstance(scorer, str) or not scorer:
        raise LogError(f"expected scorer to be a name, got {scorer!r} (step {step}).")
    try:
        ids = as_ids(sample_ids)
        size = len(ids)
        batch = Batch(
            ids,
            _floats("scores", scores, size),
            _floats("weights", weights, size),
            _floats("losses", losses, size),
            _kinds(canary, size),
            epoch,
            step,
            scorer,
            size if batch_size is None else _counter("batch_size", batch_size, 2**31),
        )
        if batch.size < size:
            raise DataError(f"batch_size is {batch.size}, but {size} rows came.")
        plain = _without_repeats(ids, batch.canary)
        if not np.isfinite(batch.scores).all():
            first = int(np.argmin(np.isfinite(batch.scores)))
            raise DataError(
                f"the score of sample {plain[first]!r} is {batch.scores[first]}. Check its input "
                "and its loss."
            )
    except DataError as error:
        where = f"scorer {scorer!r}, epoch {epoch}, step {step}"
        raise LogError(f"{error} Nothing of this batch was logged ({where}).") from error
    return batch


def checked_norm(norm: float, step: int) -> float:
    """Return ‖v‖ as a float that JSON can hold.

    Example:
        >>> checked_norm(np.float32(0.5), step=0)
        0.5
    """
    value = float(norm)
    if not math.isfinite(value):
        raise LogError(
            f"direction_norm is {value} at step {step}: the model's or the reference's weights are "
            "no longer finite. Nothing of this batch was logged."
        )
    return value


def to_table(batches: list[Batch], rank: int) -> pa.Table:
    """Join batches, at least one and all with the same kind of ids, into one table.

    Example:
        >>> batch = checked_batch([3], [0.5], [1.0], [0.1], None, epoch=0, step=0, scorer="mimic")
        >>> to_table([batch], rank=0).num_rows
        1
    """
    sizes = np.array([len(batch.ids) for batch in batches])
    names = list({batch.scorer: None for batch in batches})
    codes = np.repeat([names.index(batch.scorer) for batch in batches], sizes)
    if isinstance(batches[0].ids, list):
        ids = pa.array([sample_id for batch in batches for sample_id in batch.ids], pa.string())
    else:
        ids = pa.array(np.concatenate([batch.ids for batch in batches]))
    epochs = pa.array([batch.epoch for batch in batches], pa.int32())
    return pa.table(
        [
            ids,
            epochs.take(pa.array(np.repeat(np.arange(len(batches)), sizes))),
            np.repeat(np.array([batch.step for batch in batches], dtype=np.int64), sizes),
            pa.DictionaryArray.from_arrays(codes, names).dictionary_decode(),
            np.concatenate([batch.scores for batch in batches]),
            np.concatenate([batch.weights for batch in batches]),
            np.concatenate([batch.losses for batch in batches]),
            np.repeat(np.array([batch.size for batch in batches], dtype=np.int32), sizes),
            pa.array(
                [
                    kind
                    for b in batches
                    for kind in (repeat(None, len(b.ids)) if b.canary is None else b.canary)
                ],
                pa.string(),
            ),
            np.full(len(ids), rank, dtype=np.int32),
        ],
        schema=log_schema(ids.type),
    )


def _counter(name: str, value: int, limit: int) -> int:
    """Return an epoch or step as an int that fits its column."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < limit:
        raise LogError(f"expected {name} to be an integer from 0 to below {limit}, got {value!r}.")
    return number


def _floats(name: str, values: npt.ArrayLike, size: int) -> npt.NDArray[np.float32]:
    """Copy one number per sample: the caller may reuse its buffer before the next flush."""
    try:
        array = np.asarray(values).astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} must be {size} numbers on the CPU without grad, e.g. "
            f"tensor.detach().float().cpu(), but came as {type(values).__name__}: {error}."
        ) from error
    if array.shape != (size,):
        raise DataError(
            f"expected {name} of shape ({size},), one number per sample id, got shape "
            f"{array.shape}. Pass them before any reduction over the batch."
        )
    return array


def _kinds(canary: Sequence[str | None] | None, size: int) -> list[str | None] | None:
    """Copy the kinds of canary."""
    if canary is None:
        return None
    kinds = canary.tolist() if isinstance(canary, np.ndarray) else list(canary)
    named = all(kind is None or (kind and type(kind) is str) for kind in kinds)
    if len(kinds) != size or not named:
        raise DataError(
            f"expected canary to be {size} kinds, one per sample id: a name such as 'uniform/10', "
            f"or None for a real sample; got {kinds[:3]}{'…' if len(kinds) > 3 else ''}."
        )
    return kinds


def _without_repeats(ids: Ids, canary: list[str | None] | None) -> list[Any]:
    """Return ids as plain values, having checked that none comes twice as the same kind."""
    plain: list[Any] = ids if isinstance(ids, list) else ids.tolist()
    rows = plain if canary is None else list(zip(plain, canary, strict=True))
    if len(set(rows)) != len(rows):
        repeated = sorted({sample_id for sample_id in plain if plain.count(sample_id) > 1})[:3]
        raise DataError(
            f"sample ids come more than once in one batch: {repeated}. Draw without replacement, "
            "or give each copy an id of its own."
        )
    return plain
