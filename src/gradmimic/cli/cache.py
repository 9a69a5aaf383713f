"""``gradmimic cache``: ask a reference once, look its outputs up ever after."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RUN, TABLE, OUTPUT = "A reference to run over data", "Or outputs that a table holds", "Output"


def cache(
    data: Annotated[
        str | None,
        typer.Option(
            help="Everything that `gradmimic run` reads: features or images. Needs no labels.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The reference.pt of another run, of any model.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The column of labels, where it could be taken for a feature.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    data_kind: Annotated[
        Literal["auto", "features", "images"],
        typer.Option(help="What the data are.", rich_help_panel=RUN),
    ] = "auto",
    image_size: Annotated[
        int, typer.Option(help="What the reference was trained at, in pixels.", rich_help_panel=RUN)
    ] = 32,
    model: Annotated[
        Literal["auto", "linear", "mlp", "cnn"],
        typer.Option(help="auto: read off the reference's weights.", rich_help_panel=RUN),
    ] = "auto",
    hidden: Annotated[
        int | None,
        typer.Option(
            help="Width of the reference; likewise.", rich_help_panel=RUN, show_default=False
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            help="A .parquet, .csv, .npy or .npz.", rich_help_panel=TABLE, show_default=False
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of lists; or a column for each class, in the order of the classes: "
            "names, given one by one, or a pattern such as 'p_*'.",
            rich_help_panel=TABLE,
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        Literal["logits", "probabilities", "embeddings"] | None,
        typer.Option(
            help="What the table's outputs are.", rich_help_panel=TABLE, show_default=False
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            help="Unique sample ids, the same as in the training: a column, or a .npy/.txt/.csv "
            "file. Default: row numbers, or the paths inside a folder.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The table to write.", rich_help_panel=OUTPUT)] = Path(
        "outputs.parquet"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace it.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a reference's outputs for every sample, by id, as a table that trainings look up.

    From --data and --reference, or from --table and --kind. The table is a reference like any
    other: GradMimic(model, Outputs.read(path), align="transport").
    """
    from gradmimic.errors import ConfigError

    run_keys: dict[str, Any] = {"data": data, "reference": reference}
    table_keys: dict[str, Any] = {"table": table, "kind": kind}
    if table is None:
        needed, others = run_keys, {**table_keys, "outputs": outputs}
    else:
        needed, others = table_keys, {**run_keys, "labels": labels, "hidden": hidden}
    if missing := [name for name, value in needed.items() if value is None]:
        raise ConfigError(
            f"--{missing[0]} is missing. Expected --data and --reference, to run a reference; or "
            "--table and --kind, for outputs that are there already."
        )
    if surplus := [name for name, value in others.items() if value is not None]:
        raise ConfigError(f"--{surplus[0]} does not go with --{next(iter(needed))}; leave it out.")

    from gradmimic.cli.show import progress_bars
    from gradmimic.run.cache import cache_reference, cache_table

    with progress_bars() as progress:
        common: dict[str, Any] = {"ids": ids, "overwrite": overwrite, "progress": progress}
        if table is not None and kind is not None:
            done = cache_table(table, str(out), kind=kind, outputs=outputs, **common)
        else:
            done = cache_reference(
                str(data),
                str(reference),
                str(out),
                labels=labels,
                kind=data_kind,
                image_size=image_size,
                model=model,
                hidden=hidden,
                **common,
            )

    from rich.console import Console
    from rich.text import Text

    console = Console()
    for note in done.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    console.print(
        Text(
            f"{done.rows:,} rows × {done.width:,} {done.kind}, {done.size / 1e6:.1f} MB, in "
            f"{done.seconds:.1f} s"
        ),
        soft_wrap=True,
    )
    console.print(Text(f"outputs: {done.path}"), soft_wrap=True)
