"""The one door: a data set of pictures with captions, whatever it is kept in."""

from os import PathLike, fspath

from gradmimic.data.files import PARQUET
from gradmimic.data.images import SUFFIXES
from gradmimic.data.pairs.folder import FolderSource
from gradmimic.data.pairs.hub import open_hub, open_saved
from gradmimic.data.pairs.place import find, is_saved
from gradmimic.data.pairs.shards import ShardSource
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.tables import LINES, TableSource
from gradmimic.errors import DataError

_TABLES = (*PARQUET, *LINES)
_FILES = (*SUFFIXES, ".txt", ".json")
_KINDS = ((".tar",), PARQUET, LINES, _FILES)


def open_pairs(
    data: str | PathLike[str],
    *,
    id: str | None = None,  # noqa: A002 — as the column is called in every configuration
    image: str | None = None,
    text: str | None = None,
) -> PairSource:
    """Open a data set of pictures with captions; only its first samples are read.

    Args:
        data: a file, a pattern such as ``pool/{0000..0099}.tar`` or ``pool/*.tar``, or a folder, on
            a disk or behind a URL that fsspec opens. The files are WebDataset shards (``.tar``),
            tables (``.parquet``, ``.jsonl``), or pictures each with a ``.txt``; the folder may be
            one that Hugging Face's ``save_to_disk`` wrote. Or a data set on its hub,
            ``hf://datasets/owner/name:split``.
        id: the field of the ``.json``, or the column, with sample ids; left out, ``uid`` where
            there is one, else ids are made of the names of shard and sample.
        image: the suffix, or the column, of the picture; left out, it is found.
        text: the suffix, the field or the column of the caption; left out, it is found.

    Returns:
        The data set.

    Raises:
        DataError: nothing is there, it holds no pairs, or a column cannot be found.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.jpg").write_bytes(b"junk")
        >>> _ = (folder / "1.txt").write_text("a dog")
        >>> list(open_pairs(folder).read(0))[0]
        Dropped(key='1', reason='the picture cannot be decoded')
    """
    name = fspath(data)
    on_hub = open_hub(name, id, image, text)
    if on_hub is not None:
        return on_hub
    if is_saved(name):
        return open_saved(name, id, image, text)
    place = find(name, _KINDS)
    suffixes = place.suffixes
    if suffixes == {".tar"}:
        return ShardSource(name, place, id, image, text)
    if suffixes <= set(PARQUET) or suffixes <= set(LINES):
        return TableSource(name, place, id, image, text)
    if suffixes <= set(_FILES):
        return FolderSource(name, place, id, image, text)
    raise DataError(
        f"expected pairs of one kind, in files .tar, {', '.join(_TABLES)}, or pictures with .txt; "
        f"{name} means files {', '.join(sorted(suffixes))}"
    )
