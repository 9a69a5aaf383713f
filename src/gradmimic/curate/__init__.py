"""Stage 2: from the score log to one decision per sample."""

from gradmimic.curate.select import select
from gradmimic.curate.selection import Selection

__all__ = ["Selection", "select"]
