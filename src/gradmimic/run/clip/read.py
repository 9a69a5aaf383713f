"""The first pass over a run's pairs: it counts them, finds what is trusted, and holds what fits.

every shard once → kept or dropped, with the reason → in memory, or read anew for every epoch
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.data.pairs.census import Census, plain
from gradmimic.data.pairs.duplicates import Duplicates, find_duplicates
from gradmimic.data.pairs.open import open_pairs
from gradmimic.data.pairs.reader import PairReader
from gradmimic.data.pairs.source import PairSource
from gradmimic.errors import DataError, listed
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.pool import Held, Streamed, Wanted
from gradmimic.run.clip.trusted import Trusted, find_trusted

MOST_BYTES = 2 * 2**30  # of prepared pictures in memory
_BATCH = 256  # pairs at a time

Pairs: TypeAlias = Held | Streamed
Progress: TypeAlias = Callable[[str, int], Callable[..., None]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The pairs of a run.

    Args:
        train: those to train on.
        trusted: known to match, not part of ``train``; or None.
        swapped: ids of those whose captions were exchanged on purpose; None where none were.
        source: where ``train`` comes from.
        census: what was read of it, and what became of it.
        trusted_census: likewise, of other pairs that are trusted.
        digests: of the ids by shard.
    """

    train: Pairs
    trusted: Held | None
    swapped: frozenset[str] | None
    source: PairSource
    census: Census
    trusted_census: Census | None
    digests: dict[int, npt.NDArray[np.uint64]]

    def shards_of(self, ids: Collection[str]) -> list[int]:
        """Return the shards that hold any of these samples, and at times one more."""
        wanted = _digests(ids)
        return [shard for shard, own in self.digests.items() if np.isin(wanted, own).any()]

    @property
    def fingerprint(self) -> str:
        """What was read, in 32 letters: another one where an id or its shard is another."""
        whole = blake2b(digest_size=16)
        for shard, own in sorted(self.digests.items()):
            whole.update(np.int64(shard).tobytes() + np.sort(own).tobytes())
        return whole.hexdigest()


def load_pairs(config: ClipConfig, pair: PairModel, progress: Progress) -> Inputs:
    """Read all pairs of a run once, and swap captions where it asks for that.

    Args:
        config: the run's configuration.
        pair: the model that they are prepared for.
        progress: told of every pair.

    Raises:
        DataError: nothing can be read, ids are unknown, or too few pairs are left.
    """
    asked = find_trusted(config.trusted)
    source = open_pairs(config.data, id=config.ids, image=config.image, text=config.text)
    taken = _read(source, pair, config, asked, progress)
    _check_any(config.data, taken)
    trusted, other = taken.trusted, None
    if asked.data is not None:
        there = open_pairs(asked.data, id=config.ids, image=config.image, text=config.text)
        other = _read(there, pair, config, Trusted(), progress)
        _check_any(asked.data, other)
        trusted = other.train
        if trusted is None:
            raise DataError(f"the trusted pairs {asked.data} do not fit in memory. Give fewer.")
    if (train := taken.train) is not None:
        if asked.rows is not None:
            rows = range(len(train))
            chosen = rows[asked.rows]
            trusted = train.take(chosen)
            train = train.take([row for row in rows if row not in chosen])
    elif asked.rows is not None:
        raise DataError(
            f"trusted={config.trusted!r} is a range of rows, but the pairs of {config.data} do not "
            "fit in memory, and come in no order. Give ids, or other pairs."
        )
    _check_counts(config, asked, taken, trusted, other)
    swapped = None
    pool: Pairs
    if train is not None:
        if config.noise_rate:
            train, swapped = swap(train, config.noise_rate, config.seed)
        pool = train
    elif config.noise_rate:
        raise DataError(
            f"noise_rate swaps captions in memory, where the pairs of {config.data} do not fit. "
            "Leave it out, or give fewer shards."
        )
    else:
        pool = _streamed(source, pair, config, taken, asked)
    return Inputs(
        pool,
        trusted,
        swapped,
        source,
        taken.census,
        None if other is None else other.census,
        taken.digests,
    )


def swap(pairs: Held, rate: float, seed: int) -> tuple[Held, frozenset[str]]:
    """Exchange the captions of ⌊ρn⌋ pairs among each other, so that each has another one's.

    Args:
        pairs: all of them.
        rate: ρ in [0, 1].
        seed: decides which, and which caption each gets.

    Returns:
        The pairs, and the ids of those whose caption is another one now.

    Raises:
        DataError: one pair alone cannot be swapped.
    """
    count = int(rate * len(pairs) + 1e-9)
    if count < 2:
        raise DataError(
            f"noise_rate {rate} of {len(pairs)} pairs are {count}; expected 2 or more, whose "
            "captions can be exchanged."
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    rows = order[:count].tolist()
    captions = list(pairs.captions)
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        captions[row] = pairs.captions[other]
    changed = {pairs.ids[row] for row in rows if captions[row] != pairs.captions[row]}
    return replace(pairs, captions=captions), frozenset(changed)


@dataclass(eq=False)
class _Rows:
    """Prepared pairs as they come, until they are too many."""

    images: list[Tensor] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    size: int = 0  # bytes
    full: bool = False

    def add(self, batch: PairBatch, places: list[int]) -> None:
        """Take some pairs of a batch."""
        if self.full or not places:
            return
        whole = len(places) == len(batch)
        own = batch.images if whole else batch.images[torch.tensor(places)]
        self.size += own.nbytes
        if self.size > MOST_BYTES:
            self.full, self.images, self.captions, self.ids, self.shards = True, [], [], [], []
            return
        self.images.append(own)
        captions = batch.captions or [(text,) for text in batch.texts]
        self.captions += [tuple(captions[place]) for place in places]
        self.ids += [str(batch.ids[place]) for place in places]
        self.shards += [batch.shard] * len(places)

    def held(self, pair: PairModel, config: ClipConfig) -> Held | None:
        """Return them in the order of the data, whatever process read them first."""
        if self.full or not self.ids:
            return None
        order = np.argsort(self.shards, kind="stable").tolist()
        images, self.images = torch.cat(self.images), []
        if order != list(range(len(order))):
            images = images[torch.tensor(order)]
        captions, ids = [self.captions[row] for row in order], [self.ids[row] for row in order]
        return Held(images, captions, ids, pair.tokenize, config.batch_size, config.seed)


@dataclass(frozen=True, eq=False)
class _Taken:
    """What the first pass over a data set came to."""

    train: Held | None  # None where it is too much
    trusted: Held | None
    unknown: list[str]  # trusted ids that did not come
    trained: dict[int, int]  # pairs of each shard, without the trusted ones
    census: Census
    digests: dict[int, npt.NDArray[np.uint64]]
    skip: Duplicates | None


def _read(
    source: PairSource, pair: PairModel, config: ClipConfig, asked: Trusted, progress: Progress
) -> _Taken:
    """Read every shard once."""
    skip = None if source.unique else find_duplicates(source)
    reader = PairReader(
        source,
        pair.transform,
        pair.tokenize,
        batch_size=_BATCH,
        shuffle=False,
        seed=config.seed,
        workers=config.workers,
        mixed=False,
        skip=skip,
    )
    expected = [source.expected(shard) for shard in range(len(source))]
    on_pairs = progress("read", sum(count or 0 for count in expected))
    others, trusted = _Rows(), _Rows()
    trained: dict[int, int] = {}
    digests: dict[int, list[npt.NDArray[np.uint64]]] = {}
    for batch in reader:
        places: tuple[list[int], list[int]] = [], []
        for place, sample_id in enumerate(batch.ids):
            places[sample_id in asked.ids].append(place)
        others.add(batch, places[0])
        trusted.add(batch, places[1])
        trained[batch.shard] = trained.get(batch.shard, 0) + len(places[0])
        digests.setdefault(batch.shard, []).append(_digests(map(str, batch.ids)))
        on_pairs(len(batch))
    found = set(trusted.ids)
    if trusted.full:
        raise DataError(f"the {len(asked.ids):,} trusted pairs do not fit in memory. Name fewer.")
    return _Taken(
        others.held(pair, config),
        trusted.held(pair, config),
        [sample_id for sample_id in asked.ids if sample_id not in found],
        trained,
        reader.census,
        {shard: np.concatenate(own) for shard, own in digests.items()},
        skip,
    )


def _streamed(
    source: PairSource, pair: PairModel, config: ClipConfig, taken: _Taken, asked: Trusted
) -> Streamed:
    """Make a pool of what is to be read anew for every epoch."""

    def open_shards(shards: Collection[int], seed: int, wanted: Wanted) -> Iterable[PairBatch]:
        return PairReader(
            source,
            pair.transform,
            pair.tokenize,
            batch_size=config.batch_size,
            shuffle=True,
            seed=seed,
            workers=config.workers,
            mixed=True,
            done=set(range(len(source))) - set(shards),
            skip=taken.skip,
            only=wanted,
        )

    wanted = Wanted(frozenset(asked.ids))
    return Streamed(
        open_shards, taken.trained, pair.tokenize, config.batch_size, config.seed, wanted
    )


def _check_any(name: str, taken: _Taken) -> None:
    """Refuse a data set of which nothing can be used."""
    census = taken.census
    if census.kept == 0:
        reasons = [f"{reason}: {count:,}" for reason, count in census.dropped.items()]
        reasons += [f"{plain(own.name)} {own.fault}" for own in census.faults]
        raise DataError(
            f"none of the {census.total:,} pairs of {name} can be used"
            + (f" ({listed(reasons)})." if reasons else ".")
        )


def _check_counts(
    config: ClipConfig, asked: Trusted, taken: _Taken, trusted: Held | None, other: _Taken | None
) -> None:
    """Refuse what cannot be trained on, before anything is."""
    if asked.ids and taken.unknown:
        raise DataError(
            f"trusted names {len(taken.unknown):,} ids that are not among the {taken.census.kept:,}"
            f" usable pairs of {config.data}, such as {taken.unknown[0]!r}."
        )
    chosen = 0 if trusted is None else len(trusted)
    if config.trusted is not None and chosen < 2:
        raise DataError(
            f"trusted={_told(config)} covers {chosen} pairs of {asked.data or config.data}; "
            "expected 2 or more to train the reference on."
        )
    left = taken.census.kept - (0 if other is not None else chosen)
    if left < config.batch_size:
        raise DataError(
            f"{config.data} leaves {left:,} pairs to train on, fewer than one batch of "
            f"{config.batch_size}. Give more, or a smaller batch_size."
        )


def _told(config: ClipConfig) -> str:
    return repr(config.trusted) if isinstance(config.trusted, str) else "the list of ids"


def _digests(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each id."""
    whole = b"".join(blake2b(own.encode(), digest_size=8).digest() for own in ids)
    return np.frombuffer(whole, dtype="<u8").astype(np.uint64)
