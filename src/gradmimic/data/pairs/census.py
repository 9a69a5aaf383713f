"""The count of a data set: what was read of each shard, and what became of it.

    seen = kept + Σ dropped        total = seen + lost

A sample is lost where its shard could not be read to its end; how many are, is known only where
something beside the shard tells how many it should hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gradmimic.data.pairs.reasons import MAX_NAME
from gradmimic.data.pairs.sample import End


@dataclass
class ShardCensus:
    """The count of one shard.

    Args:
        name: the shard's.
        seen: samples read.
        kept: of them, handed on in a batch.
        dropped: of them, by the reason they were left out.
        first: for each reason, the name of the first such sample in the shard.
        ignored: files that belong to no sample.
        ended: whether the shard was read as far as it can be.
        fault: why that was not to its end, empty where it was.
        detail: what the library said of it.
        total: how many samples the shard should hold, where that is known.
    """

    name: str
    seen: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    ignored: int = 0
    ended: bool = False
    fault: str = ""
    detail: str = ""
    total: int | None = None

    @property
    def lost(self) -> int | None:
        """How many samples lie behind the place where reading failed; None where nobody knows."""
        if not self.fault:
            return 0
        return None if self.total is None else max(0, self.total - self.seen)

    @property
    def done(self) -> bool:
        """Whether every sample of the shard was handed on or left out."""
        return self.ended and self.seen == self.kept + sum(self.dropped.values())

    def drop(self, key: str, reason: str) -> None:
        """Count a sample that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.first.setdefault(reason, key[:MAX_NAME])

    def end(self, item: End) -> None:
        """Take what the shard's end tells."""
        self.ended, self.ignored = True, self.ignored + item.ignored
        self.fault, self.detail, self.total = item.fault, item.detail, item.total

    def add(self, later: ShardCensus) -> None:
        """Add what was read of the same shard later."""
        self.seen, self.kept = self.seen + later.seen, self.kept + later.kept
        self.ignored += later.ignored
        for reason, count in later.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.first = later.first | self.first
        if later.ended:
            self.ended, self.fault, self.detail = True, later.fault, later.detail
            self.total = later.total


@dataclass(frozen=True)
class Row:
    """A line of the table that a run ends with; ``example`` may hold any text, escape it."""

    what: str
    count: int | None
    example: str = ""


@dataclass
class Census:
    """The count of a data set, or of some of its shards.

    Args:
        shards: the count of each, by its number.

    Example:
        >>> one = Census({0: ShardCensus("00000", seen=3, kept=2, dropped={"no picture": 1})})
        >>> two = Census({1: ShardCensus("00001", seen=5, kept=5)})
        >>> both = one + two
        >>> both.kept, both.dropped, both.seen
        (7, {'no picture': 1}, 8)
    """

    shards: dict[int, ShardCensus] = field(default_factory=dict)

    def __add__(self, other: Census) -> Census:
        both = Census()
        both.add(self.shards)
        both.add(other.shards)
        return both

    def add(self, shards: Mapping[int, ShardCensus]) -> None:
        """Count more of the data, in place."""
        for number, own in shards.items():
            self.shards.setdefault(number, ShardCensus(own.name)).add(own)

    @property
    def kept(self) -> int:
        """Samples handed on."""
        return sum(own.kept for own in self.shards.values())

    @property
    def seen(self) -> int:
        """Samples read."""
        return sum(own.seen for own in self.shards.values())

    @property
    def dropped(self) -> dict[str, int]:
        """Samples left out, by reason, the most frequent first."""
        counts: dict[str, int] = {}
        for own in self.shards.values():
            for reason, count in own.dropped.items():
                counts[reason] = counts.get(reason, 0) + count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def lost(self) -> int:
        """Samples that could not be read, as far as something tells how many."""
        return sum(own.lost or 0 for own in self.shards.values())

    @property
    def unknown(self) -> list[str]:
        """Shards of which an unknown number of samples is lost."""
        return [own.name for _, own in sorted(self.shards.items()) if own.lost is None]

    @property
    def faults(self) -> list[ShardCensus]:
        """Shards that could not be read to their end."""
        return [own for _, own in sorted(self.shards.items()) if own.fault]

    @property
    def ignored(self) -> int:
        """Files that belong to no sample."""
        return sum(own.ignored for own in self.shards.values())

    @property
    def total(self) -> int:
        """All samples that are known of: kept, dropped and lost."""
        return self.seen + self.lost

    @property
    def done(self) -> set[int]:
        """Shards of which every sample was handed on or left out."""
        return {number for number, own in self.shards.items() if own.done}

    def example(self, reason: str) -> str:
        """Name the first sample that was left out for a reason, control characters spelled out."""
        for _, own in sorted(self.shards.items()):
            if reason in own.first:
                return plain(f"{own.name}: {own.first[reason]}")
        return ""

    def rows(self, part: str = "shard") -> list[Row]:
        """Return the table that a run ends with; its counts add up to its last row.

        Args:
            part: what the data come in.
        """
        rows = [Row("kept", self.kept)]
        rows += [Row(reason, n, self.example(reason)) for reason, n in self.dropped.items()]
        for fault in dict.fromkeys(own.fault for own in self.faults):
            those = [own for own in self.faults if own.fault == fault]
            known = [own.lost for own in those if own.lost is not None]
            what = f"the {part} {fault} ({len(those)} of {len(self.shards)})"
            first = plain(f"{those[0].name}: {those[0].detail}")
            rows.append(Row(what, sum(known) if len(known) == len(those) else None, first))
        return [*rows, Row("total", self.total)]

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON holds it."""
        shards = {str(number): asdict(own) for number, own in sorted(self.shards.items())}
        return {
            "kept": self.kept,
            "dropped": self.dropped,
            "seen": self.seen,
            "lost": self.lost,
            "lost_unknown": self.unknown,
            "total": self.total,
            "shards": shards,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Census:
        """Read what ``to_dict`` returned."""
        return cls({int(n): ShardCensus(**own) for n, own in values["shards"].items()})

    @classmethod
    def sum(cls, parts: Iterable[Census]) -> Census:
        """Add up the counts of several processes."""
        total = cls()
        for part in parts:
            total.add(part.shards)
        return total


def plain(text: str, most: int = 120) -> str:
    r"""Spell out what a terminal would obey, and cut what is long.

    Example:
        >>> plain("a\x1b[2J")
        'a\\x1b[2J'
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
