"""Pairs to train on: held in memory where they fit, else read anew for every epoch.

    held       order_e = permutation(seed, e), cut into ⌈n/b⌉ batches of nearly one size
    streamed   shards_e = permutation(seed, e), in rounds of a few shards, mixed within each

A contrastive loss depends on how many rivals a pair has, so no batch is much smaller than others.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.run.clip.train import Round

ROUND = 200_000  # pairs, about: what is lost at most when a training is cut off

Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


class Open(Protocol):
    """Opens a reader of some shards, in mixed order."""

    def __call__(self, shards: Collection[int], seed: int, wanted: "Wanted") -> Iterable[PairBatch]:
        """Return batches of the pairs that are wanted."""


class Kept(Protocol):
    """Ids that can be asked for one by one."""

    def __contains__(self, sample_id: Any, /) -> bool: ...


@dataclass(frozen=True)
class Wanted:
    """Says which pairs are trained on; it can be pickled for workers.

    Args:
        left_out: ids of pairs that are not.
        kept: where given, ids of all that are.

    Example:
        >>> "a" in Wanted({"b"}), "b" in Wanted({"b"}), "a" in Wanted(kept={"b"})
        (True, False, False)
    """

    left_out: Kept = ()
    kept: Kept | None = None

    def __contains__(self, sample_id: object) -> bool:
        return sample_id not in self.left_out and (self.kept is None or sample_id in self.kept)


@dataclass(frozen=True, eq=False)
class Held:
    """Pairs in memory, ready for a model.

    Args:
        images: ``[n, 3, s, s]``.
        captions: ``[n]``, all captions of each picture; one is drawn for each visit.
        ids: ``[n]`` sample ids.
        tokenize: captions to tokens.
        batch_size: the most pairs in a batch.
        seed: fixes the order of every epoch.
    """

    images: Tensor
    captions: Sequence[Sequence[str]]
    ids: Sequence[str]
    tokenize: Tokenize
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def tokens(self) -> Mapping[str, Tensor]:
        """``[m, t]`` each, of all captions, one picture's after another's."""
        return self.tokenize([text for own in self.captions for text in own])

    @cached_property
    def counts(self) -> Tensor:
        """``[n]``, how many captions each picture has."""
        return torch.tensor([len(own) for own in self.captions])

    def steps(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return parts(len(self), self.batch_size)

    def rounds(self, epoch: int) -> Iterator[Round]:
        """Yield the one round that an epoch is."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        drawn = self.drawn(epoch)
        parts = order.tensor_split(self.steps(epoch))
        yield Round(0, (self.batch(rows, drawn) for rows in parts))

    def drawn(self, epoch: int) -> Tensor:
        """Draw a caption of each picture for one epoch, ``[n]``."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, 3))
        return (torch.rand(len(self), generator=generator) * self.counts).long()

    def batch(self, rows: Tensor, drawn: Tensor | None = None) -> PairBatch:
        """Return some rows ``[b]``, each with the caption ``[n]`` that was drawn, or its first."""
        own = torch.zeros_like(rows) if drawn is None else drawn[rows]
        at = (self.counts.cumsum(0) - self.counts)[rows] + own  # rows of the tokens
        picked = rows.tolist()
        return PairBatch(
            self.images[rows],
            {name: tokens[at] for name, tokens in self.tokens.items()},
            [self.ids[row] for row in picked],
            [self.captions[row][k] for row, k in zip(picked, own.tolist(), strict=True)],
        )

    def take(self, rows: Sequence[int]) -> "Held":
        """Return some rows as a pool of their own."""
        return replace(
            self,
            images=self.images[torch.tensor(rows, dtype=torch.int64)],
            captions=[self.captions[row] for row in rows],
            ids=[self.ids[row] for row in rows],
        )

    def only(self, kept: Kept) -> "Held":
        """Return the pairs whose id is among the kept ones."""
        return self.take([row for row, sample_id in enumerate(self.ids) if sample_id in kept])


@dataclass(frozen=True, eq=False)
class Streamed:
    """Pairs that are read anew for every epoch.

    Args:
        open: opens a reader of some shards.
        counts: how many pairs of each shard can be read and are to be trained on.
        tokenize: captions to tokens.
        batch_size: the most pairs in a batch.
        seed: fixes the order of every epoch.
        wanted: which pairs are.
    """

    open: Open
    counts: Mapping[int, int]
    tokenize: Tokenize
    batch_size: int
    seed: int
    wanted: Wanted

    def __len__(self) -> int:
        return sum(self.counts.values())

    def steps(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return sum(
            parts(sum(self.counts[shard] for shard in shards), self.batch_size)
            for shards in self._groups(epoch)
        )

    def rounds(self, epoch: int) -> Iterator[Round]:
        """Yield a round for every few shards."""
        for number, shards in enumerate(self._groups(epoch)):
            yield Round(number, self._batches(shards, seed_of(self.seed, epoch, number)))

    def only(self, kept: Kept) -> "Streamed":
        """Return the pairs whose id is among the kept ones."""
        return replace(self, wanted=replace(self.wanted, kept=kept))

    def _batches(self, shards: Collection[int], seed: int) -> Iterator[PairBatch]:
        """Open the shards only when the round has come."""
        read = self.open(shards, seed, self.wanted)
        yield from rebatched(read, self.batch_size, self.tokenize)

    def _groups(self, epoch: int) -> list[list[int]]:
        """Divide the shards, in an order of the epoch's own, into rounds."""
        shards = sorted(shard for shard, count in self.counts.items() if count)
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        groups: list[list[int]] = [[]]
        held = 0
        for place in torch.randperm(len(shards), generator=generator).tolist():
            if groups[-1] and held + self.counts[shards[place]] > ROUND:
                groups.append([])
                held = 0
            groups[-1].append(shards[place])
            held += self.counts[shards[place]]
        if len(groups) > 1 and held < self.batch_size:  # too few to be each other's rivals
            few = groups.pop()
            groups[-1] += few
        return groups


def parts(n: int, size: int) -> int:
    """Return how many batches n pairs make: ⌈n/size⌉, but none of a single pair, without a rival.

    Example:
        >>> parts(65, 64), parts(3, 2), parts(1, 2)
        (2, 1, 0)
    """
    return min(ceil(n / size), n // 2)


def rebatched(batches: Iterable[PairBatch], size: int, tokenize: Tokenize) -> Iterator[PairBatch]:
    """Fill batches up; the last two share their pairs evenly.

    Args:
        batches: of any sizes.
        size: the most pairs in a batch.
        tokenize: captions to tokens, where those of two batches are of different lengths.

    Yields:
        As many batches as :func:`parts` says.
    """
    rows: list[tuple[Tensor, dict[str, Tensor], Any, str]] = []
    for batch in batches:
        for place, sample_id in enumerate(batch.ids):
            tokens = {name: own[place] for name, own in batch.tokens.items()}
            rows.append((batch.images[place], tokens, sample_id, batch.texts[place]))
        while len(rows) > 2 * size:
            yield _stacked(rows[:size], tokenize)
            del rows[:size]
    count = parts(len(rows), size)
    for part in range(count):
        own = rows[part * len(rows) // count : (part + 1) * len(rows) // count]
        yield _stacked(own, tokenize)


def _stacked(
    rows: Sequence[tuple[Tensor, dict[str, Tensor], Any, str]], tokenize: Tokenize
) -> PairBatch:
    images, tokens, ids, texts = zip(*rows, strict=True)
    alike = all(
        own[name].shape == first.shape for name, first in tokens[0].items() for own in tokens
    )
    stacked = (
        {name: torch.stack([own[name] for own in tokens]) for name in tokens[0]}
        if alike
        else tokenize(texts)
    )
    return PairBatch(torch.stack(images), stacked, list(ids), list(texts))


def seed_of(*numbers: int) -> int:
    """Make one seed of several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed
