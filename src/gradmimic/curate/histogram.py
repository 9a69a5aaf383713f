"""A symmetric-log grid: a billion numbers become few bins, narrow where the numbers crowd.

    level(x) = ⌊16 · sign(x) · ln(1 + 10⁴⁰ |x|)⌋      the same for all data, to find m and s
    bin(x)   = ⌊2048 · asinh((x − m) / s)⌋            m: median, s: median distance from it

A bin near the median is s/2048 wide, and one far from it 1/2048 of the distance, so a few
thousand bins hold any data, outliers included. A rule judges the bins, and never sees the samples.

What a bin holds is known by its count, its lowest and its highest value, and it stands for their
midpoint. Unlike sums these do not depend on the order in which threads and machines come to them:
the same log gives the same histogram to the last bit, on every backend.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.curate.votes import FloatArray

if TYPE_CHECKING:
    import ibis.expr.types as ir

_LEVELS = 16
_BINS = 2048
_SMALLEST = 1e-40  # magnitudes below this are one level
_LARGEST = float(np.finfo(np.float32).max)
_REACH = 1e100  # of the grid, in units of s: its square is still a number


class Grid(NamedTuple):
    """Where the bins lie: m and s of the formula."""

    center: float
    scale: float


class Histogram(NamedTuple):
    """The bins that hold something, in ascending order.

    Attributes:
        bins: numbers ``[k]`` of the bins.
        counts: how many values lie in each ``[k]``.
        low: the lowest of them ``[k]``.
        high: the highest ``[k]``.
        losses: the mean loss ``[k]``; None where it was not asked for.
    """

    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    losses: FloatArray | None

    @property
    def values(self) -> FloatArray:
        """What each bin stands for ``[k]``; exact where its values are all equal.

        Example:
            >>> two = np.array([1, 2])
            >>> Histogram(two, two, np.array([1.0, 2.0]), np.array([1.0, 2.5]), None).values
            array([1.  , 2.25])
        """
        return np.asarray(self.low + 0.5 * (self.high - self.low))


def is_number(x: "ir.NumericValue") -> "ir.BooleanValue":
    """Tell whether a value can be logged: neither NaN nor infinite, as float32."""
    # Not x.isinf(): Ibis compiles that to FALSE for Spark. NaN is above all numbers everywhere.
    return x.abs() <= _LARGEST


def level_of(x: "ir.NumericValue") -> "ir.IntegerValue":
    """Return the coarse level of each value."""
    return _floored(x.sign() * (x.abs() / _SMALLEST + 1.0).ln() * _LEVELS)


def bin_of(
    x: "ir.NumericValue", center: "ir.NumericValue | float", scale: "ir.NumericValue | float"
) -> "ir.IntegerValue":
    """Return the bin of each value."""
    y = (x - center) / scale
    return _floored(y.sign() * (y.abs() + (y * y + 1.0).sqrt()).ln() * _BINS)


def grid_of(found: Histogram, center: float | None = None) -> Grid:
    """Place a grid by the levels that the values lie in.

    Args:
        found: the values by level.
        center: a number that no bin is to straddle; None means near the median.

    Returns:
        The grid. Its scale is above 0 and robust: half of the values can be anywhere.

    Example:
        >>> values = np.array([0.0, 1.0, 2.0, 3.0, 1e30])
        >>> grid_of(Histogram(np.arange(5), np.ones(5, np.int64), values, values, None))
        Grid(center=2.0, scale=1.0)
    """
    if center is None:
        center = _median(found.values, found.counts)
    # A level that holds different values has its own width beside its distance.
    distance = np.abs(found.values - center) + 0.5 * (found.high - found.low)  # [k]
    apart = distance > 0
    if not apart.any():
        return Grid(center, 1.0)
    scale = _median(distance, found.counts)
    if scale == 0.0:  # more than half of the values are equal
        scale = _median(distance[apart], found.counts[apart])
    return Grid(center, max(scale, float(distance.max()) / _REACH))


def histograms(table: pa.Table, keys: list[str]) -> dict[tuple[Any, ...], Histogram]:
    """Take apart a table of bins by its other columns, in ascending order of bins.

    Args:
        table: the columns ``keys``, ``bin``, ``rows``, ``low``, ``high`` and perhaps ``loss``.
        keys: what to tell histograms apart by.

    Example:
        >>> table = pa.table({"k": ["a", "b", "a"], "bin": [3, 1, 2], "rows": [1, 1, 2],
        ...                   "low": [0.0, 1.0, 2.0], "high": [0.0, 1.0, 2.0]})
        >>> {key: found.bins.tolist() for key, found in histograms(table, ["k"]).items()}
        {('a',): [2, 3], ('b',): [1]}
    """
    codes = [
        table[name].combine_chunks().dictionary_encode("encode").indices.to_numpy() for name in keys
    ]
    order = np.lexsort([table["bin"].to_numpy(), *codes[::-1]])  # [rows]
    table = table.take(pa.array(order))
    if len(order) == 0:
        return {}
    changes = [np.flatnonzero(np.diff(code[order])) + 1 for code in codes]
    starts = np.unique(np.concatenate([[0], *changes])).astype(np.int64)
    groups = {}
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        part = table.slice(start, end - start)
        key = tuple(part[name][0].as_py() for name in keys)
        groups[key] = Histogram(
            part["bin"].to_numpy().astype(np.int64),
            part["rows"].to_numpy().astype(np.int64),
            part["low"].to_numpy(),
            part["high"].to_numpy(),
            part["loss"].to_numpy() if "loss" in part.column_names else None,
        )
    return groups


def _floored(x: "ir.NumericValue") -> "ir.IntegerValue":
    """Round down to an integer."""
    return x.floor().cast("int32")


def _median(values: FloatArray, counts: npt.NDArray[np.int64]) -> float:
    """Return the lower weighted median."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    return float(values[order][np.searchsorted(below, (below[-1] + 1) // 2)])
