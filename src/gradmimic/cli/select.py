"""``gradmimic select``: from a score log to the samples to keep."""

from pathlib import Path
from typing import Annotated, Literal

import typer

INPUT, FILTERS, OUTPUT, ENGINE = "Decision", "Conditions and rankings", "Output", "Engine"


def select(
    log: Annotated[Path, typer.Argument(help="A score log's folder, or a run's.")],
    out: Annotated[
        Path,
        typer.Option(help="The selection: every sample, with its reason.", rich_help_panel=OUTPUT),
    ] = Path("selection.parquet"),
    rule: Annotated[
        Literal["auto", "calibrated", "mixture", "two_means", "one_over_b", "none"],
        typer.Option(
            help="How scores become a decision. auto: none where --top or --drop-bottom rank, "
            "else calibrated by the log's canaries, else mixture.",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    aggregate: Annotated[
        Literal["mean", "stacked", "majority", "one_coin", "dawid_skene"],
        typer.Option(
            help="Decide once on each sample's mean, or on several scorers combined as canaries "
            "tell (stacked), or let its visits vote: majority, or a label model.",
            rich_help_panel=INPUT,
        ),
    ] = "mean",
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose scores; several vote together, or are combined. Default: mimic.",
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
    review: Annotated[
        Path | None,
        typer.Option(
            help="What a person decided in the report, as it exported that; it wins.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep only what fulfils this, over columns of the metadata and the log, e.g. "
            "'length(text) > 5 and original_width >= 200'.",
            rich_help_panel=FILTERS,
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep only the highest share by a column or a scorer.",
            metavar="COLUMN:SHARE",
            rich_help_panel=FILTERS,
            show_default=False,
        ),
    ] = None,
    drop_bottom: Annotated[
        list[str] | None,
        typer.Option(
            help="Remove the lowest share by a column or a scorer, e.g. mimic:0.15.",
            metavar="COLUMN:SHARE",
            rich_help_panel=FILTERS,
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            help="More about each sample: Parquet files, a folder of them, a pattern in quotes, "
            "or a URL.",
            rich_help_panel=FILTERS,
            show_default=False,
        ),
    ] = None,
    metadata_id: Annotated[
        str, typer.Option(help="The ids in the metadata.", rich_help_panel=FILTERS)
    ] = "uid",
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
        where=where,
        top=_shares("--top", top or []),
        drop_bottom=_shares("--drop-bottom", drop_bottom or []),
        metadata=metadata,
        metadata_id=metadata_id,
        review=review,
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


def _shares(option: str, texts: list[str]) -> dict[str, float]:
    """Read COLUMN:SHARE, where a column's name may hold a colon itself."""
    from gradmimic.errors import ConfigError

    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = text.rpartition(":")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if not name or name in shares or not 0 <= number <= 1:
            again = " once for each" if name in shares else ""
            raise ConfigError(
                f"{option} takes a column and a share from 0 to 1{again}, such as mimic:0.15, got "
                f"{text!r}."
            )
        shares[name] = number
    return shares
