"""``gradmimic score``: a data set scored by the checkpoints of a training, without training."""

from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmimic.cli.run import signature
from gradmimic.run.score_config import CHECKPOINTS, SCORE_TASKS, ScoreConfig, load_score

if TYPE_CHECKING:
    from gradmimic.run.score import ScoreSummary


def score(checkpoints: list[str], **flags: Any) -> None:
    """Score a data set without training it: every sample, at every checkpoint of a training.

    With the task **labels**, the default: classifiers, on data with labels. With the task **clip**:
    contrastive models, on pairs of pictures and captions; what of these cannot be used is counted,
    and told in the end.

    The result is a score log: `gradmimic select OUT` and `gradmimic quality OUT` take it. A run
    that was stopped is started again, and goes on. Under `torchrun --nproc-per-node N -m gradmimic
    score …` N processes share the work.
    """
    config = load_score({**flags, "checkpoints": checkpoints})

    from gradmimic.cli.show import progress_bars

    with progress_bars("samples") as progress:
        if isinstance(config, ScoreConfig):
            from gradmimic.run.score import score_data

            summary = score_data(config, progress)
        else:
            from gradmimic.run.clip.score import score_pairs

            summary = score_pairs(config, progress)
    if summary is not None:
        _print(summary)
        if not summary.visits:
            raise typer.Exit(1)


def _print(summary: "ScoreSummary") -> None:
    """Print what the log holds now."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gradmimic.cli.show import print_census

    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("samples", f"{summary.samples:,}")
    table.add_row("checkpoints", f"{len(summary.checkpoints):,}")
    table.add_row("visits", f"{summary.visits:,}")
    table.add_row("canaries", f"{summary.canaries:,}")
    for scorer, area in summary.apart.items():
        told = f"{scorer} ({area.low:.3f} to {area.high:.3f}; 0.5 is chance)"
        table.add_row("canary AUROC", f"{area.value:.3f}", Text(told))
    for reason, count in summary.skipped.items():
        table.add_row("skipped", f"{count:,}", Text(reason))
    if summary.scored < summary.samples:
        table.add_row("there before", f"{summary.samples - summary.scored:,}")
    if summary.scored:
        table.add_row("samples/s", f"{summary.scored / summary.seconds:,.0f}")
    console.print(table)
    print_census(summary.census)
    for note in summary.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    console.print(Text(f"log: {summary.log}"), soft_wrap=True)


_CHECKPOINTS = Parameter(
    "checkpoints",
    Parameter.POSITIONAL_OR_KEYWORD,
    annotation=Annotated[
        list[str],
        typer.Argument(help=CHECKPOINTS, show_default=False),
    ],
)
_FLAGS = [
    flag
    for name, flag in signature(SCORE_TASKS).parameters.items()
    if name not in ("config", "checkpoints")
]
score.__signature__ = signature(SCORE_TASKS).replace(  # type: ignore[attr-defined]
    parameters=[_CHECKPOINTS, *_FLAGS]
)
score.__annotations__ = {own.name: own.annotation for own in (_CHECKPOINTS, *_FLAGS)}
