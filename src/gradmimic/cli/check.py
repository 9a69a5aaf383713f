"""``gradmimic check``: is the reference of a run any use? Told before the run."""

from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmimic.cli.run import signature
from gradmimic.run.config import RunConfig, load_config

if TYPE_CHECKING:
    from gradmimic.run.check import Checked

USELESS, UNKNOWN = 3, 4  # exit codes; 1 is an error, 2 a wrong flag

_STEPS = "Plain training steps before; default: one pass over the data, at most 300."
# Keys of a run that a check has no use for; a file may hold them all the same.
_UNUSED = {
    "true_labels", "show", "test", "test_labels", "temperature", "warmup", "reweight", "canaries",
    "canary_rate", "rule", "aggregate", "out", "overwrite", "report",
}  # fmt: skip


def check(config: Path | None, steps: int | None, json: bool, **flags: Any) -> None:
    """Tell before a run whether its reference is any use, as it is or aligned.

    Takes what `gradmimic run` takes, the same file and the same flags, and writes nothing. The
    model is trained for some plain steps, since the features of an untrained one tell little. Then
    up to 4,096 samples are scored, and as many canaries: the same samples with a label corrupted on
    purpose. AUROC says how far the scores tell them apart: 1 is perfect, 0.5 is chance.

    Exit codes: **0** the reference is usable, **3** it is useless, **4** nothing can be told, since
    there are too few samples; **1** an error, such as a file that does not fit, **2** a wrong flag.
    """
    resolved = load_config(config, flags)

    from gradmimic.run.check import check_run

    if json:
        found = check_run(resolved, steps=steps)
        _print_json(found)
    else:
        from gradmimic.cli.show import progress_bars

        with progress_bars() as progress:
            found = check_run(resolved, steps=steps, progress=progress)
        _print(found)
    if not found.check.usable:
        raise typer.Exit(UNKNOWN if found.check.usable is None else USELESS)


def _print_json(found: "Checked") -> None:
    """Print every number."""
    from json import dumps

    typer.echo(dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))


def _print(found: "Checked") -> None:
    """Print a column for each alignment, and the verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gradmimic.verdict import shown

    told = found.check
    console = Console()
    console.print(
        Text(f"After {found.steps:,} plain steps, {told.samples:,} samples:"), soft_wrap=True
    )
    table = Table("", *told.alignments, box=None, padding=(0, 2, 0, 0))
    checks = list(told.alignments.values())
    verdicts = {True: "usable", False: "useless", None: "unknown"}
    table.add_row("reference", *(verdicts[own.usable] for own in checks))
    for kind in dict.fromkeys(kind for own in checks for kind in own.auroc):
        areas = [own.auroc.get(kind) for own in checks]
        cells = [f"{a.value:.3f} ({a.low:.3f} – {a.high:.3f})" if a else "" for a in areas]
        table.add_row(f"AUROC over {kind.partition('/')[0]} canaries", *cells)
    for part, at in (("here", 0), ("a quarter of the way", 1), ("halfway", 2), ("there", 4)):
        table.add_row(f"mean loss, {part}", *(shown(own.losses[at]) for own in checks))
    table.add_row("scores above 0", *(f"{own.positive:.0%}" for own in checks))
    table.add_row("spread of the scores", *(shown(own.spread) for own in checks))
    table.add_row("cosine of the weights", *(shown(own.cosine) for own in checks))
    table.add_row("distance, relative", *(shown(own.distance) for own in checks))
    if checks:
        console.print(table)
    if told.missing:
        text = f"{told.missing:,} more samples have no outputs in the table."
        console.print(Text(text), soft_wrap=True)
    for name, why in told.impossible.items():
        if name != "rotation":  # no model of a run has two projections
            console.print(Text(f"{name} does not fit: {why}", style="dim"), soft_wrap=True)
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[told.usable]
    verdict = Text(f"{verdicts[told.usable]}: ".capitalize(), style)
    console.print(verdict + Text(told.reason), soft_wrap=True)
    for note in found.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)


def _check_signature() -> Signature:
    """Take the run's keys that decide here, and two flags of our own."""
    own = {
        "steps": (
            None,
            Annotated[int | None, typer.Option(min=0, help=_STEPS, show_default=False)],
        ),
        "json": (False, Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]),
    }
    return Signature(
        [
            *(
                p
                for name, p in signature({"labels": RunConfig}).parameters.items()
                if name not in _UNUSED
            ),
            *(
                Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                for name, (default, annotation) in own.items()
            ),
        ]
    )


check.__signature__ = _check_signature()  # type: ignore[attr-defined]
check.__annotations__ = {name: p.annotation for name, p in _check_signature().parameters.items()}
