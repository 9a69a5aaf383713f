"""The shards of a pool as units of scoring: one is scored whole, counted whole, and logged whole.

    census of shard s → shards/<s>.json, and only then may its rows be written
    done = shards with rows in the log, and those that were read to their end without any

Rows are what counts: a census without them, which a kill may leave, is written again when the
shard is scored again, and says the same. A shard that could not be opened has no rows and counts
as lost, not as done: the next start tries it once more.

A contrastive loss depends on how many rivals a pair has, and is 0 where it has none. So the last
two batches of a shard share their samples evenly, and no batch is below half the size of others.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from gradmimic.atomic import atomic_write
from gradmimic.data.pairs import Duplicates, PairBatch, PairReader, PairSource, ShardCensus
from gradmimic.errors import LogError
from gradmimic.pair_model import PairModel
from gradmimic.units import Piece

ALONE = "no other usable pair in its shard"  # a contrastive loss needs two
SHOWN = 4_096  # samples that an alignment learns from

Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


def even_tails(batches: Iterable[PairBatch], size: int, tokenize: Tokenize) -> Iterator[PairBatch]:
    """Let the last two batches of every shard share their samples evenly.

    Args:
        batches: of shards, which may come in turns.
        size: b, of all batches of a shard but the last.
        tokenize: captions to tokens; tokens of two batches may be of different lengths.

    Yields:
        The same samples, in the same order within a shard; each shard ends with ``last``.
    """
    before: dict[int, PairBatch] = {}
    for batch in batches:
        held = before.pop(batch.shard, None)
        if not batch.last:
            if held is not None:
                yield held
            before[batch.shard] = batch
        elif held is None:
            yield batch
        elif len(batch) == 0:
            yield replace(held, last=True)
        else:
            both = _joined(held, batch, tokenize)
            cut = -(-len(both) // 2) if len(both) > size else 0
            if cut:
                yield _rows(both, slice(cut), last=False)
            yield _rows(both, slice(cut, None), last=True)


def _joined(first: PairBatch, second: PairBatch, tokenize: Tokenize) -> PairBatch:
    texts = [*first.texts, *second.texts]
    ids = [*first.ids, *second.ids]
    images = torch.cat([first.images, second.images])
    return PairBatch(images, tokenize(texts), ids, texts, first.shard)


def _rows(batch: PairBatch, rows: slice, *, last: bool) -> PairBatch:
    return replace(
        batch,
        images=batch.images[rows],
        tokens={name: own[rows] for name, own in batch.tokens.items()},
        ids=batch.ids[rows],
        texts=batch.texts[rows],
        last=last,
    )


class ShardUnits:
    """The shards of a source, ready for a model.

    Args:
        source: the pairs.
        pair: the model that they are prepared for.
        folder: where the counts of the shards go.
        size: b, pairs of a batch.
        seed: decides which pairs of a shard share a batch.
        workers: processes that read.
        skip: samples that stand in an earlier shard.
        device: where batches go.
    """

    def __init__(
        self,
        source: PairSource,
        pair: PairModel,
        folder: Path,
        *,
        size: int,
        seed: int,
        workers: int,
        skip: Duplicates,
        device: torch.device,
    ) -> None:
        self._source, self._pair, self._folder = source, pair, folder
        self._size, self._seed, self._workers, self._skip = size, seed, workers, skip
        self._device = device
        self._counts: dict[int, ShardCensus] = {}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, wanted: Sequence[int]) -> Iterator[Piece]:
        """Yield the batches of some shards; a shard without samples comes once, without a batch."""
        reader = self._reader(wanted, self._workers)
        for batch in even_tails(reader, self._size, self._pair.tokenize):
            if batch.last:
                self._counts[batch.shard] = reader.census.shards[batch.shard]
            if len(batch) == 1:  # alone in its shard
                self._counts[batch.shard] = without_rivals(self._counts[batch.shard], batch)
            usable = len(batch) > 1
            yield Piece(batch.shard, self._moved(batch) if usable else None, batch.last)

    def shown(self) -> list[PairBatch]:
        """Return the first batches of the first shards, in their order."""
        reader = self._reader(range(len(self)), 0)
        found, samples = [], 0
        for batch in reader:
            if len(batch) > 1:
                found.append(self._moved(batch))
            if (samples := samples + len(batch)) >= SHOWN:
                break
        return found

    def ended(self, number: int) -> None:
        """Write what became of a shard's samples."""
        write_count(self._folder, number, self._counts.pop(number))

    def called(self, number: int) -> str:
        """Name a shard."""
        return f"shard {self._source.shards[number]}"

    def _reader(self, wanted: Sequence[int], workers: int) -> PairReader:
        return PairReader(
            self._source,
            self._pair.transform,
            self._pair.tokenize,
            batch_size=self._size,
            shuffle=True,
            seed=self._seed,
            workers=workers,
            done=set(range(len(self))).difference(wanted),
            mixed=False,
            skip=self._skip,
        )

    def _moved(self, batch: PairBatch) -> PairBatch:
        """Bring a batch to the device; to a GPU it goes by pinned memory, and nobody waits."""
        if self._device.type != "cuda":
            return batch

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(self._device, non_blocking=True)

        tokens = {name: moved(own) for name, own in batch.tokens.items()}
        return replace(batch, images=moved(batch.images), tokens=tokens)


def write_count(folder: Path, number: int, count: ShardCensus) -> None:
    """Write what became of a shard's samples, whole or not at all."""
    with atomic_write(folder / f"{number:08d}.json") as file:
        file.write(json.dumps(asdict(count)).encode())


def read_counts(folder: Path) -> dict[int, ShardCensus]:
    """Read what became of the samples of every shard that was scored.

    Raises:
        LogError: a file is damaged.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[int(file.stem)] = ShardCensus(**json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise LogError(
                f"{file} is damaged and does not say what became of its shard ({error}). Restore "
                "it, or score anew with --overwrite."
            ) from error
    return found


def without_rivals(count: ShardCensus, batch: PairBatch) -> ShardCensus:
    """Count the only usable sample of a shard as dropped."""
    alone = replace(count, kept=count.kept - 1, dropped={**count.dropped}, first={**count.first})
    alone.drop(str(batch.ids[0]), ALONE)
    return alone


def done_shards(held: Collection[int], counts: Mapping[int, ShardCensus]) -> set[int]:
    """Return the shards that need not be scored again.

    Args:
        held: those that have rows in the log.
        counts: what became of the samples of each.

    Raises:
        LogError: the count of a shard is gone that has rows.
    """
    if lacking := sorted(set(held) - counts.keys()):
        raise LogError(
            f"the log holds scores of shard {lacking[0]}, but shards/{lacking[0]:08d}.json, which "
            "says what became of its other samples, is gone. Restore it, or score anew with "
            "--overwrite."
        )
    whole = {number for number, own in counts.items() if not own.kept and not own.fault}
    return set(held) | whole


def digest_source(source: PairSource) -> str:
    """Return a name for a data set: the names of its shards, wherever they lie."""
    return hashlib.blake2b("\n".join(source.shards).encode(), digest_size=16).hexdigest()
