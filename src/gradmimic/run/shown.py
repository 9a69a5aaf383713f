"""What the pages of several tasks show alike."""

import numpy as np
import numpy.typing as npt

from gradmimic.curate import Selection
from gradmimic.report.grids import Grid
from gradmimic.run.outcome import Outcome


def census_grid(outcome: Outcome, title: str, remark: str) -> Grid:
    """Lay out what became of everything that was read."""
    rows = [
        [row.what, "unknown" if row.count is None else f"{row.count:,}", row.example]
        for row in outcome.census
    ]
    return Grid(title, remark, ["", outcome.counted, "the first"], rows)


def lowest_kept(selection: Selection, scores: npt.NDArray[np.floating]) -> float | None:
    """Return the lowest score ``[n]`` that is kept, where nothing above it is removed."""
    keep = selection.table["keep"].to_numpy(zero_copy_only=False)
    if keep.all() or not keep.any() or scores[~keep].max() > scores[keep].min():
        return None
    return float(scores[keep].min())
