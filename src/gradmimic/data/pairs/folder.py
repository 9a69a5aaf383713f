"""A folder of pictures, each with its caption in a .txt of the same name.

cats/1.jpg, cats/1.txt  →  key and id cats/1
"""

import posixpath
from collections.abc import Iterator, Mapping

from gradmimic.data.pairs.grouped import GroupedSource
from gradmimic.data.pairs.place import Place
from gradmimic.data.pairs.reasons import SEVERAL
from gradmimic.data.pairs.sample import End
from gradmimic.data.pairs.table_files import SHARD
from gradmimic.data.pairs.tar import Group


class FolderSource(GroupedSource):
    """Pairs in files of a folder, in shards of ``SHARD`` by name.

    Args:
        name: as the user wrote it.
        place: all files.
        sample_id: as for :class:`GroupedSource`.
        image: as there.
        text: as there.
    """

    def __init__(
        self, name: str, place: Place, sample_id: str | None, image: str | None, text: str | None
    ) -> None:
        self.name, self._place = name, place
        grouped: dict[str, dict[str, str]] = {}
        self._doubled: set[str] = set()
        for path, name in zip(place.paths, place.names(), strict=True):
            key, suffix = posixpath.splitext(name)
            own, suffix = grouped.setdefault(key, {}), suffix.lower().lstrip(".")
            if suffix in own:
                self._doubled.add(key)
            own[suffix] = path
        self._grouped = sorted(grouped.items())
        self.shards = [f"{n:05d}" for n in range(-(-len(grouped) // SHARD))]
        super().__init__(sample_id, image, text)

    def groups(self, shard: int, wanted: Mapping[str, int]) -> Iterator[Group | End]:
        """Yield the groups of a shard, then its end."""
        ignored = 0
        for key, paths in self._grouped[shard * SHARD : (shard + 1) * SHARD]:
            group = Group(key, suffixes=set(paths), fault=SEVERAL * (key in self._doubled))
            if not group.suffixes & wanted.keys():
                ignored += len(paths)
                continue
            for suffix in sorted(group.suffixes & wanted.keys()):
                if wanted[suffix] and not group.fault:
                    content = self._place.read(paths[suffix], wanted[suffix])
                    if isinstance(content, str):
                        group.fault = content
                    else:
                        group.files[suffix] = content
            yield group
        yield End(ignored)

    def made_id(self, shard: int, key: str) -> str:
        """Return the key, which no other sample has."""
        return key
