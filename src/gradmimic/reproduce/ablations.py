"""``reproduce ablations``: what of the method matters, and how good has the reference to be?

temperature   τ of w = softmax(m/τ); "auto", by the scores' spread; the posterior in its place
parameters    which ones are scored, and which follow the weights, of an MLP that is trained whole
reference     stopped earlier, from fewer clean rows, with noise on its weights, or no better
              than the run itself: a checkpoint of plain training on the same noisy labels
start         a reference from the run's own initial weights, and from others: the negative
              control, since two trained trunks share no direction

Every variant changes one thing of its group's first one. Gains are over plain training of the same
model in the same order of batches; AUROC is that of the mean scores, by the truth.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gradmimic.curate.select import select
from gradmimic.errors import ConfigError
from gradmimic.reproduce import plots
from gradmimic.reproduce.altered import altered
from gradmimic.reproduce.cases import Cases
from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.problems import Problem
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import Table, pivot
from gradmimic.reproduce.training import PLAIN
from gradmimic.run.models import build_model
from gradmimic.separation import auroc

HIDDEN = 256  # of the MLP
_SHOWN = {"accuracy": "accuracy, %", "gain": "gain, points", "auroc": "AUROC × 100"}


class Variant(NamedTuple):
    """One way to train re-weighted.

    Attributes:
        name: in the table.
        told: what ``GradMimic`` is told.
        how: the reference, as of ``altered``.
        amount: of it.
    """

    name: str
    told: Mapping[str, Any] = {}
    how: str = "usual"
    amount: float = 1.0


_ALL: Mapping[str, Any] = {"params": "all"}
_SCORED: Mapping[str, Any] = {"reweight": "scored"}
GROUPS: Mapping[str, tuple[str, tuple[Variant, ...]]] = {  # by name: the model, its variants
    "temperature": (
        "probe",
        (
            *(Variant(f"τ = {tau:g}", {"temperature": tau}) for tau in (1.0, 2.0, 0.5, 0.2, 0.05)),
            Variant("τ auto", {"temperature": "auto"}),
            Variant("posterior", {"weighting": "posterior"}),
        ),
    ),
    "parameters": (
        "mlp",
        (
            Variant("head scored, all follow", how="own_start"),
            Variant("head scored, it alone follows", _SCORED, "own_start"),
            Variant("all scored, all follow", _ALL, "own_start"),
        ),
    ),
    "reference": (
        "probe",
        (
            Variant("as published"),
            *(Variant(f"{k} of its epochs", {}, "epochs", k) for k in (1, 2)),
            *(Variant(f"{share:.0%} of the rows", {}, "rows", share) for share in (0.5, 0.1, 0.02)),
            *(Variant(f"noise σ = {s:g}", {}, "jitter", s) for s in (0.25, 0.5, 1.0, 2.0)),
            *(Variant(f"the noisy run, epoch {k}", {}, "checkpoint", k) for k in (1, 2)),
        ),
    ),
    "start": (
        "mlp",
        (
            Variant("own start, all scored", _ALL, "own_start"),
            Variant("other start, all scored", _ALL),
            Variant("other start, head scored"),
        ),
    ),
}


def cells(cases: Cases) -> list[Cell]:
    """Return a cell for each set, noise, seed, group and variant, plain training among them."""
    return [
        {**cell, "group": group, "model": model, "variant": name}
        for cell in cases.cells("ablations", hidden=HIDDEN)
        for group, (model, variants) in GROUPS.items()
        for name in (PLAIN, *(variant.name for variant in variants))
    ]


def compute(cases: Cases, cell: Cell) -> Values:
    """Train one variant."""
    case = cases.open(cell)
    if cell["model"] == "mlp":
        case = replace(case, problem=with_mlp(case.problem, cell["hidden"]))
    if cell["variant"] == PLAIN:
        return {"accuracy": case.fit(PLAIN).curve.accuracy[-1], "auroc": None}
    variant = next(own for own in GROUPS[cell["group"]][1] if own.name == cell["variant"])
    told = dict(variant.told)
    tau = told.pop("temperature", case.temperature)
    reference = altered(case, variant.how, variant.amount)
    with case.logged(reference=reference, told=told, temperature=tau) as (log, left):
        scores = select(log, "none").rows(np.arange(len(case.labels)), ["score"])["score"]
    return {
        "accuracy": left.curve.accuracy[-1],
        "auroc": auroc(scores.to_numpy(), case.wrong),
    }


def with_mlp(problem: Problem, hidden: int) -> Problem:
    """Put an MLP in the place of a linear probe.

    Raises:
        ConfigError: the inputs are no features.
    """
    inputs = problem.train.inputs
    if inputs.ndim != 2:
        raise ConfigError(
            f"ablations train an MLP on features [n, d], got inputs {list(inputs.shape)}. Use "
            "--tuning probe."
        )
    values, classes = inputs.cpu().numpy(), len(problem.classes)

    def start(seed: int) -> Any:
        return build_model("mlp", values, classes, hidden=hidden, seed=seed).to(inputs.device)

    identity = {**problem.identity, "model": f"mlp {hidden}"}
    return replace(problem, start=start, identity=identity)


def report(rows: Rows) -> Report:
    """Lay out accuracy, gain and AUROC of each variant, by group."""
    plain = {_place(cell): values for cell, values in rows if cell["variant"] == PLAIN}
    records = []
    for cell, values in rows:
        base = plain[_place(cell)]["accuracy"]
        figures = {
            "accuracy": 100 * values["accuracy"],
            "gain": None if cell["variant"] == PLAIN else 100 * (values["accuracy"] - base),
            "auroc": None if values["auroc"] is None else 100 * values["auroc"],
        }
        records += [{**cell, "what": _SHOWN[k], "value": own} for k, own in figures.items()]
    tables, points = [], []
    for name, noise, group in dict.fromkeys((c["set"], c["noise"], c["group"]) for c, _ in rows):
        own = [r for r in records if (r["set"], r["noise"], r["group"]) == (name, noise, group)]
        title = f"{group}: {name}, noise {noise}, {GROUPS[group][0]}"
        table = pivot(own, title, rows=["variant"], column="what", digits=2)
        tables.append(table)
        points += [
            {
                "x": p["value"], "low": p["low"], "high": p["high"], "name": p["variant"],
                "group": f"{name}, {noise}", "panel": group,
            }
            for p in table.points()
            if p["column"] == _SHOWN["gain"]
        ]  # fmt: skip
    charts = {
        group: plots.dots(
            [p for p in points if p["panel"] == group],
            title=f"Gain over plain training: {group}", x="points", group="set, noise",
        )
        for group in dict.fromkeys(p["panel"] for p in points)
    }  # fmt: skip
    return Report(tables, charts, [_told(table) for table in tables])


def _told(table: Table) -> str:
    """Say which variants of a group gain most and least."""
    gains = {
        point["variant"]: point["value"]
        for point in table.points()
        if point["column"] == _SHOWN["gain"]
    }
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    return (
        f"{table.title}: the most is gained by {best}, {gains[best]:+.2f} points, the least by "
        f"{worst}, {gains[worst]:+.2f}."
    )


def _place(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[key] for key in ("set", "noise", "seed", "group"))
