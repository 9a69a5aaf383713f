"""WebDataset shards, as img2dataset and DataComp write them.

    00000000.tar: 0.jpg, 0.txt, 0.json, …        00000000.parquet, 00000000_stats.json beside it

The picture is the .jpg, .png or .webp; the caption the .txt; the id the field ``uid`` of the .json,
else of the row with the same ``key`` in the Parquet beside the shard. Where the first samples have
no uid at all, ids are the shard's name and the key.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from gradmimic.data.images import SUFFIXES
from gradmimic.data.pairs.place import Place
from gradmimic.data.pairs.reasons import (
    BAD_JSON,
    NO_CAPTION,
    NO_ID,
    NO_PICTURE,
    NOT_OPENED,
    SEVERAL_PICTURES,
)
from gradmimic.data.pairs.sample import Dropped, End, Record, as_id, as_texts
from gradmimic.data.pairs.sidecar import Sidecar
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.tar import Group, read_groups
from gradmimic.errors import DataError

PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
_CAPTIONS = ("caption", "captions", "text")  # fields of the .json where there is no .txt
_PROBED = 100  # samples whose ids tell whether the data have any


class ShardSource(PairSource):
    """Pairs in tar archives.

    Args:
        name: as the user wrote it.
        place: the shards.
        sample_id: the field of the .json, or column of the Parquet beside it, that holds ids.
        image: the suffix of the picture, None for any.
        text: the suffix of the caption, or the field of the .json; None for .txt, else a caption.

    Raises:
        DataError: the first samples have no such id, though it was asked for.
    """

    def __init__(
        self, name: str, place: Place, sample_id: str | None, image: str | None, text: str | None
    ) -> None:
        self.name, self._place = name, place
        self.shards = place.names()
        self._id, self._text = sample_id or "uid", text
        self._beside: tuple[int, Sidecar] | None = None
        self._pictures = PICTURES if image is None else (image.lower().lstrip("."),)
        self.unique = not self._has_ids()
        if self.unique and sample_id is not None:
            raise DataError(
                f"none of the first samples of {name} has an id in the field {sample_id!r} of its "
                ".json, or of the Parquet beside its shard. Name another field, or none to take "
                "the shards' names and keys."
            )

    def expected(self, shard: int) -> int | None:
        """Return how many samples the files beside a shard promise."""
        return self._sidecar(shard).count()

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the ids: from the Parquet beside the shard, else from its .json files alone."""
        beside = None if self.unique else self._sidecar(shard).ids()
        if beside:
            yield from filter(None, map(as_id, beside.values()))
            return
        wanted = {"json": True} | dict.fromkeys(self._pictures, False)
        for item in self._groups(shard, wanted):
            if isinstance(item, Group) and not item.fault:
                meta = _meta(item)
                found = None if meta is None else self._sample_id(shard, item.key, meta)
                if found is not None:
                    yield found

    def items(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield the samples of a shard as they come, then its end."""
        wanted = dict.fromkeys((*self._pictures, "txt", "json"), True)
        if self._text is not None:
            wanted[self._text.lower()] = True
        for item in self._groups(shard, wanted):
            yield self._record(shard, item) if isinstance(item, Group) else item

    def _groups(self, shard: int, wanted: Mapping[str, bool]) -> Iterator[Group | End]:
        """Yield the groups of a shard; its end tells how many there should have been."""
        try:
            file = self._place.open(self._place.paths[shard])
        except Exception as error:  # whatever the file system raises
            yield End(0, NOT_OPENED, _said(error), self.expected(shard))
            return
        with file:
            for item in read_groups(file, wanted):
                if isinstance(item, End) and item.fault:
                    item = End(item.ignored, item.fault, item.detail, self.expected(shard))
                yield item

    def _record(self, shard: int, group: Group) -> Record | Dropped:
        """Make a record of a group, or say why not."""
        pictures = [name for name in self._pictures if name in group.suffixes]
        meta = _meta(group)
        if group.fault:
            return Dropped(group.key, group.fault)
        if len(pictures) != 1:
            return Dropped(group.key, SEVERAL_PICTURES if pictures else NO_PICTURE)
        if meta is None:
            return Dropped(group.key, BAD_JSON)
        texts = self._texts(group, meta)
        if isinstance(texts, str):
            return Dropped(group.key, texts)
        sample_id = self._sample_id(shard, group.key, meta)
        if sample_id is None:
            return Dropped(group.key, NO_ID)
        return Record(group.key, sample_id, group.files[pictures[0]], texts, meta)

    def _texts(self, group: Group, meta: Mapping[str, Any]) -> tuple[str, ...] | str:
        """Find a group's captions, or why it has none."""
        if self._text is not None and self._text.lower() in group.files:
            return as_texts([group.files[self._text.lower()]])
        if self._text is None and "txt" in group.files:
            return as_texts([group.files["txt"]])
        for name in _CAPTIONS if self._text is None else (self._text,):
            if name in meta:
                value = meta[name]
                return as_texts(value if isinstance(value, list) else [value])
        return NO_CAPTION

    def _sample_id(self, shard: int, key: str, meta: Mapping[str, Any]) -> str | None:
        """Return a sample's id, None where it has none."""
        if self.unique:
            return as_id(f"{self.shards[shard]}/{key}")
        if self._id in meta:
            return as_id(meta[self._id])
        beside = self._sidecar(shard).ids()
        return as_id(beside.get(posixpath.basename(key))) if beside else None

    def _has_ids(self) -> bool:
        """Look whether any of the first samples has an id."""
        self.unique = False
        for shard in range(min(len(self), 10)):  # the first may be damaged
            wanted = {"json": True} | dict.fromkeys(self._pictures, False)
            groups = (g for g in self._groups(shard, wanted) if isinstance(g, Group))
            first = list(islice(groups, _PROBED))
            if first:
                found = (self._sample_id(shard, g.key, _meta(g) or {}) for g in first)
                return any(one is not None for one in found)
        return False

    def _sidecar(self, shard: int) -> Sidecar:
        """Return what lies beside a shard; that of the last one is kept."""
        if self._beside is None or self._beside[0] != shard:
            stem = posixpath.splitext(self._place.paths[shard])[0]
            self._beside = shard, Sidecar(self._place, stem, self._id)
        return self._beside[1]


def _meta(group: Group) -> dict[str, Any] | None:
    """Return a group's .json, empty where there is none, None where it is no object."""
    if "json" not in group.files:
        return {}
    try:
        meta = json.loads(group.files["json"])
    except (ValueError, RecursionError):  # what is no UTF-8 is a ValueError too
        return None
    return meta if isinstance(meta, dict) else None


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
