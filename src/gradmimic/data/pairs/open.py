"""The one door: a data set of pictures with captions, whatever it is kept in."""

from gradmimic.data.pairs.place import find
from gradmimic.data.pairs.shards import ShardSource
from gradmimic.data.pairs.source import PairSource

_SUFFIXES = (".tar",)


def open_pairs(
    data: str,
    *,
    id: str | None = None,  # noqa: A002 — the column's name in every configuration
    image: str | None = None,
    text: str | None = None,
) -> PairSource:
    """Open a data set of pictures with captions; nothing but its first samples is read.

    Args:
        data: shards, as a pattern such as ``pool/{0000..0099}.tar`` or ``pool/*.tar``, or their
            folder; on a disk or behind a URL that fsspec opens.
        id: the column, or field of the .json, with sample ids.
        image: the column, or suffix, of the picture.
        text: the column, suffix or field of the .json of the caption.

    Returns:
        The data set.

    Raises:
        DataError: nothing is there, or it holds no pairs.
    """
    place = find(data, _SUFFIXES)
    return ShardSource(data, place, id, image, text)
