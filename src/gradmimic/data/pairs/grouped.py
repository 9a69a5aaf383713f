"""Samples that are files of one key: in an archive, or in a folder.

    key.jpg, key.txt, key.json  →  picture, caption, and what else is known

The caption is the .txt, else a field of the .json. The id is the field ``uid`` of the .json, or
what stands beside the shard; where the first samples have none at all, it is made of the key.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from gradmimic.data.images import SUFFIXES
from gradmimic.data.pairs.reasons import (
    BAD_JSON,
    CUT,
    MAX_BYTES,
    MAX_TEXT,
    NO_CAPTION,
    NO_ID,
    NO_PICTURE,
    SEVERAL,
)
from gradmimic.data.pairs.sample import Dropped, End, Record, as_id, as_texts
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.tar import Group
from gradmimic.errors import DataError

PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
_CAPTIONS = ("caption", "captions", "text")  # fields of the .json where there is no .txt
_PROBED = 100  # samples whose ids tell whether the data have any
_TRIED = 10  # shards at most, as the first may be damaged


class GroupedSource(PairSource):
    """Pairs whose files share a key.

    Args:
        sample_id: the field with ids, None for ``uid`` where there is one.
        image: the suffix of the picture, None for any.
        text: the suffix of the caption, or the field of the .json; None for .txt, else a caption.

    Raises:
        DataError: the first samples have no such id, though it was asked for.
    """

    def __init__(self, sample_id: str | None, image: str | None, text: str | None) -> None:
        self._id, self._text = sample_id or "uid", text
        self._pictures = PICTURES if image is None else (image.lower().lstrip("."),)
        texts = {"txt", "json"} if text is None else {"txt", "json", text.lower()}
        self._names = dict.fromkeys(self._pictures, 0) | {"json": MAX_TEXT}
        self._files = dict.fromkeys(self._pictures, MAX_BYTES) | dict.fromkeys(texts, MAX_TEXT)
        self.unique = False
        self.unique = not self._have_ids()
        if self.unique and sample_id is not None:
            raise DataError(
                f"none of the first samples of {self.name} has an id called {sample_id!r}, neither "
                "in its .json nor in a Parquet beside its shard. Name another field, or none to "
                "have ids made of the files' names."
            )

    @abstractmethod
    def groups(self, shard: int, wanted: Mapping[str, int]) -> Iterator[Group | End]:
        """Yield the groups of a shard, then its end; see :func:`tar.read_groups`."""

    @abstractmethod
    def made_id(self, shard: int, key: str) -> str:
        """Make an id of a sample's key."""

    def id_beside(self, shard: int, key: str) -> object:
        """Return the id that stands beside a shard, None where there is none."""
        return None

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the ids of a shard; of its files only the .json are read."""
        for item in self.groups(shard, self._names):
            if isinstance(item, Group) and not item.fault:
                found = self._sample_id(shard, item)
                if found is not None:
                    yield found

    def items(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield the samples of a shard as they come, then its end."""
        for item in self.groups(shard, self._files):
            if isinstance(item, End):
                yield item
                continue
            made = self._record(shard, item)
            if isinstance(made, Record):
                yield made
            else:
                yield Dropped(item.key, CUT if item.cut else made)

    def _record(self, shard: int, group: Group) -> Record | str:
        """Make a record of a group, or say why not."""
        if group.fault:
            return group.fault
        pictures = [name for name in self._pictures if name in group.suffixes]
        if len(pictures) != 1:
            return SEVERAL if pictures else NO_PICTURE
        meta = _meta(group)
        if meta is None:
            return BAD_JSON
        texts = self._texts(group, meta)
        if isinstance(texts, str):
            return texts
        sample_id = self._sample_id(shard, group, meta)
        if sample_id is None:
            return NO_ID
        return Record(group.key, sample_id, group.files[pictures[0]], texts, meta)

    def _texts(self, group: Group, meta: Mapping[str, Any]) -> tuple[str, ...] | str:
        """Find a group's captions, or why it has none."""
        suffix = "txt" if self._text is None else self._text.lower()
        if suffix in group.files:
            return as_texts([group.files[suffix]])
        for name in _CAPTIONS if self._text is None else (self._text,):
            if name in meta:
                value = meta[name]
                return as_texts(value if isinstance(value, list) else [value])
        return NO_CAPTION

    def _sample_id(
        self, shard: int, group: Group, meta: Mapping[str, Any] | None = None
    ) -> str | None:
        """Return a sample's id, None where it has none."""
        if self.unique:
            return as_id(self.made_id(shard, group.key))
        meta = _meta(group) if meta is None else meta
        if meta and self._id in meta:
            return as_id(meta[self._id])
        return as_id(self.id_beside(shard, group.key))

    def _have_ids(self) -> bool:
        """Look whether any of the first samples has an id."""
        for shard in range(min(len(self), _TRIED)):
            groups = (g for g in self.groups(shard, self._names) if isinstance(g, Group))
            first = list(islice(groups, _PROBED))
            if first:
                return any(self._sample_id(shard, group) is not None for group in first)
        return False


def _meta(group: Group) -> dict[str, Any] | None:
    """Return a group's .json, empty where there is none, None where it is no object."""
    if "json" not in group.files:
        return {}
    try:
        meta = json.loads(group.files["json"])
    except (ValueError, RecursionError):  # what is no UTF-8 is a ValueError too
        return None
    return meta if isinstance(meta, dict) else None
