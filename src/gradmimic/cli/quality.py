"""``gradmimic quality``: how good is a data set, and which of several is better?"""

from pathlib import Path
from typing import Annotated

import typer


def quality(
    logs: Annotated[list[Path], typer.Argument(help="Score logs' folders, or runs'.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A Parquet or CSV of every sample's class, for the quality of each class. A "
            "run's own labels.parquet is found by itself.",
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[str, typer.Option(help="The ids in that file.")] = "sample_id",
    label_column: Annotated[str, typer.Option(help="The classes in that file.")] = "label",
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose scores; several are compared. Default: mimic.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every number as JSON.", show_default=False)
    ] = None,
) -> None:
    """Estimate the share of useful samples, with intervals, from the canaries in the logs.

    The interval reaches from errors that confuse similar classes to errors spread over all.
    """
    from gradmimic.cli.show import log_folder, print_qualities
    from gradmimic.curate.by_id import ById, read_columns
    from gradmimic.curate.quality import estimate_quality, write_qualities

    found = {}
    for log in logs:
        own: ById | None = None
        if labels is not None:
            own = read_columns(labels, id_column, label_column, numbers=False)
        elif (log / "labels.parquet").exists():
            own = read_columns(log / "labels.parquet", "sample_id", "label", numbers=False)
        for name in scorer or ["mimic"]:
            shown = f"{log}, {name}" if len(scorer or ()) > 1 else str(log)
            found[shown] = estimate_quality(log_folder(log), scorer=name, labels=own)
    if out is not None:
        write_qualities(out, found)
    print_qualities(found)
