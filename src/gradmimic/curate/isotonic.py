"""Antitonic regression: the falling function that fits best.

    slope(x) of the least concave function above the points (x_k, y_k), from (0, 0)

The slope of the smallest concave majorant of cumulative sums is the weighted least-squares fit of
their ratio by a function that never rises (Robertson, Wright, Dykstra 1988, theorem 1.2.1).
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def falling_slope(x: FloatArray, y: FloatArray) -> FloatArray:
    """Fit dy/dx by a function that never rises.

    Args:
        x: ``[k]`` cumulative sums, ascending, above 0.
        y: ``[k]`` cumulative sums of what is divided by it.

    Returns:
        ``[k]``, the slope on each step, falling; Σ slope · dx = y[-1].

    Example:
        >>> falling_slope(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 2.0]))
        array([1., 1., 0.])
    """
    points_x, points_y = np.r_[0.0, x], np.r_[0.0, y]
    hull = [0]
    for k in range(1, len(points_x)):
        while len(hull) > 1 and _is_below(points_x, points_y, hull[-2], hull[-1], k):
            hull.pop()
        hull.append(k)
    corners = np.array(hull)
    slopes = np.diff(points_y[corners]) / np.diff(points_x[corners])
    return np.repeat(slopes, np.diff(corners))


def _is_below(x: FloatArray, y: FloatArray, a: int, b: int, c: int) -> bool:
    """Tell whether point b lies on or below the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) <= (y[c] - y[a]) * (x[b] - x[a]))
