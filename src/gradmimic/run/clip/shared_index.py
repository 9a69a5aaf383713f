"""Ids that stand in several shards, found by one process and shared with the others as a file.

    duplicates.npy     ids in several shards, and the first that holds each: the others drop it
    absent.json        shards without a single id at that time, such as those that were not there

A shard that was absent may be there when scoring is started again. By then other shards may have
scored what it holds too, so it drops every id that any other shard holds.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from gradmimic.atomic import atomic_write
from gradmimic.data.pairs import Duplicates, PairSource, find_duplicates
from gradmimic.run.place import Place, wait_for

FILES = ("duplicates.npy", "absent.json")


class Skip(Duplicates):
    """Tells which samples of which shard another one stands for.

    Args:
        first: ids in several shards when scoring began.
        absent: shards that were not there then.
        now: ids in several shards now; None where no absent shard is to be scored.
    """

    def __init__(self, first: Duplicates, absent: frozenset[int], now: Duplicates | None) -> None:
        self._first, self._absent, self._now = first, absent, now

    def __len__(self) -> int:
        return len(self._first)

    def elsewhere(self, sample_id: str, shard: int) -> bool:
        """Tell whether another shard than this one stands for the id."""
        if self._now is not None and shard in self._absent:
            return self._now.elsewhere(sample_id, 1 << 31)  # after all shards
        return self._first.elsewhere(sample_id, shard)


def share_index(
    source: PairSource,
    out: Path,
    place: Place,
    wanted: Callable[[frozenset[int]], bool],
    beat: Callable[[], None],
    change: Callable[[], object],
) -> Skip:
    """Find duplicate ids in the first process; read what it found in the others.

    Args:
        source: the pairs.
        out: the folder of the scores.
        place: which process this is.
        wanted: tells of shards that were absent whether any is to be scored by this process.
        beat: called for every shard.
        change: a value that is another one as long as the first process is at work.

    Returns:
        What the reader is to skip.

    Raises:
        OSError: the folder does not take the files.
        UsageError: the first process stopped.
    """
    duplicates, absent = (out / name for name in FILES)
    if place.rank == 0 and not duplicates.exists():
        index = _Index(source, beat)
        found = find_duplicates(index)
        with atomic_write(absent) as file:
            file.write(json.dumps(index.absent).encode())
        found.save(duplicates)
    wait_for(
        duplicates.exists,
        change,
        f"process {place.rank} of {place.processes} waits for process 0, which has not written "
        f"{duplicates}. Start the same command again: what is done is kept.",
    )
    missing = frozenset(json.loads(absent.read_bytes()))
    again = not source.unique and wanted(missing)
    now = find_duplicates(_Index(source, beat)) if again else None
    return Skip(Duplicates.load(duplicates), missing, now)


class _Index(PairSource):
    """A source whose ids are read while somebody watches."""

    def __init__(self, source: PairSource, beat: Callable[[], None]) -> None:
        self.name, self.shards, self.unique = source.name, source.shards, source.unique
        self._source, self._beat = source, beat
        self.absent: list[int] = []

    def items(self, shard: int) -> Iterator[object]:  # type: ignore[override]
        return self._source.items(shard)

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the ids of a shard, and note where there is none."""
        self._beat()
        some = False
        for sample_id in self._source.ids(shard):
            some = True
            yield sample_id
        if not some:
            self.absent.append(shard)
