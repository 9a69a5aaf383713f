"""``gradmimic select``: from a score log to the samples to keep."""

from pathlib import Path
from typing import Annotated, Literal

import typer

INPUT, OUTPUT, ENGINE = "Decision", "Output", "Engine"


def select(
    log: Annotated[Path, typer.Argument(help="A score log's folder, or a run's.")],
    out: Annotated[
        Path,
        typer.Option(help="The selection: every sample, with its reason.", rich_help_panel=OUTPUT),
    ] = Path("selection.parquet"),
    rule: Annotated[
        Literal["auto", "calibrated", "mixture", "two_means", "one_over_b"],
        typer.Option(
            help="How scores become a decision. auto: calibrated by the log's canaries, "
            "else mixture.",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    aggregate: Annotated[
        Literal["mean", "majority", "one_coin", "dawid_skene"],
        typer.Option(
            help="Decide once on each sample's mean, or let its visits vote: majority, or a "
            "label model.",
            rich_help_panel=INPUT,
        ),
    ] = "mean",
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose scores; several vote together. Default: mimic.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    voter: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another selection.parquet that votes too, e.g. made from CLIP scores.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    kept: Annotated[
        Path | None, typer.Option(help="The kept rows alone, as Parquet.", rich_help_panel=OUTPUT)
    ] = None,
    removed: Annotated[
        Path | None, typer.Option(help="The removed rows alone.", rich_help_panel=OUTPUT)
    ] = None,
    datacomp: Annotated[
        Path | None,
        typer.Option(help="A DataComp subset of the kept uids, .npy.", rich_help_panel=OUTPUT),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="A Spark master such as spark://host:7077. Default: DuckDB, in this process.",
            rich_help_panel=ENGINE,
            show_default=False,
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Of DuckDB, e.g. 2GB.", rich_help_panel=ENGINE, show_default=False),
    ] = None,
    temp_folder: Annotated[
        Path | None,
        typer.Option(
            help="Where DuckDB keeps what does not fit.", rich_help_panel=ENGINE, show_default=False
        ),
    ] = None,
) -> None:
    """Decide for every logged sample whether to keep it, and say why."""
    from gradmimic.cli.show import log_folder, print_selection
    from gradmimic.curate import Selection
    from gradmimic.curate import select as decide

    selection = decide(
        log_folder(log),
        None if rule == "auto" else rule,
        aggregate=aggregate,
        scorer=scorer or "mimic",
        voters={str(path): Selection.from_parquet(path) for path in voter or []},
        out=out,
        backend=backend,
        memory_limit=memory_limit,
        temp_folder=temp_folder,
    )
    files = {"selection": out}
    if kept is not None:
        selection.to_parquet(kept, only="kept")
        files["kept"] = kept
    if removed is not None:
        selection.to_parquet(removed, only="removed")
        files["removed"] = removed
    if datacomp is not None:
        selection.to_datacomp(datacomp)
        files["datacomp"] = datacomp
    print_selection(selection, files)
