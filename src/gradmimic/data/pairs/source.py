"""Where pairs come from: shards, each of which is read from its start to its end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.reasons import REPEATED
from gradmimic.data.pairs.sample import Dropped, End, Pair, Record
from gradmimic.extras import import_extra


class PairSource(ABC):
    """A data set of pictures with captions, in shards; it can be pickled for workers.

    Args:
        name: as the user wrote it.
        shards: the shards' names, in the order that numbers them.
        unique: whether no id can stand in two shards, as where ids hold the shard's name.
    """

    name: str
    shards: Sequence[str]
    unique: bool = False

    def __len__(self) -> int:
        return len(self.shards)

    @abstractmethod
    def items(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield the samples of a shard as they come, then its end."""

    def expected(self, shard: int) -> int | None:
        """Return how many samples a shard should hold, None where nothing tells."""
        return None

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the sample ids of a shard, without decoding a picture."""
        for item in self.items(shard):
            if isinstance(item, Record):
                yield item.sample_id

    def records(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield every sample of a shard once, its picture still encoded, then the shard's end.

        Args:
            shard: its number.

        Yields:
            A record, or why there is none; the first of several with one id is kept.
        """
        seen = set()
        for item in self.items(shard):
            if isinstance(item, Record):
                if item.sample_id in seen:
                    yield Dropped(item.key, REPEATED)
                    continue
                seen.add(item.sample_id)
            yield item

    def read(self, shard: int) -> Iterator[Pair | Dropped | End]:
        """Yield every sample of a shard once, decoded, then the shard's end.

        Args:
            shard: its number.

        Yields:
            A pair, or why there is none.
        """
        import_extra("PIL.Image", "images")
        for item in self.records(shard):
            if not isinstance(item, Record):
                yield item
                continue
            image = decode(item.image)
            if isinstance(image, str):
                yield Dropped(item.key, image)
            else:
                yield Pair(item.sample_id, image, item.texts[0], item.texts, item.meta)
