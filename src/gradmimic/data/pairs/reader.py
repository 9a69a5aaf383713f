"""Batches of pairs from every shard once, in several processes.

    shards of a process = order[rank::ranks][worker::workers]

With ``mixed`` the shards' order and the samples' are shuffled for training. Without, every batch
holds samples of one shard, and what a shard's batches are depends on the shard and the seed alone,
so that shards can be shared out anew after an interruption.
"""

import re
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.data.pairs.census import Census
from gradmimic.data.pairs.duplicates import Duplicates
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.stream import Counts, Stream, Tokenize, Transform
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

_GONE = re.compile("DataLoader worker.*(exited unexpectedly|killed by signal)")


class PairReader:
    """Every sample once per pass, as batches ready for a model.

    Args:
        source: the data set.
        transform: a PIL picture in RGB -> ``[3, s, s]`` float32; can be pickled for workers.
        tokenize: captions -> named tensors ``[b, t]``; can be pickled for workers.
        batch_size: samples in a batch. A shard's last batch may be smaller, or larger by one: a
            lone sample joins the batch before, since its contrastive loss would be zero.
        shuffle: whether samples come in another order than they lie.
        seed: of that order; another one for another epoch.
        workers: processes that read ahead; 0 reads in this one.
        rank: this process among ``ranks`` that share the shards.
        ranks: how many there are.
        done: numbers of shards to pass over.
        mixed: whether samples of several shards share a batch, for training. If not, each batch
            is of one shard, and ``last`` marks the shard's end, with a batch of length 0 where
            nothing of it can be used.
        skip: ids to leave out in all but the first shard that holds them.
        only: the ids asked for; None for all.

    Attributes:
        census: what was read in the pass that runs or ran last, and what became of it.

    Raises:
        DataError: a batch or a share that cannot be.
    """

    def __init__(
        self,
        source: PairSource,
        transform: Transform,
        tokenize: Tokenize,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        workers: int,
        mixed: bool,
        rank: int = 0,
        ranks: int = 1,
        done: Collection[int] = (),
        skip: Duplicates | None = None,
        only: Container[str] | None = None,
    ) -> None:
        import_extra("PIL.Image", "images")
        if batch_size < 1 or workers < 0 or not 0 <= rank < ranks:
            raise DataError(
                "expected a batch of at least 1 sample, at least 0 workers, and a rank below the "
                f"number of ranks; got batch_size={batch_size}, workers={workers}, rank={rank} of "
                f"{ranks}"
            )
        self.census = Census()
        self._workers = workers
        order = list(range(len(source)))
        if shuffle and mixed:
            Random(f"shards {seed}").shuffle(order)  # noqa: S311 — an order, no secret
        past = frozenset(done)
        left = [shard for shard in order if shard not in past]
        self._shards = left[rank::ranks]
        self._stream = Stream(
            source, transform, tokenize, batch_size, shuffle, seed, mixed, skip, only
        )

    def __iter__(self) -> Iterator[PairBatch]:
        census = self.census = Census()
        workers = min(self._workers, len(self._shards))
        data = _Shares(self._stream, self._shards)
        if workers:
            loader = DataLoader(data, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
            pieces = _from_workers(iter(loader))
        else:
            pieces = iter(data)
        for batch, counts in pieces:
            census.add(counts)
            if batch is not None:
                yield batch


@dataclass(frozen=True, eq=False)
class _Shares(IterableDataset):  # type: ignore[type-arg]
    """The shards of this process, shared among its workers."""

    stream: Stream
    shards: list[int]

    def __iter__(self) -> Iterator[tuple[PairBatch | None, Counts]]:
        info = get_worker_info()
        share = self.shards if info is None else self.shards[info.id :: info.num_workers]
        return self.stream.batches(share)


def _from_workers(pieces: Iterator[Any]) -> Iterator[Any]:
    """Pass on what workers send, and say so where one of them is gone."""
    try:
        yield from pieces
    except RuntimeError as error:
        if not _GONE.search(str(error)):
            raise
        raise DataError(
            f"a process that reads pairs has ended, perhaps for want of memory: {error}. What was "
            "handed on is whole; go on with fewer workers, or with 0 to see its own error."
        ) from error


def _as_it_is(piece: Any) -> Any:
    return piece
