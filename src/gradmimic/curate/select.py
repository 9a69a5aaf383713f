"""Stage 2: from all visits of all samples to one decision per sample.

    mean       p_clean_i = rule(x̄)_i             x̄_i = (1/|T_i|) Σ_{t ∈ T_i} x_{i,t}
    majority   p_clean_i = (1/|T_i|) Σ_{t ∈ T_i} vote_{i,t},  vote_{i,t} = [rule(x_{·,t})_i ≥ ½]

and keep_i = [p_clean_i ≥ ½]. T_i are the visits of sample i: where it was not visited it abstains.
x is the score, or for the rule ``one_over_b`` the relative weight w·b. A tie among the votes keeps
the sample, since removing takes evidence against it.
"""

import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.selection import Selection
from gradmimic.curate.votes import RULES, Votes
from gradmimic.errors import ConfigError, LogError
from gradmimic.log import ScoreLog
from gradmimic.log_reader import LogReader

Rule = Literal["one_over_b", "two_means", "mixture"]
Aggregate = Literal["mean", "majority"]

_TYPES = {
    "epoch": pa.int64(),
    "step": pa.int64(),
    "scorer": pa.string(),
    "score": pa.float64(),
    "weight": pa.float64(),
    "batch_size": pa.float64(),
    "canary": pa.bool_(),
}
_STATISTIC = {
    "one_over_b": ("relative weight", "the uniform share"),
    "two_means": ("score", "the two-means boundary"),
    "mixture": ("score", "the mixture's boundary"),
}
_NO_GROUPS = "do not form two groups, so nothing speaks against this sample"


def select(
    log: LogReader | pa.Table | str | os.PathLike[str],
    rule: Rule = "mixture",
    *,
    aggregate: Aggregate = "mean",
    scorer: str = "mimic",
) -> Selection:
    """Decide for every logged sample whether to keep it; canaries are left out.

    keep_i = [p_clean_i ≥ ½], with p_clean from the rule applied to the means over the visits
    (``aggregate="mean"``), or the share of the visits whose vote is to keep (``"majority"``).

    Args:
        log: a ``ScoreLog``, its folder, or a table with its columns, e.g. from
            ``log.scan(filter=…)`` to use some epochs only.
        rule: ``"mixture"``, two Gaussians, adapts to the share of bad samples; ``"two_means"``
            splits at the widest divide; ``"one_over_b"``, the paper's, rejects about 40 % of any
            data.
        aggregate: ``"mean"``, which loses less, or ``"majority"``, the paper's. By majority,
            ``mixture`` and ``two_means`` are fitted to each epoch.
        scorer: which scorer's rows to use.

    Returns:
        One row per sample, sorted by id; ``p_clean`` in [0, 1], higher is cleaner. It is the
        mixture's posterior, or 0 or 1 for the hard rules, or the share of keep votes. Where the
        scores cannot form two groups everything is kept, and the reasons say so.

    Raises:
        ConfigError: there is no such rule or aggregate.
        LogError: the log is empty or damaged, has no such scorer, holds a visit twice, or a number
            that is not finite.

    Source:
        arXiv 2501.06708, the filtering stage: ``rule="one_over_b", aggregate="majority"``.

    Example:
        >>> import tempfile
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     log.append(
        ...         ["a", "b", "c", "d"], [1.0, -0.9, 1.2, -1.1], [0.4, 0.1, 0.4, 0.1], [0.0] * 4,
        ...         epoch=0, step=0,
        ...     )
        ...     select(log, "two_means").kept.tolist()
        ['a', 'c']
    """
    _check_choice("rule", rule, list(RULES))
    _check_choice("aggregate", aggregate, ["mean", "majority"])
    visits = _visits(log, scorer)
    visits = visits.append_column("statistic", _statistic(visits, rule))
    _check_finite(visits)
    _check_visited_once(visits)
    decide = _by_mean if aggregate == "mean" else _by_majority
    return Selection(decide(visits, rule))


def _by_mean(visits: pa.Table, rule: Rule) -> pa.Table:
    """Average over the visits, then vote once."""
    samples = _per_sample(visits, "statistic")
    values = samples["statistic_mean"].to_numpy()  # [n]
    votes = RULES[rule](values)
    keep = votes.p_keep >= 0.5
    name, boundary = _STATISTIC[rule]
    if votes.evidence:
        limit = f"{boundary} {votes.boundary:.4g}"
        reasons = [
            f"kept: mean {name} {value:.4g} is not below {limit}"
            if kept
            else f"removed: mean {name} {value:.4g} is below {limit}"
            for value, kept in zip(values.tolist(), keep.tolist(), strict=True)
        ]
    else:
        reasons = [f"kept: the mean scores {_NO_GROUPS}"] * len(values)
    return _decisions(samples, votes.p_keep, keep, reasons)


def _by_majority(visits: pa.Table, rule: Rule) -> pa.Table:
    """Vote at every visit, then count."""
    values, epochs = visits["statistic"].to_numpy(), visits["epoch"].to_numpy()
    cast = np.empty(len(values))  # one vote per visit, 0 or 1
    # w·b compares a sample with its own batch; the other rules compare it with its epoch.
    groups = [np.arange(len(values))] if rule == "one_over_b" else _positions(epochs)
    told_apart = False
    for rows in groups:
        votes: Votes = RULES[rule](values[rows])
        cast[rows] = votes.p_keep >= 0.5
        told_apart |= votes.evidence
    samples = _per_sample(visits.append_column("vote", pa.array(cast)), "vote")
    share = samples["vote_mean"].to_numpy()  # [n]
    keep = share >= 0.5
    if told_apart:
        counts = samples["score_count"].to_numpy()
        for_keep = np.rint(share * counts).astype(np.int64)
        reasons = [
            f"{'kept' if kept else 'removed'}: {ayes} of {count} visits voted to keep"
            + (", a tie" if 2 * ayes == count else "")
            for kept, ayes, count in zip(
                keep.tolist(), for_keep.tolist(), counts.tolist(), strict=True
            )
        ]
    else:
        reasons = [f"kept: at every visit the scores {_NO_GROUPS}"] * len(keep)
    return _decisions(samples, share, keep, reasons)


def _visits(log: LogReader | pa.Table | str | os.PathLike[str], scorer: str) -> pa.Table:
    """Read one scorer's visits, canaries left out, in known types."""
    if isinstance(log, pa.Table):
        rows, where = log, "the table"
    else:
        reader = log if isinstance(log, LogReader) else ScoreLog.read(log)
        rows, where = reader.scan(["sample_id", *_TYPES]), f"the log at {reader.path}"
    if missing := [name for name in ["sample_id", *_TYPES] if name not in rows.column_names]:
        raise LogError(
            f"{where} lacks the columns {missing}. Pass a ScoreLog, or a table from log.scan()."
        )
    if rows.num_rows == 0:
        raise LogError(f"{where} is empty. Train with this log first, then select.")
    rows = _cast(rows, where)
    scorers = sorted(pc.unique(rows["scorer"]).to_pylist())
    if scorer not in scorers:
        raise LogError(f"{where} has no scorer {scorer!r}; it has {scorers}.")
    visits = rows.filter((pc.field("scorer") == scorer) & ~pc.field("canary"))
    if visits.num_rows == 0:
        raise LogError(
            f"{where} holds only canaries for scorer {scorer!r}. There is no sample to decide on."
        )
    return _numbered(visits)


def _numbered(visits: pa.Table) -> pa.Table:
    """Number each sample's visits by their steps where the log does not know the epoch."""
    if visits["epoch"].null_count == 0:
        return visits
    sample = visits["sample_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    step = visits["step"].to_numpy()
    order = np.lexsort((step, sample))
    sample, step = sample[order], step[order]
    starts = np.r_[True, sample[1:] != sample[:-1]]
    later = np.r_[False, (sample[1:] == sample[:-1]) & (step[1:] != step[:-1])]
    count = np.cumsum(later)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = count - np.maximum.accumulate(np.where(starts, count, 0))
    epoch = pc.coalesce(visits["epoch"], pa.array(number))
    return visits.set_column(visits.column_names.index("epoch"), "epoch", epoch)


def _cast(rows: pa.Table, where: str) -> pa.Table:
    """Bring the columns to the types that the rules compute in, refusing nulls."""
    ids = rows["sample_id"]
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    id_type = pa.int64() if pa.types.is_integer(ids.type) else pa.string()
    try:
        columns = {"sample_id": ids.cast(id_type)}
        columns |= {name: rows[name].cast(kind) for name, kind in _TYPES.items()}
    except pa.ArrowException as error:
        raise LogError(f"{where} has columns of other types than a score log: {error}.") from error
    nulls = [name for name, column in columns.items() if column.null_count and name != "epoch"]
    if nulls:
        raise LogError(f"{where} has null values in {nulls}. A score log has none: remove them.")
    return pa.table(columns)


def _statistic(visits: pa.Table, rule: Rule) -> pa.ChunkedArray:
    """Return what the rule judges: w·b, or the score."""
    if rule == "one_over_b":
        return pc.multiply(visits["weight"], visits["batch_size"])
    return visits["score"]


def _per_sample(visits: pa.Table, value: str) -> pa.Table:
    """Average over the visits of each sample, sorted by id; one thread, so sums repeat exactly."""
    grouped = visits.group_by("sample_id", use_threads=False)
    wanted = {("score", "mean"), ("score", "count"), (value, "mean")}
    return grouped.aggregate(sorted(wanted)).sort_by("sample_id")


def _positions(epochs: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return the row numbers of each epoch."""
    return [np.flatnonzero(epochs == epoch) for epoch in np.unique(epochs)]


def _decisions(
    samples: pa.Table, p_clean: npt.NDArray[np.float64], keep: Any, reasons: list[str]
) -> pa.Table:
    """Put the columns of a selection together."""
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "keep": keep,
            "p_clean": p_clean,
            "score": samples["score_mean"],
            "visits": samples["score_count"],
            "reason": reasons,
        }
    )


def _check_choice(name: str, value: str, choices: list[str]) -> None:
    """Refuse an unknown option, naming those there are."""
    if value not in choices:
        raise ConfigError(f"there is no {name} {value!r}; choose one of {choices}.")


def _check_finite(visits: pa.Table) -> None:
    """Refuse NaN and infinities, naming the first."""
    for name in ("score", "statistic"):
        broken = visits.filter(pc.invert(pc.is_finite(visits[name])))
        if broken.num_rows:
            row = broken.slice(0, 1).to_pylist()[0]
            column = "score" if name == "score" else "weight"
            raise LogError(
                f"{broken.num_rows} rows have a {column} that is not finite, the first is sample "
                f"{row['sample_id']!r} in epoch {row['epoch']}, step {row['step']}. Remove these "
                "rows, or score those samples again."
            )


def _check_visited_once(visits: pa.Table) -> None:
    """Refuse a sample that comes twice in one epoch, naming a few."""
    grouped = visits.group_by(["epoch", "sample_id"], use_threads=False)
    counts = grouped.aggregate([("step", "count")])
    repeated = counts.filter(pc.field("step_count") > 1)
    if repeated.num_rows == 0:
        return
    first = repeated.sort_by([("epoch", "ascending"), ("sample_id", "ascending")]).slice(0, 3)
    named = []
    for row in first.to_pylist():
        same = (pc.field("epoch") == row["epoch"]) & (pc.field("sample_id") == row["sample_id"])
        steps = sorted(visits.filter(same)["step"].to_pylist())
        named.append(f"{row['sample_id']!r} in epoch {row['epoch']} at steps {steps}")
    raise LogError(
        f"samples were visited more than once in an epoch, {repeated.num_rows} times in all: "
        f"{'; '.join(named)}. "
        "A run that resumed from an earlier checkpoint logs steps again, and a sampler with "
        "replacement draws samples again: pass only the rows that count, as a table from "
        "log.scan(filter=…)."
    )
