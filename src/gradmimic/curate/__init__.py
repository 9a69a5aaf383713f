"""Stage 2: from the score log to one decision per sample, and to a data set's quality."""

from gradmimic.curate.quality import Quality, estimate_quality
from gradmimic.curate.select import select
from gradmimic.curate.selection import Selection

__all__ = ["Quality", "Selection", "estimate_quality", "select"]
