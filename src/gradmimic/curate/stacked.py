"""Several scorers of a log, combined into one score of each sample; see ``gradmimic.curate.stack``.

    visits ── GROUP BY sample ─► a mean of each scorer ─► Σ_j w_j z_j + b
    canaries, and the samples they were made from ─► w, b       a random part of all, by a hash

Of canaries of two kinds as many are learned from as there are such errors: a share λ of confusable
ones, the median of what the visits tell. Who tells uniform errors best is often not who tells
confusable ones best (docs/results.md).

The weights are learned in memory, from at most 200,000 rows of either side; the combination is then
one expression over the samples' means.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from gradmimic.curate import plan
from gradmimic.curate.canaries import confusable_share
from gradmimic.curate.seen import by_visit, distributions
from gradmimic.curate.stack import BEND, Stack, stack
from gradmimic.curate.votes import BoolArray, FloatArray

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from gradmimic.curate.visits import Visits

_MOST = 200_000  # rows to learn from: weights are then known to a percent


def stacked(visits: "Visits") -> tuple["ir.Table", "ir.Table", Stack]:
    """Return the samples and the canaries with a combined score, and how it was made.

    Args:
        visits: of the scorers to combine, who all have canaries.

    Returns:
        The samples as ``Visits.samples`` does, with ``score`` and ``x`` the combined one and
        ``mean_g`` each scorer's; the canaries with ``canary``, ``key`` and ``x``; the stack.
    """
    names = list(dict.fromkeys(voter.scorer for voter in visits.voters))
    columns = [f"mean_{j}" for j in range(len(names))]
    never, engine = [np.inf] * len(visits.voters), visits.engine
    coded = len(never) <= plan.MOST_CODED
    samples = visits.samples(never, with_x=False, coded=coded, each=True)
    canaries = engine.store(visits.canary_means(each=True))

    def kinds(table: "ir.Table") -> list[str]:
        found = engine.fetch(table.order_by(["key", "canary"]).limit(_MOST).select("canary"))
        return list(found["canary"].to_pylist())

    def learned_from(table: "ir.Table", order: list[str]) -> FloatArray:
        found = engine.fetch(table.order_by(order).limit(_MOST).select(columns))
        return np.column_stack([found[name].to_numpy() for name in columns])  # null becomes NaN

    many = engine.fetch(samples.count().as_table())[0][0].as_py() > _MOST
    serving = samples.semi_join(canaries, "key") if many else samples
    good, bad = learned_from(serving, ["key"]), learned_from(canaries, ["key", "canary"])
    bad = bad[_as_the_errors(visits, kinds(canaries))]
    found = stack(good, bad, names)
    combined = _combined(found, samples)
    return (
        samples.mutate(score=combined, x=combined),
        canaries.mutate(x=_combined(found, canaries)),
        found,
    )


def _as_the_errors(visits: "Visits", kinds: Sequence[str]) -> BoolArray:
    """Return which canaries ``[c]`` to learn from, so that a share λ of them is confusable."""
    chance = np.random.default_rng(0)
    confusable = np.array([kind.startswith("confusable/") for kind in kinds], dtype=np.bool_)
    if confusable.all() or not confusable.any() or "loss" not in visits.rows.columns:
        return np.ones(len(kinds), np.bool_)
    told = distributions(by_visit(visits.histograms(with_losses=True)))
    share = float(np.median([confusable_share(own, chance) for own in told if own.canaries]))
    sizes = {True: int(confusable.sum()), False: int((~confusable).sum())}
    wanted = {True: share, False: 1.0 - share}
    whole = min(sizes[own] / wanted[own] for own in sizes if wanted[own])  # of both together
    kept = np.zeros(len(kinds), np.bool_)
    for own, part in wanted.items():
        rows = chance.permutation(np.flatnonzero(confusable == own))
        kept[rows[: round(part * whole)]] = True
    return kept


def _combined(found: Stack, table: "ir.Table") -> "ir.FloatingValue":
    """Return the formula of ``gradmimic.curate.stack`` over the columns ``mean_j``."""
    if found.chosen is not None:
        j = found.names.index(found.chosen)
        return table[f"mean_{j}"].fill_null(float(found.center[j]))
    terms = []
    for j, (weight, center, scale) in enumerate(
        zip(found.weights.tolist(), found.center.tolist(), found.scale.tolist(), strict=True)
    ):
        y = (table[f"mean_{j}"] - center) / (BEND * scale)
        bent = y.sign() * (y.abs() + (y * y + 1.0).sqrt()).ln() * BEND  # asinh
        terms.append(bent.fill_null(0.0) * weight)
    return reduce(add, terms) + found.bias
