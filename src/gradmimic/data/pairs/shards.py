"""WebDataset shards, as img2dataset and DataComp write them.

00000000.tar: 0.jpg, 0.txt, 0.json, …        00000000.parquet, 00000000_stats.json beside it
"""

import posixpath
from collections.abc import Iterator, Mapping

from gradmimic.data.pairs.grouped import GroupedSource
from gradmimic.data.pairs.place import Place
from gradmimic.data.pairs.reasons import NOT_OPENED
from gradmimic.data.pairs.sample import End, as_id
from gradmimic.data.pairs.sidecar import Sidecar
from gradmimic.data.pairs.tar import Group, read_groups


class ShardSource(GroupedSource):
    """Pairs in tar archives; an id is made of the shard's name and the key.

    Args:
        name: as the user wrote it.
        place: the shards.
        sample_id: as for :class:`GroupedSource`, or the column of the Parquet beside a shard.
        image: as there.
        text: as there.
    """

    def __init__(
        self, name: str, place: Place, sample_id: str | None, image: str | None, text: str | None
    ) -> None:
        self.name, self._place = name, place
        self.shards = place.stems()
        self._beside: tuple[int, Sidecar] | None = None
        super().__init__(sample_id, image, text)

    def expected(self, shard: int) -> int | None:
        """Return how many samples the files beside a shard promise."""
        return self._sidecar(shard).count()

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the ids: from the Parquet beside the shard, else from its .json files alone."""
        beside = {} if self.unique else self._sidecar(shard).ids()
        if not beside:
            yield from super().ids(shard)
        for value in beside.values():
            found = as_id(value)
            if found is not None:
                yield found

    def groups(self, shard: int, wanted: Mapping[str, int]) -> Iterator[Group | End]:
        """Yield the groups of a shard; its end tells how many there should have been."""
        try:
            file = self._place.open(self._place.paths[shard])
        except Exception as error:  # whatever the file system raises
            said = str(error) or type(error).__name__
            yield End(0, NOT_OPENED, said, self.expected(shard))
            return
        with file:
            for item in read_groups(file, wanted):
                if isinstance(item, End) and item.fault:
                    item = End(item.ignored, item.fault, item.detail, self.expected(shard))
                yield item

    def made_id(self, shard: int, key: str) -> str:
        """Make an id of the shard's name and the key."""
        return f"{self.shards[shard]}/{key}"

    def id_beside(self, shard: int, key: str) -> object:
        """Return the id of the row with this key in the Parquet beside the shard."""
        return self._sidecar(shard).ids().get(posixpath.basename(key))

    def _sidecar(self, shard: int) -> Sidecar:
        """Return what lies beside a shard; that of the last one is kept."""
        if self._beside is None or self._beside[0] != shard:
            stem = posixpath.splitext(self._place.paths[shard])[0]
            self._beside = shard, Sidecar(self._place, stem, self._id)
        return self._beside[1]
