"""Rankings: keep the best or the worst by score.

    order        highest score first, and among equal scores the smallest id first
    top(f)       the first k of the order        bottom(f)    the last k
    above(t)     score_i ≥ t                     per_class    the first k_c of every class c

k = f·n rounded to the nearest whole number, a half to the even one. There is one order, so that
``top(f)`` and ``bottom(g)`` never share a sample where their k do not add up to more than n, and
the result is the same on every machine. All samples of a selection are ranked, kept or not.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.rows import some
from gradmimic.errors import ConfigError, DataError


def top(table: pa.Table, fraction: float) -> pa.Table:
    """Keep the samples with the highest scores.

    Args:
        table: the rows of a selection, sorted by id.
        fraction: how many of all samples, 0 to 1.

    Returns:
        The same rows with other ``keep`` and ``reason``.

    Raises:
        ConfigError: the fraction is not in [0, 1].
        DataError: a score is not finite.

    Example:
        >>> from gradmimic.curate import Selection
        >>> Selection.from_scores([1, 2, 3, 4], [0.5, 0.9, 0.5, 0.5]).top(0.5).kept
        array([1, 2])
    """
    scores = _scores(table)
    n, k = len(scores), _count(fraction, len(scores))
    chosen = _highest(scores, k)
    what = f"among the {k:,} of {n:,} samples with the highest scores{_limit(scores[chosen], 'up')}"
    return _decided(table, chosen, f"kept: {what}", f"removed: not {what}")


def bottom(table: pa.Table, fraction: float) -> pa.Table:
    """Keep the samples with the lowest scores, see ``top``."""
    scores = _scores(table)
    n, k = len(scores), _count(fraction, len(scores))
    chosen = ~_highest(scores, n - k)
    what = (
        f"among the {k:,} of {n:,} samples with the lowest scores{_limit(scores[chosen], 'down')}"
    )
    return _decided(table, chosen, f"kept: {what}", f"removed: not {what}")


def above(table: pa.Table, threshold: float) -> pa.Table:
    """Keep the samples whose score is at least ``threshold``.

    Raises:
        ConfigError: the threshold is no number.
        DataError: a score is not finite.
    """
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise ConfigError(f"the threshold must be a number, got {threshold!r}.")
    chosen = _scores(table) >= threshold
    return _decided(
        table,
        chosen,
        f"kept: the score is at least {threshold:.4g}",
        f"removed: the score is below {threshold:.4g}",
    )


def per_class(
    table: pa.Table,
    labels: pa.ChunkedArray,
    fraction: float | None,
    quota: int | Mapping[Any, int] | None,
) -> pa.Table:
    """Keep the samples with the highest scores of every class.

    Args:
        table: the rows of a selection, sorted by id.
        labels: the class of each row ``[n]``, integers or strings.
        fraction: of each class, 0 to 1; None to use
        quota: how many of each class, or a mapping from every label to how many. A class with
            fewer samples is kept whole.

    Raises:
        ConfigError: neither or both of ``fraction`` and ``quota`` are given, or one is negative.
        DataError: a class has no quota, or a score is not finite.

    Example:
        >>> from gradmimic.curate import Selection
        >>> scores = Selection.from_scores([1, 2, 3, 4], [0.5, 0.9, 0.1, 0.7])
        >>> scores.per_class({1: "cat", 2: "cat", 3: "dog", 4: "dog"}, quota=1).kept
        array([2, 4])
    """
    if (fraction is None) == (quota is None):
        raise ConfigError(
            "per_class keeps a fraction of each class, or a quota: pass one of them, e.g. "
            "fraction=0.3 or quota=100."
        )
    scores = _scores(table)
    encoded = labels.combine_chunks().dictionary_encode()
    classes = encoded.dictionary.to_pylist()
    of = encoded.indices.to_numpy()  # [n]
    sizes = np.bincount(of, minlength=len(classes))  # [c]
    if quota is None:
        wanted = np.array([_count(fraction, size) for size in sizes.tolist()], dtype=np.int64)
    else:
        wanted = _quotas(quota, classes)
    order = np.lexsort((-scores, of))  # stable, so that ties stay in the order of their ids
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    chosen = place - (np.cumsum(sizes) - sizes)[of] < wanted[of]
    kept = np.minimum(wanted, sizes).tolist()
    texts = [
        f"{verdict} among the {k:,} of {size:,} samples of class {name!r} with the highest scores"
        for verdict in ("kept:", "removed: not")
        for k, size, name in zip(kept, sizes.tolist(), classes, strict=True)
    ]
    return _with(table, chosen, np.where(chosen, of, of + len(classes)), texts)


def _scores(table: pa.Table) -> npt.NDArray[np.float64]:
    """Return the scores [n], refusing those that cannot be ranked."""
    scores = table["score"]
    broken = pc.invert(pc.fill_null(pc.is_finite(scores), False))
    if pc.any(broken, min_count=0).as_py():
        culprits = table["sample_id"].filter(broken)
        raise DataError(
            f"{len(culprits)} samples cannot be ranked, as their score is missing or not finite: "
            f"{some(culprits)}. Leave them out, or score them again."
        )
    return np.asarray(scores.to_numpy(), dtype=np.float64)


def _count(fraction: float | None, n: int) -> int:
    """Return how many samples a fraction of n is."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number):
        raise ConfigError(f"a fraction is a number from 0 to 1, got {fraction!r}.")
    if not 0 <= fraction <= 1:
        raise ConfigError(
            f"a fraction is a number from 0 to 1, got {fraction}. For 30 % pass 0.30; for a score "
            "to reach, use above(threshold)."
        )
    return round(float(fraction) * n)


def _quotas(quota: int | Mapping[Any, int], classes: list[Any]) -> npt.NDArray[np.int64]:
    """Return how many samples of each class are wanted."""
    if isinstance(quota, Mapping):
        if missing := [name for name in classes if name not in quota]:
            raise DataError(
                f"{len(missing)} classes have no quota, e.g. {missing[:3]}. Give each one, 0 to "
                "keep none."
            )
        numbers = [quota[name] for name in classes]
    else:
        numbers = [quota] * len(classes)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise ConfigError(f"a quota is a whole number of samples, got {number!r}.")
    return np.array(numbers, dtype=np.int64)


def _highest(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.bool_]:
    """Mark the first k of the order; rows are sorted by id."""
    n = len(scores)
    if k in (0, n):
        return np.full(n, k == n and n > 0)
    limit = np.partition(scores, n - k)[n - k]
    chosen: npt.NDArray[np.bool_] = scores > limit
    ties = np.flatnonzero(scores == limit)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen


def _limit(scores: npt.NDArray[np.float64], way: str) -> str:
    """Name the score where a ranking was cut."""
    if len(scores) == 0:
        return ""
    return f", {scores.min() if way == 'up' else scores.max():.4g} and {way}"


def _decided(table: pa.Table, keep: npt.NDArray[np.bool_], yes: str, no: str) -> pa.Table:
    """Replace the decisions, for one reason each."""
    return _with(table, keep, (~keep).astype(np.int32), [yes, no])


def _with(
    table: pa.Table, keep: npt.NDArray[np.bool_], reason: npt.NDArray[Any], texts: list[str]
) -> pa.Table:
    """Replace the decisions and the reasons, given by their numbers."""
    reasons = pa.DictionaryArray.from_arrays(
        pa.array(reason, pa.int32()), pa.array(texts, pa.string())
    )
    names = table.column_names
    table = table.set_column(names.index("keep"), "keep", pa.array(keep))
    return table.set_column(names.index("reason"), "reason", reasons)
