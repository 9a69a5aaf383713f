"""Stage 2 as relations: what is computed over all visits and all samples, as Ibis expressions.

    visits ── survey ──────────► who scored when, and the grid of each scorer and epoch
           ── GROUP BY sample ─► (of a log that says so) who has samples that no one else has
           ── bins ────────────► one histogram of each scorer and epoch   → rule → threshold
           ── GROUP BY sample ─► samples: mean score, and the votes in the bits of one integer
    samples ── bins, tallies ──► a histogram, or vote patterns and counts → rule or label model
            ── JOIN what they say, ORDER BY sample_id ──► the selection

The visits are read three times and grouped by sample once, whatever the rule; both once more where
a training overtook its reference. What comes back to
Python is small: histograms and patterns. What goes in again are small tables to join.

A voter is one scorer at one epoch, or a selection from elsewhere. Voter v sets bit v where it voted
at all and bit 31 + v where it voted to keep: up to 31 of them fit one integer, more are counted by
group. Ids, names and thresholds come in as columns and bound literals, never as text of a query.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ibis

from gradmimic.curate.histogram import Grid, bin_of, is_number, level_of

if TYPE_CHECKING:
    import ibis.expr.types as ir

Key = Callable[["ir.Column"], "ir.Column"]
MOST_CODED = 31  # voters in one integer: a bit each for having voted and for the vote
_WORD = 62  # visits in one integer where only having voted is of interest


@ibis.udf.agg.builtin  # type: ignore[untyped-decorator]
def bit_or(value: int, where: bool = True) -> int:  # type: ignore[empty-body]
    """Return the bits that are set in any row; Ibis's own is missing for Spark."""


# As int8, as DuckDB has it: declared as int64 no cast would be written, and sums overflow at 127.
@ibis.udf.scalar.builtin(signature=(("int64",), "int8"))  # type: ignore[untyped-decorator]
def bit_count(value: int) -> int:  # type: ignore[empty-body]
    """Return how many bits are set."""


class Group(NamedTuple):
    """Voters that are taken together where there are too many for one integer.

    Attributes:
        first: number of its first voter.
        size: how many they are.
    """

    first: int
    size: int

    @property
    def mask(self) -> int:
        """The bits of its voters."""
        return ((1 << self.size) - 1) << self.first


def numbered(rows: "ir.Table") -> "ir.Table":
    """Number each sample's visits by their steps where the log does not know the epoch."""
    visits = ibis.window(group_by=[rows.scorer, rows.canary, rows.sample_id], order_by=rows.step)
    return rows.mutate(epoch=ibis.coalesce(rows.epoch, ibis.dense_rank().over(visits)))


def survey(rows: "ir.Table") -> "ir.Table":
    """Count the visits by scorer, epoch, kind of canary and level of what the rule judges."""
    level = _unfit(rows.x).ifelse(ibis.null("int32"), level_of(rows.x))
    return rows.group_by("scorer", "epoch", "canary", bin=level).agg(
        rows=rows.count(),
        low=rows.x.min(),
        high=rows.x.max(),
        step=rows.step.min(),
        not_score=_unfit(rows.score).sum(),
        not_x=_unfit(rows.x).sum(),
    )


def broken(rows: "ir.Table", name: str) -> "ir.Table":
    """Return the first visit whose number is not finite."""
    bad = rows.filter(_unfit(rows[name]))
    return bad.order_by("epoch", "step", "sample_id").limit(1)


def placed(rows: "ir.Table", voters: "ir.Table") -> "ir.Table":
    """Give each visit its voter's columns; visits of nobody are left out."""
    return rows.join(voters, ["scorer", "epoch"])


def only_doubtful(rows: "ir.Table") -> "ir.Table":
    """Count, by the first voter that has them, the samples that doubtful voters alone have.

    Args:
        rows: placed visits of one scorer's samples, with ``doubtful`` of each voter.
    """
    found = rows.group_by("sample_id").agg(sure=(~rows.doubtful).sum(), voter=rows.voter.min())
    alone = found.filter(found.sure == 0)
    return alone.group_by("voter").agg(rows=alone.count())


def visit_bins(rows: "ir.Table", with_losses: bool) -> "ir.Table":
    """Count placed visits by voter, kind of canary and bin, perhaps with their mean loss."""
    losses = {"loss": rows.loss.mean()} if with_losses else {}
    return rows.group_by("voter", "canary", bin=bin_of(rows.x, rows.center, rows.scale)).agg(
        rows=rows.count(), low=rows.x.min(), high=rows.x.max(), **losses
    )


def mean_levels(means: "ir.Table") -> "ir.Table":
    """Count mean values by level, to place a grid."""
    return means.group_by(bin=level_of(means.x)).agg(
        rows=means.count(), low=means.x.min(), high=means.x.max()
    )


def mean_bins(means: "ir.Table", keys: Sequence[str], grid: Grid) -> "ir.Table":
    """Count mean values by other columns and bin."""
    return means.group_by(*keys, bin=bin_of(means.x, *grid)).agg(
        rows=means.count(), low=means.x.min(), high=means.x.max()
    )


def with_bin(means: "ir.Table", grid: Grid) -> "ir.Table":
    """Give each mean value its bin."""
    return means.mutate(bin=bin_of(means.x, *grid))


def canary_means(key: Key, rows: "ir.Table", groups: Sequence[Group] = ()) -> "ir.Table":
    """Average each canary over its visits, in all as ``x`` and by group as ``mean_g``."""
    means = {
        f"mean_{number}": rows.score.mean(where=_inside(rows.voter, group))
        for number, group in enumerate(groups)
    }
    return rows.group_by("canary", key=key(rows.sample_id)).agg(x=rows.x.mean(), **means)


def samples(
    key: Key,
    rows: "ir.Table",
    groups: Sequence[Group],
    *,
    with_x: bool,
    coded: bool,
    each: bool = False,
) -> "ir.Table":
    """Bring the visits of each sample together.

    Args:
        key: makes of ids what is cheapest to group by.
        rows: placed visits of samples, with the threshold of each voter.
        groups: the voters of each scorer; the first scorer's score is averaged.
        with_x: whether the rule judges means, of something else than the score.
        coded: whether all voters are to share one integer.
        each: whether to average every scorer's scores.

    Returns:
        ``key``, ``score``, perhaps ``x``; perhaps ``mean_g`` by group, null where it did not visit
        the sample; ``visits``; and ``pattern``, the votes in one integer,
        or by group ``ayes_g`` and ``cast_g``.
    """
    vote = rows.x >= rows.threshold
    of_first = rows.voter < groups[0].size if len(groups) > 1 else None
    sums = {"sum_score": rows.score.sum(where=of_first)}
    if with_x:
        sums["sum_x"] = rows.x.sum()
    if each:
        for number, group in enumerate(groups):
            sums[f"mean_{number}"] = rows.score.sum(where=_inside(rows.voter, group))
    if coded:
        code = ibis.literal(1, "int64") + vote.ifelse(ibis.literal(1 << MOST_CODED, "int64"), 0)
        sums["pattern"] = bit_or(code << rows.voter)
    else:
        for number, group in enumerate(groups):
            inside = _inside(rows.voter, group)
            sums[f"ayes_{number}"] = (inside & vote).sum()
            for word in range(0, group.size, _WORD):
                place = rows.voter - group.first - word
                here = inside & (place >= 0) & (place < _WORD)
                # Cast, since to Spark a bare 1 has 32 bits, and 1 << 32 is 1 again.
                bit = ibis.literal(1, "int8").cast("int64") << here.ifelse(place, 0)
                sums[f"word_{number}_{word}"] = bit_or(bit, where=here)
    found = rows.group_by(key=key(rows.sample_id)).agg(**sums)
    if coded:
        cast = [bit_count(found.pattern & group.mask).cast("int64") for group in groups]
        votes = {"pattern": found.pattern}
    else:
        cast = [
            sum(
                bit_count(found[f"word_{number}_{word}"].fill_null(0)).cast("int64")
                for word in range(0, group.size, _WORD)
            )
            for number, group in enumerate(groups)
        ]
        votes = {f"ayes_{number}": found[f"ayes_{number}"] for number in range(len(groups))}
        votes |= {f"cast_{number}": count for number, count in enumerate(cast)}
    means = {"x": found.sum_x / cast[0]} if with_x else {}
    if each:
        means |= {f"mean_{j}": found[f"mean_{j}"] / own.nullif(0) for j, own in enumerate(cast)}
    return found.select("key", score=found.sum_score / cast[0], visits=sum(cast), **means, **votes)


def with_voter(samples: "ir.Table", other: "ir.Table", number: int, coded: bool) -> "ir.Table":
    """Add the votes of a selection from elsewhere; samples that it lacks get none."""
    both = samples.left_join(other, samples.key == other.other_key)
    voted, keep = both.other_keep.notnull(), both.other_keep.fill_null(False)
    if coded:
        bits = ibis.literal(1 << number, "int64") + keep.ifelse(
            ibis.literal(1 << (MOST_CODED + number), "int64"), 0
        )
        votes = {"pattern": both.pattern | voted.ifelse(bits, 0)}
    else:
        votes = {f"ayes_{number}": keep.cast("int64"), f"cast_{number}": voted.cast("int64")}
    return both.mutate(**votes).drop("other_key", "other_keep")


def with_tallies(samples: "ir.Table", groups: Sequence[Group]) -> "ir.Table":
    """Count ayes and votes of each group, ``ayes_g`` and ``cast_g``, and ``ayes``, ``cast``."""
    tallies = {}
    for number, group in enumerate(groups):
        if "pattern" in samples.columns:
            ayes = bit_count((samples.pattern >> MOST_CODED) & group.mask)
            cast = bit_count(samples.pattern & group.mask)
        else:
            ayes, cast = samples[f"ayes_{number}"], samples[f"cast_{number}"]
        tallies[f"ayes_{number}"] = ayes.cast("int64")
        tallies[f"cast_{number}"] = cast.cast("int64")
    both = {
        name: sum(tallies[f"{name}_{number}"] for number in range(len(groups)))
        for name in ("ayes", "cast")
    }
    return samples.mutate(**tallies, **both)


def patterns(samples: "ir.Table", keys: Sequence[str]) -> "ir.Table":
    """Count the samples that were voted on alike, in one order: EM adds them up."""
    return samples.group_by(list(keys)).agg(rows=samples.count()).order_by(list(keys))


def checks(samples: "ir.Table") -> "ir.Table":
    """Count visits, and ids that have no key."""
    return samples.agg(visits=samples.visits.sum(), without=samples.key.isnull().sum())


def repeated(rows: "ir.Table") -> "ir.Table":
    """Return the samples that a scorer saw more than once in an epoch."""
    counted = rows.group_by("scorer", "epoch", "sample_id").agg(times=rows.count())
    return counted.filter(counted.times > 1)


def judged(
    samples: "ir.Table", said: "ir.Table", keys: Sequence[str], more: Sequence[str] = ()
) -> "ir.Table":
    """Join what was said of bins or patterns to the samples.

    Args:
        samples: what ``samples`` returned, with the columns ``keys`` and ``more``.
        said: ``keys``, ``keep``, ``p_clean``, and ``reason``, a position among the reasons.
        keys: the columns to join by; none where the same is said of all.
        more: what to take along.
    """
    both = samples.join(said, list(keys)) if keys else samples.cross_join(said)
    return both.select("key", "keep", "p_clean", "score", "visits", "reason", *more)


def with_means(
    judged: "ir.Table", found: "ir.Table", names: Mapping[str, str], key: Key
) -> "ir.Table":
    """Add other scorers' means to the samples, null where they have none.

    Args:
        judged: what ``judged`` returned.
        found: what ``samples`` returned for those scorers.
        names: what to call each of its columns.
        key: makes its keys those of ``judged``, if they are of another type.
    """
    same = found.key.type() == judged.key.type()
    means = {name: found[column] for name, column in names.items()}
    other = found.select(other_key=found.key if same else key(found.key), **means)
    return judged.left_join(other, judged.key == other.other_key).drop("other_key")


def in_order(text: Key, judged: "ir.Table", reasons: Sequence[str]) -> "ir.Table":
    """Return a selection: sorted by id, with the texts of the reasons.

    Args:
        text: turns keys into ids.
        judged: what ``judged`` returned.
        reasons: the texts.
    """
    narrow = judged.select("key", "keep", "p_clean", "score", "visits", "reason").order_by("key")
    # A view, so that the sort moves keys and numbers, and texts are made after it.
    narrow = narrow.view()
    return narrow.select(
        sample_id=text(narrow.key),
        keep=narrow.keep,
        p_clean=narrow.p_clean,
        score=narrow.score,
        visits=narrow.visits.cast("int64"),
        reason=ibis.array(list(reasons))[narrow.reason],
    )


def _inside(voter: "ir.IntegerValue", group: Group) -> "ir.BooleanValue":
    """Tell whether a voter belongs to a group."""
    return (voter >= group.first) & (voter < group.first + group.size)


def _unfit(x: "ir.NumericValue") -> "ir.BooleanValue":
    """Tell whether a value is null or no finite number."""
    return x.isnull() | ~is_number(x)
