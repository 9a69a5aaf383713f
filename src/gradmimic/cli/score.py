"""``gradmimic score``: a data set scored by the checkpoints of a training, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from gradmimic.run.score import ScoreSummary

INPUT, SCORES, OUTPUT = "Input", "Scores", "Output"


def score(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Weights of one training, in order: files, folders of them, or patterns. Each is "
            "a visit of every sample.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Everything that `gradmimic run` reads: features or images.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(
            help="Better weights: a file, a folder, a hub id; or a .parquet of outputs "
            "(gradmimic cache).",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            help="The given labels: a column, a .npy/.txt/.csv file, or file.parquet:column.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            help="Unique sample ids, likewise; default: row numbers, or the paths inside a folder.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        Literal["auto", "features", "images"],
        typer.Option(help="What the data are.", rich_help_panel=INPUT),
    ] = "auto",
    image_size: Annotated[
        int,
        typer.Option(help="What the models were trained at, in pixels.", rich_help_panel=INPUT),
    ] = 32,
    align: Annotated[
        Literal["none", "shift", "outputs"] | None,
        typer.Option(
            help="How the reference is brought near: its weights (none), or what it says of each "
            "sample (outputs). Default: none where it shares the layers below the head with all "
            "checkpoints, else outputs.",
            rich_help_panel=SCORES,
            show_default=False,
        ),
    ] = None,
    params: Annotated[
        str,
        typer.Option(
            help="The scored parameters: head, all, or a glob pattern.", rich_help_panel=SCORES
        ),
    ] = "head",
    engine: Annotated[
        str,
        typer.Option(
            help="auto, forward, ghost, secant (not exact) or oracle.", rich_help_panel=SCORES
        ),
    ] = "auto",
    temperature: Annotated[
        float | None,
        typer.Option(
            help="τ of the logged weights softmax(m/τ). Default: 0.7; with align outputs, 0.7 of "
            "the scores' spread in the batch.",
            rich_help_panel=SCORES,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples that share a softmax.", rich_help_panel=SCORES)
    ] = 128,
    canaries: Annotated[
        Literal["scored", "off"],
        typer.Option(
            help="Score some samples under wrong labels too: they show what bad samples score.",
            rich_help_panel=SCORES,
        ),
    ] = "scored",
    canary_rate: Annotated[
        float | None,
        typer.Option(
            help="The share of samples that serve as canaries; default: 0.05, more where that "
            "would be fewer than 500.",
            rich_help_panel=SCORES,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the canaries.", rich_help_panel=SCORES)] = 0,
    out: Annotated[
        Path, typer.Option(help="The folder for log/ and labels.parquet.", rich_help_panel=OUTPUT)
    ] = Path("runs/scores"),
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace scores of other data or models.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Score a data set without training it: every sample, at every checkpoint of a training.

    The result is a score log: `gradmimic select OUT` and `gradmimic quality OUT` take it. A run
    that was stopped is started again, and goes on. Under `torchrun --nproc-per-node N -m gradmimic
    score …` N processes share the work.
    """
    from gradmimic.cli.show import progress_bars
    from gradmimic.run.score import ScoreConfig, score_data

    config = ScoreConfig(
        data=data,
        checkpoints=checkpoints,
        reference=reference,
        labels=labels,
        ids=ids,
        kind=kind,
        image_size=image_size,
        align=align,
        params=params,
        engine=engine,
        temperature=temperature,
        batch_size=batch_size,
        canaries=canaries,
        canary_rate=canary_rate,
        seed=seed,
        out=str(out),
        overwrite=overwrite,
    )
    with progress_bars("samples") as progress:
        summary = score_data(config, progress)
    if summary is not None:
        _print(summary)


def _print(summary: "ScoreSummary") -> None:
    """Print what the log holds now."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("samples", f"{summary.samples:,}")
    table.add_row("checkpoints", f"{len(summary.checkpoints):,}")
    table.add_row("visits", f"{summary.visits:,}")
    table.add_row("canaries", f"{summary.canaries:,}")
    for reason, count in summary.skipped.items():
        table.add_row("skipped", f"{count:,}", Text(reason))
    if summary.scored < summary.samples:
        table.add_row("there before", f"{summary.samples - summary.scored:,}")
    if summary.scored:
        table.add_row("samples/s", f"{summary.scored / summary.seconds:,.0f}")
    console.print(table)
    for note in summary.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    console.print(Text(f"log: {summary.log}"), soft_wrap=True)
