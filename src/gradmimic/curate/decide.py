"""How a decision is made: rules judge histograms, label models judge patterns of votes.

    visits → histogram of each scorer and epoch → rule → threshold → votes → label model ┐
    visits → mean of each sample, or scorers combined → histogram → rule ────────────────┴► said

What is *said* is a small table: of each bin, or pattern of votes, whether to keep, how sure,
and why. Joined to the samples it is the selection, see ``gradmimic.curate.plan``, unless
conditions and rankings speak against some more, see ``gradmimic.curate.filters``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.curate import label_model
from gradmimic.curate.selection import Selection
from gradmimic.curate.votes import ROUNDING, RULES, BoolArray, FloatArray, Votes
from gradmimic.errors import ConfigError
from gradmimic.log_reader import LogReader

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from gradmimic.curate.backends import Engine
    from gradmimic.curate.canaries import Calibration
    from gradmimic.curate.filters import Filtered, Filters
    from gradmimic.curate.histogram import Histogram
    from gradmimic.curate.plan import Group
    from gradmimic.curate.seen import BinsSeen
    from gradmimic.curate.visits import Visits

Log: TypeAlias = LogReader | pa.Table | str | os.PathLike[str]
Rule = Literal["calibrated", "one_over_b", "two_means", "mixture", "none"]
Aggregate = Literal["mean", "majority", "one_coin", "dawid_skene", "stacked"]

_RULES = ("calibrated", *RULES, "none")
_ONCE = ("mean", "stacked")
_AGGREGATES = ("mean", "majority", "one_coin", "dawid_skene", "stacked")
_BOUNDARY = {
    "calibrated": ("score", "the canaries' threshold"),
    "one_over_b": ("relative weight", "the uniform share"),
    "two_means": ("score", "the two-means boundary"),
    "mixture": ("score", "the mixture's boundary"),
}
_NO_GROUPS = "do not form two groups, so nothing speaks against this sample"
_NO_CANARIES = "are no higher than the canaries', so nothing speaks against this sample"
_MOST_CELLS = 4_000_000  # of a matrix of vote patterns; beyond, votes are counted by scorer


class _Said(NamedTuple):
    """What is said of each bin, or of each pattern of votes."""

    keys: dict[str, npt.NDArray[Any]]  # columns [p] that the samples have too
    keep: BoolArray  # [p]
    p_clean: FloatArray  # [p]
    reasons: list[str]  # [p]


def decide(
    log: Log,
    rule: Rule | None,
    *,
    aggregate: Aggregate = "mean",
    scorer: str | Sequence[str] = "mimic",
    voters: Mapping[str, Selection] | None = None,
    filters: "Filters | None" = None,
    out: str | os.PathLike[str] | None = None,
    backend: Any = None,
    memory_limit: str | None = None,
    temp_folder: str | os.PathLike[str] | None = None,
) -> tuple[Selection, "Calibration | None"]:
    """Do what ``select`` does, and return what the canaries told beside it.

    Args: as of ``select``, and ``filters``, what has to hold beside the decision.

    Returns:
        The selection; and the calibration of the mean or combined scores, None for other rules
        than ``"calibrated"`` and where votes are counted.
    """
    scorers = [scorer] if isinstance(scorer, str) else list(dict.fromkeys(scorer))
    voters = dict(voters or {})
    if rule is None and aggregate in _ONCE and filters and (filters.top or filters.drop_bottom):
        rule = "none"  # a ranking is a rule of its own
    _check_choices(rule, aggregate, scorers, voters)
    # Here, and not above: whoever only reads selections need not wait for these to load.
    from gradmimic.curate import plan
    from gradmimic.curate.backends import connect
    from gradmimic.curate.visits import Visits

    with connect(backend, memory_limit, temp_folder) as engine:
        relative = rule == "one_over_b"
        edge = 1.0 - ROUNDING if relative else None
        visits = Visits(engine, log, scorers, relative=relative, edge=edge)
        notes: list[str] = []
        with visits.blaming_parts():
            chosen = _chosen_rule(rule, visits, aggregate)
            calibration = None
            if aggregate in _ONCE:
                samples, said, calibration = _at_once(visits, chosen, aggregate == "stacked", notes)
            else:
                samples, said = _by_votes(visits, chosen, aggregate, voters)
        reasons = list(dict.fromkeys(said.reasons))
        number = {reason: position for position, reason in enumerate(reasons)}
        columns = {
            **said.keys,
            "keep": said.keep,
            "p_clean": pa.array(said.p_clean, pa.float64(), from_pandas=True),  # NaN is null
            "reason": pa.array([number[reason] for reason in said.reasons], pa.int32()),
        }
        table = engine.table(pa.table(columns))
        means = [name for name in samples.columns if name.startswith("mean_")]
        judged = plan.judged(samples, table, list(said.keys), means)
        told = [reason + visits.note for reason in reasons]
        if filters:
            own = {scorers[0]: "score"} if aggregate != "stacked" else {}
            own |= {scorers[j]: name for j, name in enumerate(means)}
            judged, told, more = _filtered(engine, log, visits, judged, told, own, filters)
            notes += more
        rows = plan.in_order(engine.unpacked, judged, told)
        if out is None:
            return Selection(engine.fetch(rows), notes), calibration
        engine.write(rows, Path(out))
        return Selection.from_parquet(out, notes), calibration


def _filtered(
    engine: "Engine",
    log: Log,
    visits: "Visits",
    judged: "ir.Table",
    reasons: list[str],
    own: dict[str, str],
    filters: "Filters",
) -> "Filtered":
    """Apply conditions and rankings, having joined what they need of other scorers."""
    from gradmimic.curate import plan
    from gradmimic.curate.filters import apply, needed_scorers
    from gradmimic.curate.metadata import open_metadata
    from gradmimic.curate.visits import Visits

    metadata = None if filters.metadata is None else open_metadata(engine, filters.metadata)
    others = [name for name in needed_scorers(filters, metadata, visits.scorers) if name not in own]
    if others:
        more = Visits(engine, log, others, relative=False, edge=None)
        with more.blaming_parts():
            found = more.samples([np.inf] * len(more.voters), with_x=False, coded=False, each=True)
        names = {f"other_{j}": f"mean_{j}" for j in range(len(others))}
        judged = plan.with_means(judged, found, names, lambda key: visits.key(engine.unpacked(key)))
        own |= dict(zip(others, names, strict=True))
    known = {**dict.fromkeys(visits.scorers, ""), **own}
    known |= {name: name for name in ("score", "p_clean", "visits") if name not in known}
    return apply(engine, judged, reasons, known, filters, metadata, visits.key)


def _chosen_rule(rule: Rule | None, visits: "Visits", aggregate: str) -> str:
    """Return the rule to use, having checked that there are the canaries it needs."""
    without = [voter for voter in visits.voters if not voter.canaries]
    own = [voter.scorer for voter in visits.voters if voter.canaries]
    if aggregate == "mean":
        usable = bool(own)
    elif aggregate == "stacked":
        without = [voter for voter in without if voter.scorer not in own]
        usable = not without
    else:
        usable = not without
    if rule is None:
        rule = "calibrated" if usable else "mixture"
    if not usable and (rule == "calibrated" or aggregate == "stacked"):
        first = without[0]
        where = f" in epoch {first.epoch}" if own else ""
        what = "aggregate='stacked'" if aggregate == "stacked" else "rule='calibrated'"
        instead = "one scorer" if aggregate == "stacked" else "rule='mixture'"
        raise ConfigError(
            f"{what} learns from canaries, but {visits.where} has none of scorer "
            f"{first.scorer!r}{where}. Score canaries while training, as gradmimic run does, or "
            f"choose {instead}, which needs none."
        )
    return rule


def _at_once(
    visits: "Visits", rule: str, stacked: bool, notes: list[str]
) -> tuple["ir.Table", _Said, "Calibration | None"]:
    """Average over the visits, or combine the scorers' means, then apply the rule once."""
    from gradmimic.curate import plan
    from gradmimic.curate.histogram import grid_of, histograms
    from gradmimic.curate.seen import by_visit

    fetch, relative = visits.engine.fetch, rule == "one_over_b"
    name, boundary = _BOUNDARY.get(rule, ("score", ""))
    if stacked:
        from gradmimic.curate.stacked import stacked as combine

        means, canary_means, stack = combine(visits)
        notes.append(f"{stack.why[0].upper()}{stack.why[1:]}.")
        name = "combined score"
    else:
        never = [np.inf] * len(visits.voters)
        coded = len(never) <= plan.MOST_CODED
        samples = visits.samples(never, with_x=relative, coded=coded)
        means = samples if relative else samples.mutate(x=samples.score)
        canary_means = visits.canary_means()
        name = f"mean {name}"
    if rule == "none":
        return (
            means,
            _Said({}, np.ones(1, np.bool_), np.full(1, np.nan), ["kept: no rule was asked for"]),
            None,
        )
    levels = histograms(fetch(plan.mean_levels(means)), [])[()]
    grid = grid_of(levels, 1.0 - ROUNDING if relative else None)
    real = histograms(fetch(plan.mean_bins(means, [], grid)), [])[()]
    calibration = None
    if rule == "calibrated":
        bins = plan.mean_bins(canary_means, ["canary"], grid)
        found = histograms(fetch(bins), ["canary"])
        canaries = {kind: own for (kind,), own in found.items()}
        seen = by_visit(visits.histograms(with_losses=True))
        with_canaries = [own for own in seen if own[1]]
        # A combination has no losses, by which one kind of canary is told from another.
        if stacked and len(canaries) == 1:
            with_canaries.append((real, canaries))
        calibration = _calibrated(with_canaries, (real, canaries))
        votes = calibration.votes
    else:
        votes = RULES[rule](real.values, real.counts)
    limit = f"{boundary} {1.0 if relative else _threshold(real, votes):.4g}"
    removed = f"removed: the {name} is below {limit}"
    kept = f"kept: the {name} is not below {limit}"
    if not votes.evidence:
        kept = f"kept: the {name.replace('score', 'scores')} {_no_evidence(rule)}"
    elif votes.boundary == -np.inf:
        kept = "kept: the canaries find no sample to remove"
    said = _Said(
        {"bin": real.bins.astype(np.int32)},
        votes.keep,
        votes.p_keep,
        [kept if keep else removed for keep in votes.keep],
    )
    return plan.with_bin(means, grid), said, calibration


def _by_votes(
    visits: "Visits", rule: str, aggregate: str, voters: Mapping[str, Selection]
) -> tuple["ir.Table", _Said]:
    """Apply the rule at every visit, then count or weigh the votes."""
    from gradmimic.curate import plan
    from gradmimic.curate.seen import by_visit

    thresholds, evidence = [], bool(voters)
    for seen in by_visit(visits.histograms(with_losses=rule == "calibrated")):
        real = seen[0]
        if rule == "calibrated":
            votes = _calibrated([seen], seen).votes
        else:
            votes = RULES[rule](real.values, real.counts)
        thresholds.append(_threshold(real, votes))
        evidence |= votes.evidence
    samples, groups = _with_voters(visits, thresholds, voters)
    samples = plan.with_tallies(samples, groups)
    keys, ayes, cast, counts = _patterns(visits, samples, groups, aggregate)
    if aggregate == "majority":
        p_clean = label_model.mean(ayes, cast - ayes)
    else:
        model = label_model.one_coin if aggregate == "one_coin" else label_model.dawid_skene
        p_clean = model(ayes, cast - ayes, counts).p_keep
    if evidence:
        what = "visits voted to keep by" if len(groups) == 1 else "votes were to keep, scores by"
        what += f" {_BOUNDARY[rule][1]}"
        what += "" if aggregate == "majority" else ", weighed by accuracy"
        reasons = _tallied(ayes.sum(axis=1), cast.sum(axis=1), p_clean, what)
    else:
        p_clean = np.ones(len(p_clean))
        reasons = [f"kept: at every visit the scores {_no_evidence(rule)}"] * len(p_clean)
    return samples, _Said(keys, p_clean >= 0.5, p_clean, reasons)


def _tallied(
    ayes: npt.NDArray[Any], cast: npt.NDArray[Any], p_clean: FloatArray, what: str
) -> list[str]:
    """Say how each pattern's votes fell."""
    return [
        f"{'kept' if p >= 0.5 else 'removed'}: {yes} of {total} {what}" + (", a tie" if tie else "")
        for p, yes, total, tie in zip(
            p_clean, ayes.tolist(), cast.tolist(), label_model.is_tie(p_clean), strict=True
        )
    ]


def _with_voters(
    visits: "Visits", thresholds: list[float], voters: Mapping[str, Selection]
) -> tuple["ir.Table", list["Group"]]:
    """Return the samples with all votes on them, and the groups of voters."""
    from gradmimic.curate import plan

    groups = visits.groups
    total = sum(group.size for group in groups)
    coded = total + len(voters) <= plan.MOST_CODED
    samples = visits.samples(thresholds, with_x=False, coded=coded)
    for number, (name, selection) in enumerate(voters.items()):
        other = visits.other(name, selection)
        position = total + number
        samples = plan.with_voter(samples, other, position if coded else len(groups), coded)
        groups.append(plan.Group(position, 1))
    return (visits.engine.store(samples) if voters else samples), groups


def _patterns(
    visits: "Visits", samples: "ir.Table", groups: Sequence["Group"], aggregate: str
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the distinct votes: as keys, as ayes and votes cast ``[p, g]``, and their counts."""
    from gradmimic.curate import plan

    fetch = visits.engine.fetch
    if aggregate == "majority":
        found = fetch(plan.patterns(samples, ["ayes", "cast"]))
        keys = {name: found[name].to_numpy() for name in ("ayes", "cast")}
        ayes, cast = (keys[name][:, None] for name in ("ayes", "cast"))
        return keys, ayes, cast, found["rows"].to_numpy()
    voters = sum(group.size for group in groups)
    if "pattern" in samples.columns:
        distinct = plan.patterns(samples, ["pattern"])
        if fetch(distinct.count().as_table())[0][0].as_py() * voters <= _MOST_CELLS:
            found = fetch(distinct)
            code = found["pattern"].to_numpy()
            bits = code[:, None] >> np.arange(voters)  # [p, voters]
            ayes, cast = bits >> plan.MOST_CODED & 1, bits & 1
            return {"pattern": code}, ayes, cast, found["rows"].to_numpy()
    names = [f"{name}_{number}" for name in ("ayes", "cast") for number in range(len(groups))]
    found = fetch(plan.patterns(samples, names))
    keys = {name: found[name].to_numpy() for name in names}
    ayes, cast = np.split(np.stack(list(keys.values()), axis=1), 2, axis=1)
    return keys, ayes, cast, found["rows"].to_numpy()


def _calibrated(visits: "Sequence[BinsSeen]", mean: "BinsSeen") -> "Calibration":
    """Learn from the canaries."""
    from gradmimic.curate.canaries import calibrate
    from gradmimic.curate.seen import distributions

    return calibrate(distributions(visits), *distributions([mean]))


def _threshold(found: "Histogram", votes: Votes) -> float:
    """Return the lowest value that is kept: −∞ for all, ∞ for none."""
    keep = votes.keep
    if keep.all():
        return -np.inf
    return float(found.low[keep].min()) if keep.any() else np.inf


def _no_evidence(rule: str) -> str:
    """Say why nothing speaks against any sample."""
    return _NO_CANARIES if rule == "calibrated" else _NO_GROUPS


def _check_choices(
    rule: str | None, aggregate: str, scorers: Sequence[str], voters: Mapping[str, Selection]
) -> None:
    """Refuse unknown options, naming those there are, and those that do not fit each other."""
    for name, value, choices in (("rule", rule, _RULES), ("aggregate", aggregate, _AGGREGATES)):
        if value is not None and value not in choices:
            raise ConfigError(f"there is no {name} {value!r}; choose one of {list(choices)}.")
    if not scorers:
        raise ConfigError("expected a scorer's name or several, got none.")
    if aggregate == "mean" and (len(scorers) > 1 or voters):
        raise ConfigError(
            f"aggregate='mean' judges one scorer's scores, but there are {len(scorers)} scorers "
            f"and {len(voters)} other voters. Choose 'majority', 'one_coin' or 'dawid_skene', "
            "which count their votes together, or for several scorers with canaries 'stacked', "
            "which combines their scores."
        )
    if aggregate == "stacked" and (len(scorers) < 2 or voters or rule == "one_over_b"):
        raise ConfigError(
            "aggregate='stacked' combines the scores of two scorers or more, and takes neither "
            f"voters nor rule='one_over_b', but there are {len(scorers)} scorers, {len(voters)} "
            f"other voters and rule={rule!r}."
        )
    if rule == "none" and aggregate not in _ONCE:
        raise ConfigError(
            f"aggregate={aggregate!r} counts votes, which a rule casts. Choose a rule, or "
            "aggregate='mean' to let conditions and rankings alone decide."
        )
