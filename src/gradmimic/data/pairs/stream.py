"""The stream of batches that one process makes of its shards.

    shard → records → skip → shuffle → decode → transform → batch

Everything is encoded until the moment it is needed, so memory holds one batch of pictures, and a
buffer of files bounded by their number and their bytes.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.data.pairs.census import ShardCensus
from gradmimic.data.pairs.duplicates import Duplicates
from gradmimic.data.pairs.picture import decode
from gradmimic.data.pairs.reasons import ELSEWHERE, NOT_ASKED, UNPREPARED
from gradmimic.data.pairs.sample import Dropped, End, Record
from gradmimic.data.pairs.source import PairSource

BUFFER = 2_000  # samples that are shuffled among each other
BUFFER_BYTES = 256_000_000  # of their encoded pictures

Transform = Callable[[Any], Tensor]
Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]
Counts = dict[int, ShardCensus]


class _Ready(NamedTuple):
    shard: int
    sample_id: str
    texts: tuple[str, ...]
    image: Tensor  # [3, s, s]


@dataclass(frozen=True, eq=False)
class Stream:
    """What every process needs to make batches of some shards.

    Args:
        source: the data set.
        transform: a PIL picture in RGB -> ``[3, s, s]``.
        tokenize: captions -> named tensors ``[b, t]``.
        batch_size: samples in a batch.
        shuffle: whether samples change their order.
        seed: of the order.
        mixed: whether samples of several shards share a batch.
        skip: ids that an earlier shard holds.
        only: the ids asked for, None for all.
    """

    source: PairSource
    transform: Transform
    tokenize: Tokenize
    batch_size: int
    shuffle: bool
    seed: int
    mixed: bool
    skip: Duplicates | None
    only: Container[str] | None

    def batches(self, shards: Sequence[int]) -> Iterator[tuple[PairBatch | None, Counts]]:
        """Yield batches, and with each what was counted since the one before.

        A lone last sample joins the batch before it, since a contrastive loss of one is zero.
        """
        blank = self._blank()
        size = int(blank.images.shape[-1])
        counts: Counts = {}
        if self.mixed:
            rng = Random(f"{self.seed}")  # noqa: S311 — an order, no secret
            several = (item for shard in shards for item in self._records(shard, counts))
            yield from self._batched(self._shuffled(several, rng), counts, size, None, blank)
        else:
            for shard in shards:
                rng = Random(f"{self.seed} {shard}")  # noqa: S311
                own = self._shuffled(self._records(shard, counts), rng)
                yield from self._batched(own, counts, size, shard, blank)
        if counts:
            yield None, dict(counts)

    def _batched(
        self,
        records: Iterator[tuple[int, Record]],
        counts: Counts,
        size: int,
        shard: int | None,
        blank: PairBatch,
    ) -> Iterator[tuple[PairBatch | None, Counts]]:
        """Collect samples to batches; all are of ``shard``, where one is given."""
        number = -1 if shard is None else shard
        waiting: list[_Ready] = []
        for ready in self._ready(records, counts, size):
            waiting.append(ready)
            if len(waiting) == self.batch_size + 2:
                yield self._batch(waiting[: self.batch_size], counts, number, last=False)
                del waiting[: self.batch_size]
        if waiting:
            yield self._batch(waiting, counts, number, last=shard is not None)
        elif shard is not None:
            yield PairBatch(blank.images, blank.tokens, [], [], shard, last=True), _taken(counts)

    def _records(self, shard: int, counts: Counts) -> Iterator[tuple[int, Record]]:
        """Yield the records of a shard that are wanted, and count the others."""
        for item in self.source.records(shard):
            own = self._own(counts, shard)
            if isinstance(item, End):
                own.end(item)
                continue
            own.seen += 1
            if isinstance(item, Dropped):
                own.drop(item.key, item.reason)
            elif self.skip is not None and self.skip.elsewhere(item.sample_id, shard):
                own.drop(item.key, ELSEWHERE)
            elif self.only is not None and item.sample_id not in self.only:
                own.drop(item.key, NOT_ASKED)
            else:
                yield shard, item

    def _shuffled(
        self, records: Iterator[tuple[int, Record]], rng: Random
    ) -> Iterator[tuple[int, Record]]:
        """Draw from a buffer that is refilled; the order depends on nothing but the seed."""
        if not self.shuffle:
            yield from records
            return
        buffer: list[tuple[int, Record]] = []
        held = 0
        for record in records:
            buffer.append(record)
            held += len(record[1].image)
            while len(buffer) >= BUFFER or (held > BUFFER_BYTES and buffer):
                drawn = _draw(buffer, rng)
                held -= len(drawn[1].image)
                yield drawn
        while buffer:
            yield _draw(buffer, rng)

    def _ready(
        self, records: Iterator[tuple[int, Record]], counts: Counts, size: int
    ) -> Iterator[_Ready]:
        """Decode and transform the pictures."""
        for shard, record in records:
            image = decode(record.image, near=size)
            if not isinstance(image, str):
                try:
                    ready = self.transform(image)
                except Exception:  # a picture that nobody foresaw must not end a run of days
                    image = UNPREPARED
            if isinstance(image, str):
                self._own(counts, shard).drop(record.key, image)
            else:
                yield _Ready(shard, record.sample_id, record.texts, ready)

    def _batch(
        self, ready: Sequence[_Ready], counts: Counts, shard: int, *, last: bool
    ) -> tuple[PairBatch, Counts]:
        """Make a batch, and count its samples."""
        for one in ready:
            self._own(counts, one.shard).kept += 1
        texts = [one.texts[0] for one in ready]
        several = any(len(one.texts) > 1 for one in ready)
        captions = [one.texts for one in ready] if several else None
        images = torch.stack([one.image for one in ready])  # [b, 3, s, s]
        ids = [one.sample_id for one in ready]
        batch = PairBatch(images, self.tokenize(texts), ids, texts, shard, last, captions)
        return batch, _taken(counts)

    def _own(self, counts: Counts, shard: int) -> ShardCensus:
        """Return the count of a shard."""
        return counts.setdefault(shard, ShardCensus(self.source.shards[shard]))

    def _blank(self) -> PairBatch:
        """Return a batch of no samples, which shows the shapes of all others."""
        from PIL import Image

        image = self.transform(Image.new("RGB", (32, 32)))  # [3, s, s]
        tokens = {name: each[:0] for name, each in self.tokenize(["a"]).items()}
        return PairBatch(image[None][:0], tokens, [], [])


def _draw(buffer: list[tuple[int, Record]], rng: Random) -> tuple[int, Record]:
    """Take one out at random, the last one filling its place."""
    place = rng.randrange(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


def _taken(counts: Counts) -> Counts:
    """Return the counts, and begin anew."""
    taken = dict(counts)
    counts.clear()
    return taken
